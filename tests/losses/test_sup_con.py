"""SupCon on one process: against its equation, its closed forms and NT-Xent."""

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from _bounds import gradient_tolerance, normal, value_tolerance
from cl_losses import SupConLoss, count_positives, nt_xent_loss, sup_con_loss
from torch import Tensor
from torch.testing import assert_close

TEMPERATURES = [0.001, 0.01, 0.1, 1.0]
# Seven images: two classes, one that a single image is of, and two images without label.
LABELS = [4, 0, -1, 4, 9, 0, -1]


def sup_con_by_loops(z: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Eq. 2 of arXiv:2004.11362, row by row and positive by positive: (rows,), 0 for rows without positives."""
    rows = list(z if z.ndim == 2 else z.reshape(-1, z.shape[-1]))
    unit = [row / row.norm().clamp_min(1e-12) for row in rows]
    image = [i % len(labels) for i in range(len(rows))]
    losses = []
    for i, anchor in enumerate(unit):
        others = [k for k in range(len(unit)) if k != i]
        exponents = {k: (anchor * unit[k]).sum() / temperature for k in others}
        denominator = torch.stack(list(exponents.values())).logsumexp(0)
        positives = [p for p in others if image[p] == image[i] or labels[image[p]] == labels[image[i]] != -1]
        terms = [denominator - exponents[p] for p in positives]
        losses.append(sum(terms) / len(positives) if positives else 0 * anchor.sum())
    return torch.stack(losses)


def reduce(losses: Tensor, reduction: str, *, counted: int) -> Tensor:
    return {"mean": losses.sum() / counted, "sum": losses.sum(), "none": losses}[reduction]


class Case(NamedTuple):
    """A batch; what its rows are like; what upstream does with the losses of "none"."""

    views: int | None = 2
    temperature: float = 0.1
    kind: str = "normal"
    reduction: str = "mean"
    labels: tuple[int, ...] = tuple(LABELS)
    d: int = 5

    def z(self) -> Tensor:
        """Numbers that float32 holds exactly, in float64."""
        z = normal(self.views or 1, len(self.labels), self.d)
        if self.kind == "duplicate":
            z[:, 1::2] = z[:1, :1]
        elif self.kind == "collapsed":
            z[:] = z[0, 0]
        elif self.kind == "zero":
            z[0, 0] = z[-1, -1] = 0
        elif self.kind == "lengths":
            z *= torch.logspace(-9, 4, len(self.labels))[:, None]
        return (z[0] if self.views is None else z).float().double()

    def counted(self) -> int:
        return max(1, int((count_by_loops(self.labels, views=self.views or 1) > 0).sum()))

    def weights(self) -> Tensor:
        """Of the losses, where they are not reduced: of both signs, and one of them 0."""
        count = (self.views or 1) * len(self.labels)
        return torch.linspace(-1, 2, count).double() if self.reduction == "none" else torch.ones((), dtype=torch.double)

    def largest_gradients(self) -> Tensor:
        """How large the gradients of rows can be: 2 / (M temperature |z|) for the mean."""
        rows = self.z().reshape(-1, self.d)
        weight = {"mean": 1 / len(rows), "sum": 1.0, "none": self.weights().abs().max().item()}[self.reduction]
        return 2 * weight / (self.temperature * rows.norm(dim=1).clamp_min(1e-12))


@cache
def expected(case: Case) -> tuple[Tensor, Tensor]:
    """Value and gradient, (rows, d)."""
    z = case.z().requires_grad_()
    rows = sup_con_by_loops(z, torch.tensor(case.labels), temperature=case.temperature)
    loss = reduce(rows, case.reduction, counted=case.counted())
    (grad,) = torch.autograd.grad((loss * case.weights()).sum(), z)
    return loss.detach(), grad.reshape(-1, case.d)


def actual(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Value and gradient, (rows, d)."""
    z = case.z().to(dtype).requires_grad_()
    loss = sup_con_loss(z, torch.tensor(case.labels), temperature=case.temperature, reduction=case.reduction)
    (grad,) = torch.autograd.grad((loss * case.weights().to(loss.dtype)).sum(), z)
    return loss.detach(), grad.reshape(-1, case.d)


def value_error(case: Case, dtype: torch.dtype) -> float:
    """In units of what is allowed."""
    loss, wanted = actual(case, dtype)[0], expected(case)[0]
    return ((loss - wanted).abs() / value_tolerance(wanted, temperature=case.temperature, dtype=dtype)).max().item()


def gradient_error(case: Case, dtype: torch.dtype) -> float:
    """In units of what is allowed, by row."""
    error = (actual(case, dtype)[1] - expected(case)[1]).norm(dim=1)
    return (error / case.largest_gradients()).max().item() / gradient_tolerance(dtype)


def count_by_loops(labels: tuple[int, ...], *, views: int) -> Tensor:
    rows = [(i, label) for _ in range(views) for i, label in enumerate(labels)]
    return torch.tensor(
        [
            sum(p != i and (rows[p][0] == rows[i][0] or rows[p][1] == rows[i][1] != -1) for p in range(len(rows)))
            for i in range(len(rows))
        ]
    )


CASES = [
    *(Case(views, temperature) for views in (None, 1, 2, 3) for temperature in TEMPERATURES),
    *(
        Case(2, temperature, kind)
        for kind in ("duplicate", "collapsed", "zero", "lengths")
        for temperature in TEMPERATURES
    ),
    *(Case(views, 0.1, reduction=reduction) for reduction in ("sum", "none") for views in (None, 2)),
    *(Case(views, 0.01, labels=(0, 1, 2, -1, -1)) for views in (None, 2)),
    Case(None, 0.1, labels=(0, 0)),
    Case(2, 0.1, labels=(-1, -1), d=1),
    Case(3, 0.1, labels=(3,) * 5),
]


# The equation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_sup_con_is_equation_2(case, dtype):
    assert value_error(case, dtype) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_sup_con_has_the_gradient_of_equation_2(case, dtype):
    assert gradient_error(case, dtype) < 1


@pytest.mark.parametrize("kept", [0, 100, 10**6])
@pytest.mark.parametrize("temperature", [0.001, 0.1])
@pytest.mark.parametrize("images", [2, 3, 4, 5, 7])
def test_sup_con_does_not_depend_on_tiles(images, temperature, kept, monkeypatch):
    case = Case(2, temperature, labels=tuple(LABELS[:images]), reduction="none")
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)
    monkeypatch.setattr("cl_losses._tiles.CPU_KEPT_BYTES", kept)
    assert value_error(case, torch.float64) < 1
    assert gradient_error(case, torch.float64) < 1


