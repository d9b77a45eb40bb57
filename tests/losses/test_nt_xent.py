"""NT-Xent on one process: against its equation, its closed forms and the numbers of the authors' code.

Errors of float32 are measured where they come from: a cosine is off by about 1e-7, a loss by 1e-7 / temperature, and a
row's gradient by a share of 2 / (M temperature |z|), the most that M rows can pull at it if each pulls like one other.
"""

import math
import re

import pytest
import torch
from _bounds import gradient_tolerance, normal, value_tolerance
from cl_losses import NTXentLoss, nt_xent_loss
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

# All kinds of arithmetic: with running maxima, with tiles of float64, with tiles of the dtype of the embeddings.
TEMPERATURES = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0]
FLOATS = [torch.float32, torch.float64]


def nt_xent_by_loops(z_a: Tensor, z_b: Tensor, *, temperature: float, decoupled: bool = False) -> Tensor:
    """Eq. 1 of arXiv:2002.05709, or Eq. 5 of arXiv:2110.06848, row by row and pair by pair: (2n,)."""
    n, z = len(z_a), [*z_a, *z_b]

    def similarity(i: int, k: int) -> Tensor:
        return (z[i] * z[k]).sum() / (z[i].norm() * z[k].norm())

    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        left_out = (i, j) if decoupled else (i,)
        numerator = torch.exp(similarity(i, j) / temperature)
        denominator = sum(torch.exp(similarity(i, k) / temperature) for k in range(2 * n) if k not in left_out)
        losses.append(-torch.log(numerator / denominator))
    return torch.stack(losses)


def nt_xent_dense(z_a: Tensor, z_b: Tensor, *, temperature: float, decoupled: bool = False) -> Tensor:
    """The same with the whole matrix, in float64, where exponentials do not overflow: (2n,)."""
    n, z = len(z_a), F.normalize(torch.cat([z_a, z_b]).double(), dim=1)
    logits = z @ z.T / temperature
    itself = torch.eye(2 * n, dtype=torch.bool)
    positive = itself.roll(n, dims=1)
    left_out = itself | positive if decoupled else itself
    return logits.masked_fill(left_out, -math.inf).logsumexp(1) - logits[positive]


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


