"""NT-Xent on one process: against its equation, its closed forms and the numbers of the authors' code."""

import math
import re

import pytest
import torch
from cl_losses import NTXentLoss, nt_xent_loss
from torch import Tensor
from torch.testing import assert_close


def nt_xent_by_loops(z_a: Tensor, z_b: Tensor, *, temperature: float) -> Tensor:
    """Eq. 1 of arXiv:2002.05709, row by row and pair by pair: (2n,)."""
    n, z = len(z_a), [*z_a, *z_b]

    def similarity(i: int, k: int) -> Tensor:
        return (z[i] * z[k]).sum() / (z[i].norm() * z[k].norm())

    losses = []
    for i in range(2 * n):
        numerator = torch.exp(similarity(i, (i + n) % (2 * n)) / temperature)
        denominator = sum(torch.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i)
        losses.append(-torch.log(numerator / denominator))
    return torch.stack(losses)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def two_views(n: int = 5, d: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return normal(n, d, seed=seed, dtype=dtype), normal(n, d, seed=seed + 1, dtype=dtype)


def golden_views(n: int, d: int) -> tuple[Tensor, Tensor]:
    k = torch.arange(n * d, dtype=torch.float64).reshape(n, d)
    return torch.sin(0.7 * k + 0.3), torch.cos(1.3 * k + 0.1)


def gradients(z_a: Tensor, z_b: Tensor, loss=nt_xent_loss, **arguments) -> tuple[Tensor, Tensor]:
    z_a, z_b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    return torch.autograd.grad(loss(z_a, z_b, **arguments).mean(), (z_a, z_b))


def simplex(n: int) -> Tensor:
    """n unit vectors whose cosines are all -1 / (n - 1)."""
    rows = torch.eye(n, dtype=torch.float64) - 1 / n
    return rows / rows.norm(dim=1, keepdim=True)


# The equation


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (3, 1), (5, 6)])
def test_nt_xent_of_each_row_is_equation_1(n, d, temperature):
    z_a, z_b = two_views(n, d)
    actual = nt_xent_loss(z_a, z_b, temperature=temperature, reduction="none")
    assert_close(actual, nt_xent_by_loops(z_a, z_b, temperature=temperature), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 6)])
def test_nt_xent_has_the_gradient_of_equation_1(n, d, temperature):
    z_a, z_b = two_views(n, d)
    actual = gradients(z_a, z_b, temperature=temperature)
    expected = gradients(z_a, z_b, nt_xent_by_loops, temperature=temperature)
    assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_equals_lightlys(temperature):
    lightly_loss = pytest.importorskip("lightly.loss")
    z_a, z_b = two_views(dtype=torch.float32)
    expected = lightly_loss.NTXentLoss(temperature=temperature)(z_a, z_b)
    assert_close(nt_xent_loss(z_a, z_b, temperature=temperature), expected, rtol=1e-5, atol=1e-6)


# Numbers that the authors' code gives (theirs is twice the mean: it adds the means of the two views)


@pytest.mark.parametrize(
    ("temperature", "value", "mean_a", "mean_b"),
    [
        (0.1, 6.866294127476209, 7.781545367232, 5.951042887720),
        (0.5, 2.268388409826168, 2.483309323111, 2.053467496541),
        (1.0, 2.019412633923076, 2.137824788236, 1.901000479610),
    ],
)
def test_nt_xent_gives_the_golden_values(temperature, value, mean_a, mean_b):
    z_a, z_b = golden_views(4, 8)
    rows = nt_xent_loss(z_a, z_b, temperature=temperature, reduction="none")
    assert nt_xent_loss(z_a, z_b, temperature=temperature).item() == pytest.approx(value, abs=1e-13)
    assert rows[:4].mean().item() == pytest.approx(mean_a, abs=1e-11)
    assert rows[4:].mean().item() == pytest.approx(mean_b, abs=1e-11)


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.1, 14.098663208324275), (0.5, 2.951388806035181), (1.0, 1.819103222740619)]
)
def test_nt_xent_of_two_images_gives_the_golden_values(temperature, value):
    z_a, z_b = golden_views(2, 3)
    assert nt_xent_loss(z_a, z_b, temperature=temperature).item() == pytest.approx(value, abs=1e-13)