def test_sup_con_does_not_depend_on_how_many_columns_of_the_class_sums_are_worked_on_at_a_time(monkeypatch):
    monkeypatch.setattr("cl_losses._positives.NUMBERS_AT_A_TIME", 1)  # 4 columns: of 5, the last is by itself
    assert value_error(Case(), torch.float64) < 1
    assert gradient_error(Case(), torch.float64) < 1


def test_sup_con_does_not_depend_on_how_many_rows_are_normalised_at_a_time(monkeypatch):
    monkeypatch.setattr("cl_losses._unit.NUMBERS_AT_A_TIME", 15)  # 3 rows
    assert gradient_error(Case(), torch.float64) < 1


def test_sup_con_gives_the_same_gradient_a_second_time(monkeypatch):
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)
    z = Case().z().requires_grad_()
    loss = sup_con_loss(z, torch.tensor(LABELS), temperature=0.1)
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


# Rows without positives


def test_sup_con_of_rows_without_positives_is_0():
    losses = sup_con_loss(Case(None).z(), torch.tensor(LABELS), temperature=0.1, reduction="none")
    assert [i for i, loss in enumerate(losses.tolist()) if loss == 0] == [2, 4, 6]


def test_sup_con_mean_does_not_count_rows_without_positives():
    z, labels = Case(None).z(), torch.tensor(LABELS)
    losses = sup_con_loss(z, labels, temperature=0.1, reduction="none")
    assert_close(sup_con_loss(z, labels, temperature=0.1), losses.sum() / 4, rtol=1e-14, atol=0)


def test_sup_con_gives_no_gradient_for_the_loss_of_a_row_without_positives():
    z = Case(None).z().requires_grad_()
    sup_con_loss(z, torch.tensor(LABELS), temperature=0.1, reduction="none")[4].backward()
    assert z.grad.count_nonzero() == 0


