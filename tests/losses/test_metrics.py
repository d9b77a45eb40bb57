"""The metrics: each against a dense float64 twin, its closed forms and the numbers of the authors' code."""

import math

import pytest
import torch
from _bounds import normal
from cl_losses import ContrastiveMetrics, contrastive_metrics
from torch import Tensor
from torch.testing import assert_close

NAMES = ContrastiveMetrics._fields


def metrics_by_loops(z_a: Tensor, z_b: Tensor, *, temperature: float) -> ContrastiveMetrics:
    """The docstring's equations, image by image, in float64."""
    n = len(z_a)
    a, b = ([row / row.norm().clamp_min(1e-12) for row in z.double()] for z in (z_a, z_b))
    right, entropies = [], []
    for i in range(n):
        exponents = [(a[i] @ b[k]).item() / temperature for k in range(n)]
        powers = [math.exp(exponent - max(exponents)) for exponent in exponents]
        p = [power / sum(powers) for power in powers]
        right.append(p.index(max(p)) == i)
        entropies.append(-sum(x * math.log(x + 1e-8) for x in p))
    uniformities = []
    for rows in (a, b):
        pairs = [math.exp(-2 * (rows[i] - rows[k]).square().sum()) for i in range(n) for k in range(n) if i != k]
        uniformities.append(math.log(sum(pairs) / len(pairs)))
    rows = torch.stack([*a, *b])
    singular = torch.linalg.svdvals(rows).tolist()
    q = [value / sum(singular) for value in singular]
    values = (
        sum(right) / n,
        sum(entropies) / n,
        sum((x - y).square().sum().item() for x, y in zip(a, b, strict=True)) / n,
        sum(uniformities) / 2,
        math.exp(-sum(x * math.log(x) for x in q if x > 0)),
    )
    return ContrastiveMetrics(
        *(torch.tensor(value, dtype=torch.float64) for value in values), rows.std(0, correction=0)
    )