def test_nt_xent_gives_the_golden_value_of_each_row_first_views_first():
    expected = [2.588082537489, 3.233001311830, 1.813893305513, 2.298260137612]
    expected += [2.708211933543, 1.827867451909, 1.312010518735, 2.365780081977]
    actual = nt_xent_loss(*golden_views(4, 8), temperature=0.5, reduction="none")
    assert actual.tolist() == pytest.approx(expected, abs=1e-11)


def test_nt_xent_gives_the_golden_gradients():
    first = [-0.165266726542, -0.054298826285, 0.101317574085, 0.103800575508]
    first += [-0.018079078197, -0.066389359287, 0.026878360073, 0.101477423893]
    last = [0.103761615093, 0.091123840818, 0.043011278270, -0.015333471271]
    last += [-0.068500622269, -0.100535720077, -0.089183699264, -0.026886896982]
    grad_a, grad_b = gradients(*golden_views(4, 8), temperature=0.5)
    assert grad_a[0].tolist() == pytest.approx(first, abs=1e-11)
    assert grad_b[3].tolist() == pytest.approx(last, abs=1e-11)


@pytest.mark.parametrize(
    ("temperature", "norm"), [(0.1, 3.364465591876), (0.5, 0.6308691204680), (1.0, 0.3120006373697)]
)
def test_nt_xent_gives_the_golden_norm_of_the_gradient(temperature, norm):
    grad = torch.cat(gradients(*golden_views(4, 8), temperature=temperature))
    assert grad.norm().item() == pytest.approx(norm, abs=1e-11)


# Closed forms


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("n", [2, 4, 9])
def test_nt_xent_of_equal_rows_is_the_log_of_the_number_of_candidates(n, temperature):
    z = torch.ones(n, 3)  # each of the 2n rows has 2n - 1 candidates, all equally likely
    assert nt_xent_loss(z, z, temperature=temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)


@pytest.mark.parametrize(("n", "value"), [(2, 1.098612288668), (4, 1.945910149055), (256, 6.236369590204)])
def test_nt_xent_of_orthogonal_rows_is_the_log_of_the_number_of_candidates(n, value):
    z_a, z_b = torch.eye(2 * n, dtype=torch.float64).chunk(2)
    assert nt_xent_loss(z_a, z_b, temperature=0.1).item() == pytest.approx(value, abs=1e-11)


@pytest.mark.parametrize("temperature", [1e9, math.inf])
def test_nt_xent_of_an_endless_temperature_is_the_log_of_the_number_of_candidates(temperature):
    assert nt_xent_loss(*two_views(4), temperature=temperature).item() == pytest.approx(math.log(7), abs=1e-8)


@pytest.mark.parametrize(
    ("n", "temperature", "value"),
    [
        (2, 0.5, 0.239544766222),
        (4, 0.1, 2.72362485e-4),
        (4, 0.5, 0.594437664233),
        (256, 0.1, 0.022889978264),
        (256, 0.5, 4.248795117806),
    ],
)
def test_nt_xent_of_equal_views_of_orthogonal_images_is_its_closed_form(n, temperature, value):
    z = torch.eye(n, dtype=torch.float64)
    assert math.log1p((2 * n - 2) * math.exp(-1 / temperature)) == pytest.approx(value, abs=1e-11)
    assert nt_xent_loss(z, z, temperature=temperature).item() == pytest.approx(value, abs=1e-11)


@pytest.mark.parametrize(("n", "temperature", "value"), [(4, 0.5, 3.814064727564), (256, 0.1, 16.234410814738)])
def test_nt_xent_of_opposite_views_of_orthogonal_images_is_its_closed_form(n, temperature, value):
    z = torch.eye(n, dtype=torch.float64)
    assert math.log1p((2 * n - 2) * math.exp(1 / temperature)) == pytest.approx(value, abs=1e-11)
    assert nt_xent_loss(z, -z, temperature=temperature).item() == pytest.approx(value, abs=1e-11)


@pytest.mark.parametrize(
    ("n", "temperature", "value"), [(2, 0.5, 0.035976299748), (4, 0.5, 0.348471885802), (256, 0.5, 4.241064425863)]
)
def test_nt_xent_of_a_simplex_is_its_closed_form(n, temperature, value):
    z = simplex(n)
    assert nt_xent_loss(z, z, temperature=temperature).item() == pytest.approx(value, abs=1e-11)