def test_sup_con_repels_rows_without_positives():
    z = Case(None).z().requires_grad_()
    sup_con_loss(z, torch.tensor(LABELS), temperature=1).backward()
    assert z.grad[4].norm() > 0.01


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("labels", [(0, 1, 2), (-1, -1, -1), (5, -1, -1)])
def test_sup_con_is_0_if_no_row_has_a_positive(labels, reduction, temperature):
    loss = sup_con_loss(normal(3, 4), torch.tensor(labels), temperature=temperature, reduction=reduction)
    assert loss.tolist() == ([0, 0, 0] if reduction == "none" else 0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sup_con_has_gradient_0_if_no_row_has_a_positive(reduction, temperature):
    z = normal(3, 4).requires_grad_()
    sup_con_loss(z, torch.tensor([0, -1, 2]), temperature=temperature, reduction=reduction).sum().backward()
    assert z.grad.tolist() == [[0] * 4] * 3


# Closed forms and what it is the same as


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("labels", [(0, 0), (1, 1, 1, 2, 2)])
def test_sup_con_of_equal_rows_is_the_log_of_the_number_of_candidates(labels, temperature):
    loss = sup_con_loss(torch.ones(len(labels), 3).double(), torch.tensor(labels), temperature=temperature)
    assert loss.item() == pytest.approx(math.log(len(labels) - 1), abs=1e-13 / temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sup_con_of_classes_that_are_orthogonal_points_is_its_closed_form(temperature):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    loss = sup_con_loss(torch.eye(3, dtype=torch.float64)[labels], labels, temperature=temperature)
    assert loss.item() == pytest.approx(math.log(2 + 6 * math.exp(-1 / temperature)), abs=1e-13 / temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("labels", [(-1, -1, -1, -1), (7, 3, 5, 0), (2, -1, 4, -1)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sup_con_of_two_views_is_nt_xent_where_no_image_has_anothers_label(labels, reduction, temperature):
    z = normal(2, 4, 5)
    arguments = {"temperature": temperature, "reduction": reduction}
    assert_close(sup_con_loss(z, torch.tensor(labels), **arguments), nt_xent_loss(*z, **arguments), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sup_con_without_labels_has_nt_xents_gradient(temperature):
    z = normal(2, 4, 5).requires_grad_()
    (actual,) = torch.autograd.grad(sup_con_loss(z, torch.full((4,), -1), temperature=temperature), z)
    (wanted,) = torch.autograd.grad(nt_xent_loss(*z, temperature=temperature), z)
    assert_close(actual, wanted, rtol=0, atol=1e-13 / temperature)


def test_sup_con_of_views_is_that_of_images_with_their_labels_repeated():
    z, labels = normal(3, 4, 5), torch.tensor([0, 1, 0, 2])
    expected = sup_con_loss(z.flatten(0, 1), labels.repeat(3), temperature=0.1, reduction="none")
    assert_close(sup_con_loss(z, labels, temperature=0.1, reduction="none"), expected, rtol=1e-13, atol=0)


def test_sup_con_of_one_view_is_that_of_rows():
    z, labels = normal(5, 4), torch.tensor([0, 1, 0, 1, -1])
    assert_close(sup_con_loss(z[None], labels, temperature=0.1), sup_con_loss(z, labels, temperature=0.1))


# Invariances


def test_sup_con_is_invariant_to_the_scale_of_its_rows():
    z, labels = Case().z(), torch.tensor(LABELS)
    scale = torch.logspace(-3, 4, len(LABELS), dtype=torch.float64)[:, None]
    expected = sup_con_loss(z, labels, temperature=0.1)
    assert_close(sup_con_loss(scale * z, labels, temperature=0.1), expected, rtol=1e-13, atol=0)


def test_sup_con_has_no_gradient_along_its_rows():
    z = Case().z().requires_grad_()
    sup_con_loss(z, torch.tensor(LABELS), temperature=0.1).backward()
    assert z.grad.norm() > 0.1
    assert (z * z.grad).sum(dim=-1).abs().max() < 1e-14


def test_sup_con_is_invariant_to_a_common_rotation():
    z, labels = Case().z(), torch.tensor(LABELS)
    rotation = torch.linalg.qr(normal(5, 5, seed=9)).Q
    expected = sup_con_loss(z, labels, temperature=0.1)
    assert_close(sup_con_loss(z @ rotation, labels, temperature=0.1), expected, rtol=1e-13, atol=0)


def test_sup_con_of_a_row_does_not_depend_on_the_order_of_the_images():
    z, labels, order = Case().z(), torch.tensor(LABELS), torch.tensor([3, 0, 6, 4, 1, 2, 5])
    losses = sup_con_loss(z, labels, temperature=0.1, reduction="none").view(2, 7)
    shuffled = sup_con_loss(z[:, order], labels[order], temperature=0.1, reduction="none").view(2, 7)
    assert_close(shuffled, losses[:, order], rtol=1e-13, atol=0)


@pytest.mark.parametrize("names", [(5, 1, 0), (10**12, 10**12 + 1, 3), (2**63 - 1, 0, 2**62)])
def test_sup_con_is_invariant_to_the_names_of_the_classes(names):
    z, labels = Case().z(), torch.tensor(LABELS)
    renamed = torch.tensor([{4: names[0], 0: names[1], 9: names[2], -1: -1}[label] for label in LABELS])
    expected = sup_con_loss(z, labels, temperature=0.1)
    assert_close(sup_con_loss(z, renamed, temperature=0.1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_sup_con_takes_labels_of_any_integer_dtype(dtype):
    z, labels = normal(4, 5), torch.tensor([0, 1, 0, 1])
    expected = sup_con_loss(z, labels, temperature=0.1)
    assert_close(sup_con_loss(z, labels.to(dtype), temperature=0.1), expected, rtol=0, atol=0)


def test_sup_con_takes_views_that_lie_in_memory_in_another_order():
    z, labels = normal(7, 2, 5).requires_grad_(), torch.tensor(LABELS)
    loss = sup_con_loss(z.transpose(0, 1), labels, temperature=0.1)
    (grad,) = torch.autograd.grad(loss, z)
    other = z.detach().transpose(0, 1).contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(sup_con_loss(other, labels, temperature=0.1), other)
    assert_close(grad.transpose(0, 1), expected, rtol=0, atol=0)


# Precision


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sup_con_of_half_precision_is_float32s_on_the_rounded_input(dtype, temperature):
    z, labels = Case().z().to(dtype), torch.tensor(LABELS)
    expected = sup_con_loss(z.float(), labels, temperature=temperature)
    assert_close(sup_con_loss(z, labels, temperature=temperature), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sup_con_gradient_of_half_precision_is_float32s_rounded(dtype):
    z = Case().z().to(dtype)
    grads = []
    for part in (z.requires_grad_(), z.detach().float().requires_grad_()):
        sup_con_loss(part, torch.tensor(LABELS), temperature=0.1).backward()
        grads.append(part.grad)
    assert_close(grads[0], grads[1].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_sup_con_keeps_float64_and_is_else_float32(given, returned, temperature):
    assert sup_con_loss(Case().z().to(given), torch.tensor(LABELS), temperature=temperature).dtype == returned


# Which rows have positives


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("labels", [tuple(LABELS), (0, 1, 2), (-1, -1), (5, 5, 5), (10**12, -1, 10**12, 10**12 + 1)])
def test_count_positives_counts_the_other_rows_of_a_class(labels, views):
    count = count_positives(torch.tensor(labels), views=views)
    assert_close(count, count_by_loops(labels, views=views), rtol=0, atol=0)


@pytest.mark.parametrize("views", [None, 2])
def test_count_positives_is_0_where_sup_con_leaves_rows_out(views):
    losses = sup_con_loss(Case(views).z(), torch.tensor(LABELS), temperature=0.1, reduction="none")
    count = count_positives(torch.tensor(LABELS), views=views or 1)
    assert_close(count == 0, losses == 0)


# The module


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sup_con_module_equals_the_function(reduction):
    z, labels = Case().z(), torch.tensor(LABELS)
    module = SupConLoss(temperature=0.2, reduction=reduction)
    assert_close(module(z, labels), sup_con_loss(z, labels, temperature=0.2, reduction=reduction), rtol=0, atol=0)