def hard_views(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Batches that tiles of 4 x 4 cut at different places, and rows that are hard on the precision."""
    z_a, z_b = two_views({"two": 2, "border": 6, "before": 5, "after": 7}.get(name, 5), 5, seed=3)
    if name == "duplicates":
        z_a[3], z_b[:2] = z_a[1], z_a[1]
    elif name == "equal views":
        z_b = z_a.clone()
    elif name == "opposite views":
        z_b = -z_a
    elif name == "near views":
        z_b = z_a + 1e-4 * z_b
    elif name == "collapsed":
        z_a[:], z_b[:] = z_a[0], 3 * z_a[0]
    elif name == "zero rows":
        z_a[0], z_b[2], z_b[4] = 0, 0, 0
    elif name == "rows below the floor":
        z_a[0], z_b[2] = 1e-13 * z_a[0], 1e-20 * z_b[2]
    elif name == "all scales":
        z_a, z_b = z_a * torch.logspace(-10, 10, 5)[:, None], z_b * torch.logspace(12, -8, 5)[:, None]
    elif name == "one number":
        z_a, z_b = z_a[:, :1], z_b[:, :1]
    return z_a.to(dtype), z_b.to(dtype)


HARD = ["two", "before", "border", "after", "duplicates", "equal views", "opposite views", "near views", "collapsed"]
HARD += ["zero rows", "rows below the floor", "all scales", "one number"]


def small_tiles(monkeypatch: pytest.MonkeyPatch, *, kept: int = 300, size: int = 4) -> None:
    """Tiles of few numbers, and so many bytes of them kept from forward to backward; 300: some, not all."""
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", size)
    monkeypatch.setattr("cl_losses._tiles.CPU_KEPT_BYTES", kept)


def gradient_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], views, *, temperature: float) -> float:
    """The error of the worst row's gradient, in units of 2 / (M temperature |z|)."""
    error = torch.cat(actual).double() - torch.cat(expected)
    norm = torch.cat(views).double().norm(dim=1).clamp_min(1e-12)
    return (error.norm(dim=1) * norm).max().item() * temperature * len(norm) / 2


def assert_value_of_twin(views, name: str = "", *, temperature: float, decoupled: bool = False) -> None:
    actual = nt_xent_loss(*views, temperature=temperature, decoupled=decoupled, reduction="none")
    expected = nt_xent_dense(*views, temperature=temperature, decoupled=decoupled)
    error = (actual.double() - expected).abs() / value_tolerance(expected, temperature=temperature, dtype=actual.dtype)
    assert error.max().item() <= 1, name


def assert_gradient_of_twin(views, name: str = "", *, temperature: float, decoupled: bool = False) -> None:
    actual = gradients(*views, temperature=temperature, decoupled=decoupled)
    wide = tuple(z.double() for z in views)
    expected = gradients(*wide, nt_xent_dense, temperature=temperature, decoupled=decoupled)
    error = gradient_error(actual, expected, views, temperature=temperature)
    assert error <= gradient_tolerance(views[0].dtype), name


# The equation


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 6)])
def test_the_dense_twin_is_the_equation(n, d, decoupled):
    views = two_views(n, d)
    expected = nt_xent_by_loops(*views, temperature=0.3, decoupled=decoupled)
    assert_close(nt_xent_dense(*views, temperature=0.3, decoupled=decoupled), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_of_each_row_equals_its_twin(monkeypatch, temperature, dtype, decoupled):
    small_tiles(monkeypatch)
    for name in HARD:
        assert_value_of_twin(hard_views(name, dtype), name, temperature=temperature, decoupled=decoupled)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_has_the_gradient_of_its_twin(monkeypatch, temperature, dtype, decoupled):
    small_tiles(monkeypatch)
    for name in HARD:
        assert_gradient_of_twin(hard_views(name, dtype), name, temperature=temperature, decoupled=decoupled)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_has_the_gradient_of_its_twin_for_weighted_rows(monkeypatch, temperature, dtype, decoupled):
    small_tiles(monkeypatch)
    views = hard_views("after", dtype)
    weights = normal(14, seed=8)
    weights[3] = 0
    arguments = {"temperature": temperature, "decoupled": decoupled}

    def weighted_mean(z_a: Tensor, z_b: Tensor, **more: object) -> Tensor:
        return (nt_xent_loss(z_a, z_b, reduction="none", **more) * weights.to(dtype)).mean()

    def weighted_mean_of_twin(z_a: Tensor, z_b: Tensor, **more: object) -> Tensor:
        return (nt_xent_dense(z_a, z_b, **more) * weights.to(dtype)).mean()

    actual = gradients(*views, weighted_mean, **arguments)
    expected = gradients(*(z.double() for z in views), weighted_mean_of_twin, **arguments)
    error = gradient_error(actual, expected, views, temperature=temperature)
    assert error <= weights.abs().max() * gradient_tolerance(dtype)


@pytest.mark.parametrize("n", [255, 256, 257, 513])  # tiles are 512 x 512
@pytest.mark.parametrize("temperature", [0.001, 0.05, 0.5])
def test_nt_xent_of_several_tiles_equals_its_twin(n, temperature):
    assert_value_of_twin(two_views(n, 8, dtype=torch.float32), temperature=temperature)


@pytest.mark.parametrize("n", [255, 256, 257, 513])
@pytest.mark.parametrize("temperature", [0.001, 0.05, 0.5])
def test_nt_xent_of_several_tiles_has_the_gradient_of_its_twin(n, temperature):
    assert_gradient_of_twin(two_views(n, 8, dtype=torch.float32), temperature=temperature)


@pytest.mark.parametrize(("d", "temperature"), [(2, 0.2), (8, 0.1)])
def test_nt_xent_of_many_narrow_rows_has_the_gradient_of_its_twin(d, temperature):
    assert_gradient_of_twin(two_views(2500, d, dtype=torch.float32), temperature=temperature)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_nt_xent_of_random_sizes_has_value_and_gradient_of_its_twin(monkeypatch, seed, decoupled):
    n, d, size, kept, cold = (
        int(torch.randint(low, high, (), generator=torch.Generator().manual_seed(10 * seed + place)))
        for place, (low, high) in enumerate([(2, 24), (1, 9), (1, 9), (0, 4000), (1, 400)])
    )
    small_tiles(monkeypatch, kept=kept, size=size)
    views = two_views(n, d, seed=seed, dtype=torch.float32)
    assert_value_of_twin(views, temperature=cold / 200, decoupled=decoupled)
    assert_gradient_of_twin(views, temperature=cold / 200, decoupled=decoupled)


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


def random_case(seed: int) -> tuple[tuple[Tensor, Tensor], float]:
    """float32 views of a random size, and a temperature from 0.1 to 1."""
    n, d, tenth = torch.randint(2, 40, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    return two_views(n, d, seed=seed, dtype=torch.float32), 0.1 + 0.9 * (tenth - 2) / 37


@pytest.mark.parametrize("seed", range(20))
def test_nt_xent_equals_lightlys(seed):
    lightly_loss = pytest.importorskip("lightly.loss")
    views, temperature = random_case(seed)
    expected = lightly_loss.NTXentLoss(temperature=temperature)(*views)
    assert_close(nt_xent_loss(*views, temperature=temperature), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_nt_xent_has_the_gradient_of_lightlys(seed):
    lightly_loss = pytest.importorskip("lightly.loss")
    views, temperature = random_case(seed)

    def lightlys(z_a: Tensor, z_b: Tensor, **arguments: float) -> Tensor:
        return lightly_loss.NTXentLoss(**arguments)(z_a, z_b)

    expected = gradients(*views, lightlys, temperature=temperature)
    assert_close(gradients(*views, temperature=temperature), expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.05, 1.0])
def test_decoupled_nt_xent_of_equal_rows_is_the_log_of_the_number_of_negatives(temperature):
    z = torch.ones(4, 3)
    loss = nt_xent_loss(z, z, temperature=temperature, decoupled=True)
    assert loss.item() == pytest.approx(math.log(6), abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.5])
def test_decoupled_nt_xent_of_orthogonal_images_falls_with_the_cosine_of_the_views(temperature, sign):
    z = torch.eye(4, dtype=torch.float64)
    loss = nt_xent_loss(z, sign * z, temperature=temperature, decoupled=True)
    assert loss.item() == pytest.approx(math.log(6) - sign / temperature, rel=1e-13)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_softplus_of_decoupled_nt_xent(temperature):
    views = two_views(7, 4)  # log((P + N) / P) = log(1 + N / P)
    decoupled = nt_xent_loss(*views, temperature=temperature, decoupled=True, reduction="none")
    plain = nt_xent_loss(*views, temperature=temperature, reduction="none")
    assert_close(plain, F.softplus(decoupled), rtol=1e-12, atol=1e-13)


def test_decoupled_nt_xent_pulls_at_a_found_positive():
    z = torch.eye(8, dtype=torch.float64)  # each view found, others orthogonal: the plain loss is 4e-8 and flat
    z_b = F.normalize(z + 0.01 * normal(8, 8), dim=1)
    plain, decoupled = (gradients(z, z_b, temperature=0.05, decoupled=decoupled)[0] for decoupled in (False, True))
    assert plain.norm() < 1e-5 * decoupled.norm()


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


# Tiles


KEPT = {"none": 0, "some": 300, "all": 2**20}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_nt_xent_has_the_same_gradient_a_second_time(monkeypatch, temperature, kept):
    small_tiles(monkeypatch, kept=KEPT[kept])
    views = [z.requires_grad_() for z in two_views(7, 5, dtype=torch.float32)]
    loss = nt_xent_loss(*views, temperature=temperature)
    first = torch.autograd.grad(loss, views, retain_graph=True)
    assert_close(torch.autograd.grad(loss, views), first, rtol=0, atol=0)


@pytest.mark.parametrize("kept", ["some", "all"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_nt_xent_has_the_same_gradient_whatever_tiles_are_kept(monkeypatch, temperature, dtype, kept):
    views = two_views(7, 5, dtype=dtype)
    small_tiles(monkeypatch, kept=0)
    expected = gradients(*views, temperature=temperature)
    small_tiles(monkeypatch, kept=KEPT[kept])
    assert_close(gradients(*views, temperature=temperature), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13, 14, 15])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_nt_xent_does_not_depend_on_the_size_of_tiles(monkeypatch, temperature, size):
    views = two_views(7, 5)
    expected = nt_xent_loss(*views, temperature=temperature)
    small_tiles(monkeypatch, size=size)
    assert_close(nt_xent_loss(*views, temperature=temperature), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("boundary", [0.05, 1 / 600])
def test_nt_xent_does_not_jump_where_its_arithmetic_changes(boundary):
    views = two_views(5, 6)
    below, above = (nt_xent_loss(*views, temperature=boundary * (1 + step)) for step in (-1e-12, 1e-12))
    assert_close(below, above, rtol=1e-11, atol=0)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_nt_xent_is_the_same_to_the_bit_when_repeated(temperature):
    views = two_views(300, 8, dtype=torch.float32)
    first = nt_xent_loss(*views, temperature=temperature), *gradients(*views, temperature=temperature)
    again = nt_xent_loss(*views, temperature=temperature), *gradients(*views, temperature=temperature)
    assert_close(again, first, rtol=0, atol=0)


def test_nt_xent_leaves_its_inputs_alone():
    views = two_views(dtype=torch.float64)
    copies = tuple(z.clone() for z in views)
    gradients(*views, temperature=0.5)
    assert_close(views, copies, rtol=0, atol=0)


def test_nt_xent_takes_views_that_are_not_contiguous():
    z_a, z_b = normal(6, 10).T.chunk(2)
    expected = gradients(z_a.contiguous(), z_b.contiguous(), temperature=0.5)
    assert_close(gradients(z_a, z_b, temperature=0.5), expected, rtol=0, atol=0)


def test_nt_xent_gives_one_view_its_gradient_if_the_other_is_detached():
    z_a, z_b = two_views()
    z_a.requires_grad_()
    (actual,) = torch.autograd.grad(nt_xent_loss(z_a, z_b, temperature=0.5), z_a)
    assert_close(actual, gradients(z_a.detach(), z_b, temperature=0.5)[0], rtol=0, atol=0)


def test_nt_xent_without_gathering_is_itself_on_one_process():
    views = two_views()
    expected = nt_xent_loss(*views, temperature=0.5)
    assert_close(nt_xent_loss(*views, temperature=0.5, gather=False), expected, rtol=0, atol=0)


# Reductions


def test_nt_xent_mean_is_the_mean_of_its_rows():
    views = two_views()
    rows = nt_xent_loss(*views, temperature=0.5, reduction="none")
    assert_close(nt_xent_loss(*views, temperature=0.5), rows.mean(), rtol=1e-14, atol=0)


def test_nt_xent_sum_is_the_sum_of_its_rows():
    views = two_views()
    rows = nt_xent_loss(*views, temperature=0.5, reduction="none")
    assert_close(nt_xent_loss(*views, temperature=0.5, reduction="sum"), rows.sum(), rtol=1e-14, atol=0)


def test_nt_xent_sum_has_the_gradient_of_the_sum_of_its_rows():
    views = two_views()
    rows, total = (
        gradients(*views, lambda *z, r=r: nt_xent_loss(*z, temperature=0.5, reduction=r).sum()) for r in ("none", "sum")
    )
    assert_close(total, rows, rtol=1e-14, atol=1e-15)


def test_nt_xent_mean_passes_on_the_factor_of_what_follows():
    views = two_views()
    once = gradients(*views, temperature=0.5)
    thrice = gradients(*views, lambda *z, **arguments: -3 * nt_xent_loss(*z, **arguments), temperature=0.5)
    assert_close(thrice, tuple(-3 * grad for grad in once), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), ("none", (10,))])
def test_nt_xent_has_the_shape_of_its_reduction(reduction, shape):
    assert nt_xent_loss(*two_views(), temperature=0.5, reduction=reduction).shape == shape


# Precision


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_of_half_precision_is_float32s_on_the_rounded_input(dtype, temperature, decoupled):
    z_a, z_b = two_views(dtype=dtype)
    actual = nt_xent_loss(z_a, z_b, temperature=temperature, decoupled=decoupled)
    expected = nt_xent_loss(z_a.float(), z_b.float(), temperature=temperature, decoupled=decoupled)
    assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_gradient_of_half_precision_is_float32s_rounded(dtype, temperature, decoupled):
    z_a, z_b = two_views(dtype=dtype)
    expected = gradients(z_a.float(), z_b.float(), temperature=temperature, decoupled=decoupled)
    actual = gradients(z_a, z_b, temperature=temperature, decoupled=decoupled)
    assert_close(actual, tuple(grad.to(dtype) for grad in expected), rtol=0, atol=0)


def test_nt_xent_gives_each_view_a_gradient_of_its_own_dtype():
    z_a, z_b = two_views()
    grads = gradients(z_a.half(), z_b.float(), temperature=0.1)
    assert [grad.dtype for grad in grads] == [torch.float16, torch.float32]


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


@pytest.mark.parametrize("temperature", [1e-6, 0.001, 0.01, 0.5])
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


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nt_xent_module_equals_the_function(reduction, decoupled):
    views = two_views()
    arguments = {"temperature": 0.2, "decoupled": decoupled, "reduction": reduction}
    assert_close(NTXentLoss(**arguments)(*views), nt_xent_loss(*views, **arguments), rtol=0, atol=0)


def test_nt_xent_module_prints_its_hyperparameters():
    text = repr(NTXentLoss(temperature=0.2, reduction="sum", gather=False))
    assert text == "NTXentLoss(temperature=0.2, decoupled=False, reduction='sum', gather=False)"


# Errors


@pytest.mark.parametrize(("shape_a", "shape_b"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,)), ((2, 3, 4),) * 2])
def test_nt_xent_says_which_shapes_do_not_fit(shape_a, shape_b):
    message = re.escape(f"`z_a` and `z_b` must have one shape (n, d), got {shape_a} and {shape_b}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(torch.ones(shape_a), torch.ones(shape_b), temperature=0.5)


def test_nt_xent_says_that_integers_are_no_projections():
    message = re.escape("`z_a` and `z_b` must hold floating point numbers, got torch.float32, torch.int64.")
    with pytest.raises(TypeError, match=f"^{message}$"):
        nt_xent_loss(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64), temperature=0.5)


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan])
def test_nt_xent_says_that_the_temperature_must_be_positive(temperature):
    message = re.escape(f"`temperature` must be positive, got {float(temperature)}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(*two_views(), temperature=temperature)


def test_nt_xent_says_that_views_must_be_on_one_device():
    with pytest.raises(ValueError, match=r"^`z_a` and `z_b` must be on one device, got cpu, meta\.$"):
        nt_xent_loss(torch.ones(3, 4), torch.ones(3, 4, device="meta"), temperature=0.5)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nt_xent_says_which_row_is_not_finite(number):
    z_a, z_b = two_views()
    z_b[1, 2] = number  # rows are counted over both views
    message = re.escape("`z_a` and `z_b` must be finite, and so must the norms of their rows; row 6 is not.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        nt_xent_loss(z_a, z_b, temperature=0.5)


def test_nt_xent_says_that_it_can_be_differentiated_once():
    z_a, z_b = two_views()
    loss = nt_xent_loss(z_a.requires_grad_(), z_b, temperature=0.5)
    with pytest.raises(NotImplementedError, match="can be differentiated once: `create_graph` must be False"):
        torch.autograd.grad(loss, z_a, create_graph=True)


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


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_decoupled_nt_xent_equals_lightlys(temperature):
    lightly_loss = pytest.importorskip("lightly.loss")
    z_a, z_b = two_views(dtype=torch.float32)
    expected = lightly_loss.DCLLoss(temperature=temperature)(z_a, z_b)
    assert_close(nt_xent_loss(z_a, z_b, temperature=temperature, decoupled=True), expected, rtol=1e-6, atol=1e-6)