def test_nt_xent_is_least_at_the_simplex():
    z = simplex(4)
    assert_close(gradients(z, z, temperature=0.5), (torch.zeros_like(z),) * 2, rtol=0, atol=1e-14)
    least = nt_xent_loss(z, z, temperature=0.5)
    assert all(nt_xent_loss(z + 0.1 * normal(4, 4, seed=s), z, temperature=0.5) > least for s in range(20))


def test_nt_xent_of_two_identical_images_is_its_closed_form():
    z = torch.eye(5, dtype=torch.float64)
    z[1] = z[0]
    rows = nt_xent_loss(z, z, temperature=0.5, reduction="none").reshape(2, 5)
    assert_close(rows[:, :2], torch.full_like(rows[:, :2], math.log(3 + 6 * math.exp(-2))), rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_nt_xent_of_a_row_lies_within_its_bounds(seed, temperature):
    rows = nt_xent_loss(*two_views(4, 2, seed=seed), temperature=temperature, reduction="none")
    assert rows.min() >= math.log1p(6 * math.exp(-2 / temperature))
    assert rows.max() <= math.log1p(6 * math.exp(2 / temperature))


# Invariances


def test_nt_xent_is_invariant_to_the_scale_of_its_inputs():
    z_a, z_b = two_views()
    scale = torch.tensor([1e-3, 0.1, 1, 7, 1e4], dtype=torch.float64)[:, None]
    expected = nt_xent_loss(z_a, z_b, temperature=0.5)
    assert_close(nt_xent_loss(scale * z_a, z_b / scale, temperature=0.5), expected, rtol=1e-13, atol=0)


def test_nt_xent_has_no_gradient_along_its_inputs():
    views = two_views()
    for z, grad in zip(views, gradients(*views, temperature=0.1), strict=True):
        assert grad.norm() > 0.1
        assert (z * grad).sum(dim=1).abs().max() < 1e-14


def test_nt_xent_is_symmetric_in_the_views():
    z_a, z_b = two_views()
    assert_close(nt_xent_loss(z_a, z_b, temperature=0.5), nt_xent_loss(z_b, z_a, temperature=0.5), rtol=1e-14, atol=0)


def test_nt_xent_of_a_row_does_not_depend_on_the_order_of_the_images():
    z_a, z_b = two_views()
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = nt_xent_loss(z_a, z_b, temperature=0.5, reduction="none").reshape(2, 5)
    shuffled = nt_xent_loss(z_a[order], z_b[order], temperature=0.5, reduction="none").reshape(2, 5)
    assert_close(shuffled, rows[:, order], rtol=1e-13, atol=0)


def test_nt_xent_is_invariant_to_a_common_rotation():
    z_a, z_b = two_views()
    rotation = torch.linalg.qr(normal(6, 6, seed=9)).Q
    expected = nt_xent_loss(z_a, z_b, temperature=0.5)
    assert_close(nt_xent_loss(z_a @ rotation, z_b @ rotation, temperature=0.5), expected, rtol=1e-13, atol=0)


# Reductions


def test_nt_xent_mean_is_the_mean_of_its_rows():
    views = two_views()
    rows = nt_xent_loss(*views, temperature=0.5, reduction="none")
    assert_close(nt_xent_loss(*views, temperature=0.5), rows.mean(), rtol=1e-14, atol=0)


def test_nt_xent_sum_is_the_sum_of_its_rows():
    views = two_views()
    rows = nt_xent_loss(*views, temperature=0.5, reduction="none")
    assert_close(nt_xent_loss(*views, temperature=0.5, reduction="sum"), rows.sum(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), ("none", (10,))])