def two_views(n: int = 7, d: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Second views near the first ones, so that some but not all are found."""
    first = normal(n, d, seed=seed)
    return first.to(dtype), (first + normal(n, d, seed=seed + 1)).to(dtype)


def golden_views() -> tuple[Tensor, Tensor]:
    k = torch.arange(32, dtype=torch.float64).reshape(4, 8)
    return torch.sin(0.7 * k + 0.3), torch.cos(1.3 * k + 0.1)


# The equations


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (3, 8), (7, 5), (9, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_their_equations(name, n, d, temperature):
    actual = contrastive_metrics(*two_views(n, d), temperature=temperature)
    expected = metrics_by_loops(*two_views(n, d), temperature=temperature)
    assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_float32_are_near_their_equations(name, temperature):
    views = two_views(dtype=torch.float32)
    actual = contrastive_metrics(*views, temperature=temperature)
    expected = metrics_by_loops(*views, temperature=temperature)
    assert_close(getattr(actual, name).double(), getattr(expected, name), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["accuracy", "entropy", "effective_rank", "std"])
def test_metrics_with_a_zero_row_are_their_equations(name):
    z_a, z_b = two_views()
    z_a[0] = z_b[3] = 0
    actual = contrastive_metrics(z_a, z_b, temperature=0.1)
    expected = metrics_by_loops(z_a, z_b, temperature=0.1)
    assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-11, atol=1e-12)


def test_a_zero_row_counts_as_orthogonal_to_all():
    z = torch.eye(3, dtype=torch.float64)
    z[0] = 0
    metrics = contrastive_metrics(z, z, temperature=0.1)
    assert metrics.alignment.item() == pytest.approx((2 + 0 + 0) / 3, abs=1e-12)
    assert metrics.uniformity.item() == pytest.approx(-4, abs=1e-12)


@pytest.mark.parametrize("n", [3, 4, 5, 9])
@pytest.mark.parametrize("temperature", [0.001, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_do_not_depend_on_tiles(name, temperature, n, monkeypatch):
    expected = contrastive_metrics(*two_views(n), temperature=temperature)
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)
    actual = contrastive_metrics(*two_views(n), temperature=temperature)
    assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-12, atol=1e-13)


# Numbers of the authors' code


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_contrastive_accuracy_is_the_golden_one(temperature):
    assert contrastive_metrics(*golden_views(), temperature=temperature).accuracy.item() == 0.25


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.1, 0.356242456580), (0.5, 1.272946700865), (1.0, 1.358200048398)]
)
def test_contrastive_entropy_is_the_golden_one(temperature, value):
    assert contrastive_metrics(*golden_views(), temperature=temperature).entropy.item() == pytest.approx(
        value, abs=1e-11
    )


# Closed forms


def collapsed(n: int = 6, d: int = 4) -> ContrastiveMetrics:
    z = normal(1, d).expand(n, d)
    return contrastive_metrics(z, z, temperature=0.1)


def test_alignment_of_collapsed_rows_is_0():
    assert collapsed().alignment.item() == pytest.approx(0, abs=1e-15)


def test_uniformity_of_collapsed_rows_is_0():
    assert collapsed().uniformity.item() == pytest.approx(0, abs=1e-14)


def test_effective_rank_of_collapsed_rows_is_1():
    assert collapsed().effective_rank.item() == pytest.approx(1, abs=1e-5)  # singular values of rounding errors


def test_standard_deviations_of_collapsed_rows_are_0():
    assert collapsed().std.tolist() == pytest.approx([0] * 4, abs=1e-7)


def test_contrastive_entropy_of_collapsed_rows_is_log_n():
    assert collapsed().entropy.item() == pytest.approx(math.log(6), abs=1e-7)


def test_contrastive_accuracy_of_equal_views_of_orthogonal_images_is_1():
    assert contrastive_metrics(torch.eye(5), torch.eye(5), temperature=0.1).accuracy.item() == 1


def test_contrastive_accuracy_of_exchanged_second_views_is_0():
    z = torch.eye(5)
    assert contrastive_metrics(z, z.roll(1, dims=0), temperature=0.1).accuracy.item() == 0


def test_contrastive_accuracy_finds_second_views_only():
    # The other first view is nearer than either second view.
    z_a, z_b = torch.tensor([[1.0, 0], [1, 0.1]]), torch.tensor([[1.0, -0.5], [1, 0.5]])
    assert contrastive_metrics(z_a, z_b, temperature=0.1).accuracy.item() == 1


@pytest.mark.parametrize(("sign", "value"), [(1, 0), (-1, 4)])
def test_alignment_of_equal_and_of_opposite_views_is_its_end(sign, value):
    z = normal(5, 4)
    assert contrastive_metrics(z, sign * z, temperature=0.1).alignment.item() == pytest.approx(value, abs=1e-14)


def test_alignment_of_orthogonal_views_is_2():
    z_a, z_b = torch.eye(8).double().chunk(2)
    assert contrastive_metrics(z_a, z_b, temperature=0.1).alignment.item() == pytest.approx(2, abs=1e-15)


def test_uniformity_of_orthogonal_rows_is_minus_4():
    z = torch.eye(5).double()
    assert contrastive_metrics(z, z, temperature=0.1).uniformity.item() == pytest.approx(-4, abs=1e-14)


def test_uniformity_of_two_opposite_rows_is_minus_8():
    z = torch.tensor([[3.0, 4], [-3, -4]]).double()
    assert contrastive_metrics(z, z, temperature=0.1).uniformity.item() == pytest.approx(-8, abs=1e-14)


@pytest.mark.parametrize("d", [2, 5])
def test_effective_rank_of_rows_along_all_axes_is_their_number(d):
    z = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    assert contrastive_metrics(z, z, temperature=0.1).effective_rank.item() == pytest.approx(d, abs=1e-12)


def test_effective_rank_of_rows_in_a_plane_is_at_most_2():
    z = normal(9, 2) @ normal(2, 6, seed=1)
    assert 1.5 < contrastive_metrics(z, z, temperature=0.1).effective_rank.item() < 2 + 1e-5


@pytest.mark.parametrize("d", [2, 5])
def test_standard_deviations_of_rows_along_all_axes_are_1_over_sqrt_d(d):
    z = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    std = contrastive_metrics(z, z, temperature=0.1).std
    assert std.tolist() == pytest.approx([1 / math.sqrt(d)] * d, abs=1e-15)


@pytest.fixture(scope="module")
def spread_evenly() -> ContrastiveMetrics:
    return contrastive_metrics(normal(1500, 64), normal(1500, 64, seed=1), temperature=0.1)


def test_uniformity_of_rows_spread_evenly_in_many_dimensions_is_near_minus_4(spread_evenly):
    # The cosine's variance is 1 / d, so the mean of exp(4 cos) is near exp(8 / d).
    assert spread_evenly.uniformity.item() == pytest.approx(-4 + 8 / 64, abs=0.01)


def test_effective_rank_of_rows_spread_evenly_is_near_d(spread_evenly):
    assert spread_evenly.effective_rank.item() == pytest.approx(64, rel=0.01)


def test_standard_deviations_of_rows_spread_evenly_are_near_1_over_sqrt_d(spread_evenly):
    assert spread_evenly.std.mean().item() == pytest.approx(1 / 8, rel=0.01)


def test_alignment_of_unrelated_rows_is_near_2(spread_evenly):
    assert spread_evenly.alignment.item() == pytest.approx(2, abs=0.02)


# What all have in common


@pytest.mark.parametrize("name", [name for name in NAMES if name != "std"])
def test_metrics_are_invariant_to_scale_rotation_and_order(name):
    (z_a, z_b), order = two_views(), torch.tensor([3, 0, 6, 4, 1, 2, 5])
    rotation = torch.linalg.qr(normal(5, 5, seed=9)).Q
    scale = torch.logspace(-3, 4, 7, dtype=torch.float64)[:, None]
    expected = getattr(contrastive_metrics(z_a, z_b, temperature=0.1), name)
    actual = contrastive_metrics((scale * z_a @ rotation)[order], (z_b / scale @ rotation)[order], temperature=0.1)
    assert_close(getattr(actual, name), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_have_no_gradient(name):
    z_a, z_b = (z.requires_grad_() for z in two_views())
    assert not getattr(contrastive_metrics(z_a, z_b, temperature=0.1), name).requires_grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_metrics_keep_float64_and_are_else_float32(temperature, given, returned, name):
    assert getattr(contrastive_metrics(*two_views(dtype=given), temperature=temperature), name).dtype == returned


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_scalars_but_for_the_standard_deviations(name):
    metric = getattr(contrastive_metrics(*two_views(), temperature=0.1), name)
    assert metric.shape == ((5,) if name == "std" else ())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_of_half_precision_are_float32s_on_the_rounded_input(dtype, name):
    views = two_views(dtype=dtype)
    expected = contrastive_metrics(*(z.float() for z in views), temperature=0.1)
    assert_close(getattr(contrastive_metrics(*views, temperature=0.1), name), getattr(expected, name), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_inside_autocast_are_float32s(name):
    views = two_views(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = contrastive_metrics(*views, temperature=0.1)
    expected = contrastive_metrics(*views, temperature=0.1)
    assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=0)
