"""The loss of BYOL: against its equation and its closed forms."""

import re

import pytest
import torch
from cl_losses import BYOLLoss, byol_loss
from torch import Tensor
from torch.testing import assert_close


def byol_by_loops(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 2 of arXiv:2006.07733, the squared distance of unit vectors, element by element."""
    losses = []
    for q, z in zip(prediction, target, strict=True):
        q_norm = sum(x**2 for x in q) ** 0.5
        z_norm = sum(x**2 for x in z) ** 0.5
        losses.append(sum((x / q_norm - y / z_norm) ** 2 for x, y in zip(q, z, strict=True)))
    return torch.stack(losses).mean()


def rows(n: int = 5, d: int = 6, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(prediction: Tensor, target: Tensor, loss=byol_loss) -> Tensor:
    prediction = prediction.clone().requires_grad_()
    return torch.autograd.grad(loss(prediction, target), prediction)[0]


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 4), (5, 6)])
def test_byol_is_equation_2(n, d):
    q, z = rows(n, d, seed=0), rows(n, d, seed=1)
    assert_close(byol_loss(q, z), byol_by_loops(q, z), rtol=1e-13, atol=1e-14)


def test_byol_has_the_gradient_of_equation_2():
    q, z = rows(seed=0), rows(seed=1)
    assert_close(gradient(q, z), gradient(q, z, byol_by_loops), rtol=1e-12, atol=1e-14)


def test_byol_of_equal_directions_is_0():
    q = rows(seed=0)
    assert byol_loss(q, 3 * q).item() == pytest.approx(0, abs=1e-14)


def test_byol_of_orthogonal_rows_is_2():
    q, z = torch.eye(6, dtype=torch.float64).chunk(2)
    assert byol_loss(q, z).item() == 2


def test_byol_of_opposite_directions_is_4():
    q = rows(seed=0)
    assert byol_loss(q, -0.1 * q).item() == pytest.approx(4, abs=1e-14)


def test_byol_is_the_mean_of_its_rows():
    one = torch.eye(2)[:1]
    q, z = one.expand(4, 2), torch.cat([one, one, -one, one.flip(1)])
    assert byol_loss(q, z).item() == pytest.approx((0 + 0 + 4 + 2) / 4)


def test_byol_gives_the_target_no_gradient():
    q, z = rows(seed=0).requires_grad_(), rows(seed=1).requires_grad_()
    byol_loss(q, z).backward()
    assert z.grad is None
    assert q.grad.norm() > 0.1


def test_byol_is_invariant_to_the_scale_of_its_inputs():
    q, z = rows(seed=0), rows(seed=1)
    scale = torch.tensor([1e-3, 0.1, 1, 7, 1e4], dtype=torch.float64)[:, None]
    assert_close(byol_loss(scale * q, z / scale), byol_loss(q, z), rtol=1e-13, atol=0)


def test_byol_has_no_gradient_along_its_prediction():
    q, z = rows(seed=0), rows(seed=1)
    assert (q * gradient(q, z)).sum(dim=1).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_byol_keeps_float64_and_is_else_float32(given, returned):
    assert byol_loss(rows(seed=0, dtype=given), rows(seed=1, dtype=given)).dtype == returned


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_byol_of_half_precision_is_float32s_on_the_rounded_input(dtype):
    q, z = rows(seed=0, dtype=dtype), rows(seed=1, dtype=dtype)
    assert_close(byol_loss(q, z), byol_loss(q.float(), z.float()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_byol_inside_autocast_is_float32s(dtype):
    q, z = rows(seed=0, dtype=torch.float32), rows(seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        actual = byol_loss(q, z)
    assert_close(actual, byol_loss(q, z), rtol=0, atol=0)


def test_byol_with_a_zero_row_is_finite():
    q, z = rows(seed=0, dtype=torch.float32), rows(seed=1, dtype=torch.float32)
    q[0], z[1] = 0, 0
    assert byol_loss(q, z).isfinite()
    assert gradient(q, z).isfinite().all()


def test_byol_module_equals_the_function():
    q, z = rows(seed=0), rows(seed=1)
    assert_close(BYOLLoss()(q, z), byol_loss(q, z), rtol=0, atol=0)


@pytest.mark.parametrize(("shape_q", "shape_z"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,)), ((2, 3, 4),) * 2])
def test_byol_says_which_shapes_do_not_fit(shape_q, shape_z):
    message = re.escape(f"`prediction` and `target` must have one shape (n, d), got {shape_q} and {shape_z}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        byol_loss(torch.ones(shape_q), torch.ones(shape_z))


def test_byol_says_that_integers_are_no_predictions():
    message = re.escape("`prediction` and `target` must hold floating point numbers, got torch.int64, torch.int64.")
    with pytest.raises(TypeError, match=f"^{message}$"):
        byol_loss(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.int64))


def test_byol_says_that_there_is_no_row():
    with pytest.raises(ValueError, match=r"^`prediction` and `target` must hold at least 1 row, got 0\.$"):
        byol_loss(torch.ones(0, 4), torch.ones(0, 4))


def test_byol_is_lightlys_negative_cosine_similarity_but_for_scale():
    lightly_loss = pytest.importorskip("lightly.loss")
    q, z = rows(seed=0, dtype=torch.float32), rows(seed=1, dtype=torch.float32)
    assert_close(byol_loss(q, z) / 2 - 1, lightly_loss.NegativeCosineSimilarity()(q, z), rtol=0, atol=1e-6)