def test_nt_xent_has_the_shape_of_its_reduction(reduction, shape):
    assert nt_xent_loss(*two_views(), temperature=0.5, reduction=reduction).shape == shape


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_of_half_precision_is_float32s_on_the_rounded_input(dtype):
    z_a, z_b = two_views(dtype=dtype)
    actual = nt_xent_loss(z_a, z_b, temperature=0.1)
    assert_close(actual, nt_xent_loss(z_a.float(), z_b.float(), temperature=0.1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_gradient_of_half_precision_is_float32s_rounded(dtype):
    z_a, z_b = two_views(dtype=dtype)
    expected = gradients(z_a.float(), z_b.float(), temperature=0.1)
    actual = gradients(z_a, z_b, temperature=0.1)
    assert_close(actual, tuple(grad.to(dtype) for grad in expected), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_inside_autocast_is_float32s(dtype):
    z_a, z_b = two_views(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        actual = nt_xent_loss(z_a, z_b, temperature=0.1)
    assert_close(actual, nt_xent_loss(z_a, z_b, temperature=0.1), rtol=0, atol=0)


def test_nt_xent_gradient_of_a_forward_inside_autocast_is_float32s():
    z_a, z_b = (z.requires_grad_() for z in two_views(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent_loss(z_a, z_b, temperature=0.1)
    actual = torch.autograd.grad(loss, (z_a, z_b))  # outside, as torch asks: backward follows the surrounding autocast
    assert_close(actual, gradients(z_a.detach(), z_b.detach(), temperature=0.1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
def test_nt_xent_keeps_float64_and_is_else_float32(given, returned):
    assert nt_xent_loss(*two_views(dtype=given), temperature=0.5).dtype == returned


def test_nt_xent_of_float32_is_near_float64s():
    views = two_views(16, 32, dtype=torch.float32)
    expected = nt_xent_loss(*(z.double() for z in views), temperature=0.1)
    assert nt_xent_loss(*views, temperature=0.1).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nt_xent_of_identical_rows_is_finite(temperature):
    z = torch.ones(3, 4)
    assert nt_xent_loss(z, z, temperature=temperature).isfinite()
    assert all(grad.isfinite().all() for grad in gradients(z, z, temperature=temperature))


def test_nt_xent_with_a_zero_row_is_finite():
    z_a, z_b = two_views(dtype=torch.float32)
    z_a[0] = 0
    assert nt_xent_loss(z_a, z_b, temperature=0.1).isfinite()
    assert all(grad.isfinite().all() for grad in gradients(z_a, z_b, temperature=0.1))


@pytest.mark.parametrize(("sign", "value"), [(1, math.log1p(2 * math.exp(-100))), (-1, 100 + math.log(2))])
def test_nt_xent_does_not_overflow_at_temperature_0_01(sign, value):
    z = torch.eye(2)  # exp(100) is beyond float32
    assert nt_xent_loss(z, sign * z, temperature=0.01).item() == pytest.approx(value, rel=1e-6)


# The module


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nt_xent_module_equals_the_function(reduction):
    views = two_views()
    module = NTXentLoss(temperature=0.2, reduction=reduction)
    assert_close(module(*views), nt_xent_loss(*views, temperature=0.2, reduction=reduction), rtol=0, atol=0)


def test_nt_xent_module_prints_its_hyperparameters():
    text = repr(NTXentLoss(temperature=0.2, reduction="sum", gather=False))
    assert text == "NTXentLoss(temperature=0.2, reduction='sum', gather=False)"


# Errors


@pytest.mark.parametrize(("shape_a", "shape_b"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,)), ((2, 3, 4),) * 2])
def test_nt_xent_says_which_shapes_do_not_fit(shape_a, shape_b):
    message = re.escape(f"`z_a` and `z_b` must have one shape (n, d), got {shape_a} and {shape_b}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(torch.ones(shape_a), torch.ones(shape_b), temperature=0.5)


def test_nt_xent_says_that_integers_are_no_projections():
    message = re.escape("`z_a` and `z_b` must hold floating point numbers, got torch.float32 and torch.int64.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64), temperature=0.5)


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan])
def test_nt_xent_says_that_the_temperature_must_be_positive(temperature):
    message = re.escape(f"`temperature` must be positive, got {temperature}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(*two_views(), temperature=temperature)


def test_nt_xent_module_says_at_once_that_the_temperature_must_be_positive():
    with pytest.raises(ValueError, match=r"^`temperature` must be positive, got -1\.$"):
        NTXentLoss(temperature=-1)


def test_nt_xent_says_which_reductions_there_are():
    with pytest.raises(ValueError, match=r"^`reduction` must be 'mean', 'sum' or 'none', got 'median'\.$"):
        nt_xent_loss(*two_views(), temperature=0.5, reduction="median")


@pytest.mark.parametrize("n", [0, 1])
def test_nt_xent_says_that_one_image_has_no_negatives(n):
    message = re.escape(f"`z_a` and `z_b` must hold at least 2 images in all (negatives), got {n}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(torch.ones(n, 4), torch.ones(n, 4), temperature=0.5)
