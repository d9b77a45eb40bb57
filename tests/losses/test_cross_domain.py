"""The cross-domain loss on one process: against its equation, and the properties that its docstring claims."""

import math
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from _bounds import gradient_tolerance, normal, value_tolerance
from cl_losses import CrossDomainLoss, count_positives, cross_domain_loss, nt_xent_loss, sup_con_loss
from torch import Tensor
from torch.testing import assert_close

TEMPERATURES = [0.001, 0.01, 0.1, 1.0]
# Class 4 is in three domains and twice in domain 0, class 0 in one domain only, class 9 has a single image; two images
# have no label.
LABELS = [4, 0, -1, 4, 9, 0, -1, 4, 4]
DOMAINS = [0, 1, 0, 0, 1, 1, 2, 1, 2]


def positives_and_candidates(
    i: int, labels: Tensor, domains: Tensor, *, views: int, same_domain: str, unlabelled: str = "everywhere"
) -> tuple[list[int], list[int]]:
    """P(i) and A(i) of the docstring, row by row."""
    n = len(labels)
    x, y, d = i % n, labels[i % n], domains[i % n]
    positives, negatives = [], []
    for k in range(views * n):
        image, label, domain = k % n, labels[k % n], domains[k % n]
        same_class = bool(label == y != -1)
        if k != i and (image == x or (same_class and (domain != d or same_domain == "positive"))):
            positives.append(k)
        apart = unlabelled == "own_domain" and bool(domain != d and (label == -1 or y == -1))
        if image != x and not same_class and not apart:
            negatives.append(k)
    return positives, positives + negatives


def cross_domain_by_loops(
    z: Tensor, labels: Tensor, domains: Tensor, *, temperature: float, same_domain: str, unlabelled: str = "everywhere"
) -> Tensor:
    """The docstring's equation, row by row and positive by positive: (rows,), 0 for rows without positives."""
    views = len(z) if z.ndim == 3 else 1
    unit = [row / row.norm().clamp_min(1e-12) for row in z.reshape(-1, z.shape[-1])]
    losses = []
    for i, anchor in enumerate(unit):
        positives, candidates = positives_and_candidates(
            i, labels, domains, views=views, same_domain=same_domain, unlabelled=unlabelled
        )
        exponents = {k: (anchor * unit[k]).sum() / temperature for k in candidates}
        if positives:
            denominator = torch.stack(list(exponents.values())).logsumexp(0)
            losses.append(sum(denominator - exponents[p] for p in positives) / len(positives))
        else:
            losses.append(0 * anchor.sum())
    return torch.stack(losses)


def count_by_loops(labels: Tensor, domains: Tensor, *, views: int, same_domain: str) -> Tensor:
    sets = (
        positives_and_candidates(i, labels, domains, views=views, same_domain=same_domain)
        for i in range(views * len(labels))
    )
    return torch.tensor([len(positives) for positives, _ in sets])


class Case(NamedTuple):
    """A batch; what its rows are like; what upstream does with the losses of "none"."""

    views: int | None = 2
    temperature: float = 0.1
    same_domain: str = "ignore"
    kind: str = "normal"
    reduction: str = "mean"
    labels: tuple[int, ...] = tuple(LABELS)
    domains: tuple[int, ...] = tuple(DOMAINS)
    d: int = 5
    unlabelled: str = "everywhere"

    def batch(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """z, labels and domains; numbers that float32 holds exactly."""
        z = normal(self.views or 1, len(self.labels), self.d)
        if self.kind == "duplicate":
            z[:, 1::2] = z[:1, :1]
        elif self.kind == "collapsed":
            z[:] = z[0, 0]
        elif self.kind == "zero":
            z[0, 0] = z[-1, -1] = 0
        elif self.kind == "lengths":
            z *= torch.logspace(-9, 4, len(self.labels))[:, None]
        z = z[0] if self.views is None else z
        return z.float().to(dtype).requires_grad_(), torch.tensor(self.labels), torch.tensor(self.domains)

    def arguments(self) -> dict[str, Any]:
        """What the loss and its loops are both given by name."""
        return {"temperature": self.temperature, "same_domain": self.same_domain, "unlabelled": self.unlabelled}

    def counted(self) -> int:
        _, labels, domains = self.batch(torch.float64)
        count = count_by_loops(labels, domains, views=self.views or 1, same_domain=self.same_domain)
        return max(1, int((count > 0).sum()))

    def weights(self) -> Tensor:
        """Of the losses, where they are not reduced: of both signs, and one of them 0."""
        count = (self.views or 1) * len(self.labels)
        return torch.linspace(-1, 2, count).double() if self.reduction == "none" else torch.ones((), dtype=torch.double)

    def largest_gradients(self) -> Tensor:
        """How large the gradients of rows can be: 2 / (M temperature |z|) for a mean over M rows."""
        rows = self.batch(torch.float64)[0].detach().reshape(-1, self.d)
        weight = {"mean": 1 / self.counted(), "sum": 1.0, "none": self.weights().abs().max().item()}[self.reduction]
        return 2 * weight / (self.temperature * rows.norm(dim=1).clamp_min(1e-12))


@cache
def expected(case: Case) -> tuple[Tensor, Tensor]:
    """Value and gradient, (rows, d)."""
    z, labels, domains = case.batch(torch.float64)
    rows = cross_domain_by_loops(z, labels, domains, **case.arguments())
    loss = {"mean": rows.sum() / case.counted(), "sum": rows.sum(), "none": rows}[case.reduction]
    (grad,) = torch.autograd.grad((loss * case.weights()).sum(), z)
    return loss.detach(), grad.reshape(-1, case.d)


def actual(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Value and gradient, (rows, d)."""
    z, labels, domains = case.batch(dtype)
    loss = cross_domain_loss(z, labels, domains, **case.arguments(), reduction=case.reduction)
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


BOTH = ["ignore", "positive"]
WHERE = ["everywhere", "own_domain"]
# Three domains, of which the last has no label at all, the first one image without; and two domains. Numbers of domains
# may be any.
MIXED = {"labels": (4, 0, -1, 4, 0, 4, -1, -1, -1), "domains": (-7, -7, -7, 3, 3, -7, 10**12, 10**12, 10**12)}
OF_TWO = {"labels": (1, 1, -1, 0, 1, -1, -1), "domains": (5, 5, 5, 5, -1, -1, -1)}
OWN_DOMAIN = [
    *(
        Case(views, temperature, same, **batch, unlabelled="own_domain")
        for views in (None, 1, 2, 3)
        for temperature in (0.5, 0.05, 0.001)
        for same in BOTH
        for batch in (MIXED, OF_TWO)
    ),
    *(Case(2, t, kind=kind, unlabelled="own_domain") for t in (0.5, 0.001) for kind in ("duplicate", "collapsed")),
    Case(2, 0.1, kind="zero", unlabelled="own_domain"),
    Case(2, 0.1, kind="lengths", unlabelled="own_domain"),
    *(
        Case(views, 0.1, **MIXED, reduction=how, unlabelled="own_domain")
        for views in (None, 2)
        for how in ("sum", "none")
    ),
    # an image alone in its domain, without label: of one view it has no candidate, of two its other view alone
    *(
        Case(views, temperature, labels=(-1, 5, -1, 5), domains=(0, 1, 2, 2), reduction=how, unlabelled="own_domain")
        for views in (None, 2)
        for temperature in (0.5, 0.001)
        for how in ("mean", "none")
    ),
]
CASES = [
    *OWN_DOMAIN,
    *(Case(views, temperature, same) for views in (None, 2) for temperature in TEMPERATURES for same in BOTH),
    *(Case(views, temperature) for views in (1, 3) for temperature in (0.001, 0.1)),
    *(Case(2, temperature, kind="duplicate") for temperature in TEMPERATURES),
    *(Case(2, temperature, kind="collapsed") for temperature in TEMPERATURES),
    *(Case(2, temperature, kind="zero") for temperature in TEMPERATURES),
    Case(2, 0.1, kind="lengths"),
    *(Case(views, 0.1, same, reduction=how) for how in ("sum", "none") for views in (None, 2) for same in BOTH),
    *(Case(views, 0.1, labels=(5,) * 5, domains=(0, 0, 0, 0, 7)) for views in (None, 2)),
    *(Case(views, 0.01, labels=(5, 5, -1, -1), domains=(0, 0, 0, 7)) for views in (None, 2)),
    Case(None, 0.1, labels=(3, 3), domains=(0, 1)),
    Case(2, 0.1, labels=(-1, -1), domains=(0, 1), d=1),
]


# The equation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_cross_domain_is_its_equation(case, dtype):
    assert value_error(case, dtype) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_cross_domain_has_the_gradient_of_its_equation(case, dtype):
    assert gradient_error(case, dtype) < 1


@pytest.mark.parametrize("kept", [0, 100, 10**6])
@pytest.mark.parametrize("temperature", [0.001, 0.1])
@pytest.mark.parametrize("images", [4, 5, 8, 9])
@pytest.mark.parametrize("unlabelled", WHERE)
def test_cross_domain_does_not_depend_on_tiles(unlabelled, images, temperature, kept, monkeypatch):
    part = {"labels": tuple(LABELS[-images:]), "domains": tuple(DOMAINS[-images:])}
    case = Case(2, temperature, **part, reduction="none", unlabelled=unlabelled)
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)
    monkeypatch.setattr("cl_losses._tiles.CPU_KEPT_BYTES", kept)
    assert value_error(case, torch.float64) < 1
    assert gradient_error(case, torch.float64) < 1


@pytest.mark.parametrize("images", [513, 700])
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.001])
def test_cross_domain_in_own_domains_of_several_tiles_is_its_equation(temperature, same_domain, images):
    """Against the dense matrix, in which loops over half a million pairs would take long; tiles are 512 x 512."""
    generator = torch.Generator().manual_seed(images)
    labels = torch.randint(-1, 6, (images,), generator=generator)
    domains = torch.randint(3, (images,), generator=generator)
    labels[domains == 2] = -1
    z = normal(images, 6).requires_grad_()
    unit = torch.nn.functional.normalize(z, dim=1)
    same_class = (labels == labels[:, None]) & (labels >= 0)
    elsewhere = domains != domains[:, None]
    unknown = (labels < 0) | (labels < 0)[:, None]
    itself = torch.eye(images, dtype=torch.bool)
    positives = same_class & ~itself & (elsewhere | (same_domain == "positive"))
    candidates = positives | (~same_class & ~itself & ~(elsewhere & unknown))
    exponents = unit @ unit.T / temperature
    of_rows = exponents.masked_fill(~candidates, -torch.inf).logsumexp(1, keepdim=True) - exponents
    count = positives.sum(1)
    dense = (of_rows.masked_fill(~positives, 0).sum(1) / count.clamp_min(1)).sum() / (count > 0).sum()
    loss = cross_domain_loss(
        z, labels, domains, temperature=temperature, same_domain=same_domain, unlabelled="own_domain"
    )
    assert_close(loss, dense, rtol=1e-12, atol=0)
    (actual,), (expected,) = torch.autograd.grad(loss, z), torch.autograd.grad(dense, z)
    assert_close(actual, expected, rtol=0, atol=1e-12 / temperature)


def test_cross_domain_does_not_depend_on_how_many_columns_of_the_class_sums_are_worked_on_at_a_time(monkeypatch):
    monkeypatch.setattr("cl_losses._positives.NUMBERS_AT_A_TIME", 1)  # 4 columns: of 5, the last is by itself
    assert value_error(Case(), torch.float64) < 1
    assert gradient_error(Case(), torch.float64) < 1


# What is in neither set


def influence(of: int, on: int, same_domain: str) -> float:
    """The gradient of a row's loss with respect to another row."""
    z, labels, domains = Case(None).batch(torch.float64)
    losses = cross_domain_loss(z, labels, domains, temperature=1, same_domain=same_domain, reduction="none")
    return torch.autograd.grad(losses[on], z)[0][of].norm().item()


def test_cross_domain_ignores_other_images_of_a_rows_class_and_domain():
    assert influence(of=3, on=0, same_domain="ignore") < 1e-15  # both of class 4, domain 0


def test_cross_domain_does_not_ignore_them_if_they_are_positives():
    assert influence(of=3, on=0, same_domain="positive") > 1e-3


@pytest.mark.parametrize("other", [1, 2, 4, 5, 6])
def test_cross_domain_repels_other_classes_in_whatever_domain(other):
    z, labels, domains = Case(None).batch(torch.float64)
    loss = cross_domain_loss(z, labels, domains, temperature=1, reduction="none")[0]
    (grad,) = torch.autograd.grad(loss, z)
    unit = torch.nn.functional.normalize(z, dim=1).detach()
    towards = unit[0] - (unit[0] * unit[other]).sum() * unit[other]
    assert (grad[other] * towards).sum() > 1e-3  # nearer is worse


@pytest.mark.parametrize("other", [7, 8])
def test_cross_domain_attracts_a_rows_class_in_other_domains(other):
    z, labels, domains = Case(None).batch(torch.float64)
    loss = cross_domain_loss(z, labels, domains, temperature=1, reduction="none")[0]
    (grad,) = torch.autograd.grad(loss, z)
    unit = torch.nn.functional.normalize(z, dim=1).detach()
    towards = unit[0] - (unit[0] * unit[other]).sum() * unit[other]
    assert (grad[other] * towards).sum() < -1e-3


def test_cross_domain_attracts_an_images_views_in_its_own_domain():
    z = torch.eye(4, dtype=torch.float64).view(2, 2, 4).requires_grad_()
    losses = cross_domain_loss(z, torch.tensor([0, 1]), torch.tensor([0, 1]), temperature=1, reduction="none")
    (grad,) = torch.autograd.grad(losses[0], z)  # candidates: the other view, and both of the other image
    assert_close(grad[1, 0, 0].item(), 1 / 3 - 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("same_domain", BOTH)
def test_cross_domain_in_own_domains_compares_no_image_without_label_with_another_domain(same_domain):
    z, labels, domains = Case(2, **MIXED).batch(torch.float64)
    losses = cross_domain_loss(
        z, labels, domains, temperature=1, same_domain=same_domain, unlabelled="own_domain", reduction="none"
    )
    for row in range(2 * len(labels)):
        influence = torch.autograd.grad(losses[row], z, retain_graph=True)[0].norm(dim=2)
        i = row % len(labels)
        apart = (domains != domains[i]) & ((labels == -1) | (labels[i] == -1))
        assert apart.any()
        assert influence[:, apart].max() < 1e-15, row
        assert influence[1 - row // len(labels), i] > 1e-3, row


@pytest.mark.parametrize("on", [0, 1, 5])
def test_cross_domain_in_own_domains_has_images_without_label_repel_those_of_their_domain(on):
    z, labels, domains = Case(2, **MIXED).batch(torch.float64)
    loss = cross_domain_loss(z, labels, domains, temperature=1, unlabelled="own_domain", reduction="none")[on]
    (grad,) = torch.autograd.grad(loss, z)
    unit = torch.nn.functional.normalize(z, dim=-1).detach()
    anchor, other = unit[0, on], unit[0, 2]  # image 2 has no label, in the domain of images 0, 1 and 5
    assert (grad[0, 2] * (anchor - (anchor * other).sum() * other)).sum() > 1e-3  # nearer is worse


# Rows without positives


def test_cross_domain_of_rows_without_positives_is_0():
    z, labels, domains = Case(None).batch(torch.float64)
    losses = cross_domain_loss(z, labels, domains, temperature=0.1, reduction="none")
    assert [i for i, loss in enumerate(losses.tolist()) if loss == 0] == [1, 2, 4, 5, 6]


def test_cross_domain_mean_does_not_count_rows_without_positives():
    z, labels, domains = Case(None).batch(torch.float64)
    losses = cross_domain_loss(z, labels, domains, temperature=0.1, reduction="none")
    assert_close(cross_domain_loss(z, labels, domains, temperature=0.1), losses.sum() / 4, rtol=1e-14, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("labels", [(0, 0, 1), (-1, -1, -1), (3, 3, -1)])
def test_cross_domain_is_0_if_no_row_has_a_positive(labels, temperature):
    losses = cross_domain_loss(normal(3, 4), torch.tensor(labels), torch.tensor([0, 0, 1]), temperature=temperature)
    assert losses.item() == 0


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_domain_has_gradient_0_if_no_row_has_a_positive(reduction, temperature):
    z, labels, domains = normal(3, 4).requires_grad_(), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])
    cross_domain_loss(z, labels, domains, temperature=temperature, reduction=reduction).sum().backward()
    assert z.grad.tolist() == [[0] * 4] * 3


# What it is the same as


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_domain_with_positives_in_the_same_domain_is_sup_con(reduction, views, temperature):
    z, labels, domains = Case(views).batch(torch.float64)
    arguments = {"temperature": temperature, "reduction": reduction}
    actual = cross_domain_loss(z, labels, domains, same_domain="positive", **arguments)
    assert_close(actual, sup_con_loss(z, labels, **arguments), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("same_domain", BOTH)
def test_cross_domain_of_one_image_per_class_and_domain_is_nt_xent_of_the_domains(same_domain, temperature):
    z_0, z_1 = normal(4, 5), normal(4, 5, seed=1)
    labels, domains = torch.tensor([3, 1, 0, 8] * 2), torch.tensor([0] * 4 + [1] * 4)
    order = torch.tensor([4, 0, 7, 2, 1, 6, 3, 5])
    actual = cross_domain_loss(
        torch.cat([z_0, z_1])[order], labels[order], domains[order], temperature=temperature, same_domain=same_domain
    )
    assert_close(actual, nt_xent_loss(z_0, z_1, temperature=temperature), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("domains", [(0, 1, 0, 1), (0, 0, 0, 1), (0, 1, 2, 3)])
def test_cross_domain_of_two_views_without_labels_is_nt_xent_whatever_the_domains(domains, same_domain, temperature):
    z, labels = normal(2, 4, 5), torch.full((4,), -1)
    actual = cross_domain_loss(
        z, labels, torch.tensor(domains), temperature=temperature, same_domain=same_domain, reduction="none"
    )
    assert_close(actual, nt_xent_loss(*z, temperature=temperature, reduction="none"), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.001])
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("domains", [(0, 1, 0, 1, 0, 0), (7, -2, -2, 9, 9, 7), (3, 3, 3, 8, 8, 8)])
def test_cross_domain_in_own_domains_without_labels_is_nt_xent_of_each_domain_by_itself(
    domains, same_domain, temperature
):
    z, labels, domains = normal(2, 6, 5), torch.full((6,), -1), torch.tensor(domains)
    expected = torch.zeros(2, 6, dtype=torch.float64)
    for domain in domains.unique():
        own = domains == domain
        expected[:, own] = nt_xent_loss(*z[:, own], temperature=temperature, reduction="none").view(2, -1)
    arguments = {"temperature": temperature, "same_domain": same_domain, "unlabelled": "own_domain"}
    losses = cross_domain_loss(z, labels, domains, **arguments, reduction="none")
    assert_close(losses, expected.flatten(), rtol=1e-12, atol=2e-15 / temperature)  # a difference of 1 / temperature
    assert_close(cross_domain_loss(z, labels, domains, **arguments), expected.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.001])
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("views", [None, 2])
def test_cross_domain_with_all_labels_is_the_same_in_own_domains_and_everywhere(views, same_domain, temperature):
    z, labels, domains = (
        Case(views, labels=(4, 0, 2, 4, 0, 4)).batch(torch.float64)[0][..., :6, :],
        *(torch.tensor(numbers) for numbers in ((4, 0, 2, 4, 0, 4), (0, 0, 1, 1, 2, 0))),
    )
    losses = [
        cross_domain_loss(
            z,
            labels,
            domains,
            temperature=temperature,
            same_domain=same_domain,
            unlabelled=unlabelled,
            reduction="none",
        )
        for unlabelled in WHERE
    ]
    assert_close(*losses, rtol=0, atol=0)


def test_cross_domain_in_own_domains_of_an_image_alone_in_its_domain_and_without_label_is_0():
    z, labels, domains = normal(2, 3, 5), torch.tensor([-1, 4, 4]), torch.tensor([0, 1, 1])
    losses = cross_domain_loss(z, labels, domains, temperature=0.1, unlabelled="own_domain", reduction="none")
    assert losses.view(2, 3)[:, 0].abs().max() < 1e-14  # its other view is its only candidate


@pytest.mark.parametrize("views", [1, 2, 3])
def test_cross_domain_in_own_domains_of_equal_rows_is_the_log_of_the_number_of_candidates_averaged(views):
    labels, domains = torch.tensor(MIXED["labels"]), torch.tensor(MIXED["domains"])
    sets = [
        positives_and_candidates(i, labels, domains, views=views, same_domain="ignore", unlabelled="own_domain")
        for i in range(views * len(labels))
    ]
    logs = [math.log(len(candidates)) for positives, candidates in sets if positives]
    z = torch.ones(views, len(labels), 3, dtype=torch.float64)
    actual = cross_domain_loss(z, labels, domains, temperature=0.1, unlabelled="own_domain").item()
    assert actual == pytest.approx(sum(logs) / len(logs), abs=1e-13)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_cross_domain_of_equal_rows_is_the_log_of_the_number_of_candidates_averaged(views):
    labels, domains = torch.tensor(LABELS), torch.tensor(DOMAINS)
    sets = [
        positives_and_candidates(i, labels, domains, views=views, same_domain="ignore")
        for i in range(views * len(labels))
    ]
    logs = [math.log(len(candidates)) for positives, candidates in sets if positives]
    z = torch.ones(views, len(LABELS), 3, dtype=torch.float64)
    actual = cross_domain_loss(z, labels, domains, temperature=0.1).item()
    assert actual == pytest.approx(sum(logs) / len(logs), abs=1e-13)


# Invariances


EACH = [Case(same_domain=same, unlabelled=unlabelled) for same in BOTH for unlabelled in WHERE]


def rows_of(case: Case, **changed: Tensor) -> Tensor:
    """Losses by row, with parts of the batch replaced."""
    z, labels, domains = case.batch(torch.float64)
    batch = {"z": z.detach(), "labels": labels, "domains": domains} | changed
    arguments = {"temperature": 0.1, "same_domain": case.same_domain, "unlabelled": case.unlabelled}
    return cross_domain_loss(**batch, **arguments, reduction="none")


@pytest.mark.parametrize("case", EACH)
def test_cross_domain_is_invariant_to_the_scale_of_its_rows(case):
    scale = torch.logspace(-3, 4, len(LABELS), dtype=torch.float64)[:, None]
    scaled = rows_of(case, z=scale * case.batch(torch.float64)[0])
    assert_close(scaled, rows_of(case), rtol=1e-13, atol=0)


@pytest.mark.parametrize("case", EACH)
def test_cross_domain_is_invariant_to_a_common_rotation(case):
    rotation = torch.linalg.qr(normal(5, 5, seed=9)).Q
    assert_close(rows_of(case, z=case.batch(torch.float64)[0] @ rotation), rows_of(case), rtol=1e-13, atol=0)


@pytest.mark.parametrize("case", EACH)
def test_cross_domain_of_a_row_does_not_depend_on_the_order_of_the_images(case):
    z, labels, domains = case.batch(torch.float64)
    order = torch.tensor([3, 0, 6, 4, 8, 1, 2, 5, 7])
    shuffled = rows_of(case, z=z[:, order], labels=labels[order], domains=domains[order])
    assert_close(shuffled.view(2, 9), rows_of(case).view(2, 9)[:, order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("names", [(5, 1, 0), (10**12, 10**12 + 1, 3), (2**63 - 1, 0, 2**62)])
def test_cross_domain_is_invariant_to_the_names_of_the_classes(names):
    renamed = torch.tensor([{4: names[0], 0: names[1], 9: names[2], -1: -1}[label] for label in LABELS])
    assert_close(rows_of(Case(), labels=renamed), rows_of(Case()), rtol=0, atol=0)


@pytest.mark.parametrize("names", [(5, 1, 0), (10**12, 10**12 + 1, -3), (2**63 - 1, 0, -(2**63))])
@pytest.mark.parametrize("case", [Case(unlabelled=unlabelled) for unlabelled in WHERE])
def test_cross_domain_is_invariant_to_the_names_of_the_domains(case, names):
    renamed = torch.tensor([names[domain] for domain in DOMAINS])
    assert_close(rows_of(case, domains=renamed), rows_of(case), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["labels", "domains"])
def test_cross_domain_takes_labels_and_domains_of_any_integer_dtype(name, dtype):
    case = Case(labels=(4, 0, 4, 0, 2), domains=(0, 1, 1, 1, 0))
    _, labels, domains = case.batch(torch.float64)
    changed = {name: {"labels": labels, "domains": domains}[name].to(dtype)}
    assert_close(rows_of(case, **changed), rows_of(case), rtol=0, atol=0)


def test_cross_domain_does_not_depend_on_the_domains_of_images_without_label():
    changed = torch.tensor([5 - d if label == -1 else d for label, d in zip(LABELS, DOMAINS, strict=True)])
    assert_close(rows_of(Case(), domains=changed), rows_of(Case()), rtol=1e-14, atol=0)


def test_cross_domain_in_own_domains_depends_on_the_domains_of_images_without_label():
    changed = torch.tensor([1 - min(d, 1) if label == -1 else d for label, d in zip(LABELS, DOMAINS, strict=True)])
    case = Case(unlabelled="own_domain")
    assert (rows_of(case, domains=changed) - rows_of(case)).abs().max() > 1e-2


def test_cross_domain_takes_an_image_without_label_for_a_class_of_its_own():
    labels = torch.tensor([4, 0, 100, 4, 9, 0, 101, 4, 4])  # in place of -1
    assert_close(rows_of(Case(), labels=labels), rows_of(Case()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("case", [Case(views, same_domain=same) for views in (None, 2) for same in BOTH] + EACH)
def test_cross_domain_has_no_gradient_along_its_rows(case):
    z, labels, domains = case.batch(torch.float64)
    cross_domain_loss(z, labels, domains, **case.arguments()).backward()
    assert z.grad.norm() > 0.1
    assert (z * z.grad).sum(dim=-1).abs().max() < 1e-14


# Precision


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_domain_of_half_precision_is_float32s_on_the_rounded_input(dtype, same_domain, temperature):
    z, labels, domains = Case().batch(dtype)
    arguments = {"temperature": temperature, "same_domain": same_domain}
    expected = cross_domain_loss(z.float(), labels, domains, **arguments)
    assert_close(cross_domain_loss(z, labels, domains, **arguments), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_domain_gradient_of_half_precision_is_float32s_rounded(dtype):
    z, labels, domains = Case().batch(dtype)
    grads = []
    for part in (z, z.detach().float().requires_grad_()):
        cross_domain_loss(part, labels, domains, temperature=0.1).backward()
        grads.append(part.grad)
    assert_close(grads[0], grads[1].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_cross_domain_keeps_float64_and_is_else_float32(given, returned, temperature):
    assert cross_domain_loss(*Case().batch(given), temperature=temperature).dtype == returned


# Which rows have positives


@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(
    ("labels", "domains"),
    [
        (LABELS, DOMAINS),
        ([0, 1, 2], [0, 1, 0]),
        ([-1, -1], [0, 1]),
        ([5, 5, 5], [0, 1, 1]),
        ([10**12, -1, 10**12, 10**12 + 1], [10**12, 0, -3, -3]),
        ([1, 1, 1], [4, 4, 4]),
    ],
)
def test_count_positives_counts_views_and_the_class_in_other_domains(labels, domains, views, same_domain):
    labels, domains = torch.tensor(labels), torch.tensor(domains)
    wanted = count_by_loops(labels, domains, views=views, same_domain=same_domain)
    assert_close(count_positives(labels, domains, views=views, same_domain=same_domain), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("case", [Case(views, same_domain=same) for views in (None, 2) for same in BOTH])
def test_count_positives_is_0_where_cross_domain_leaves_rows_out(case):
    _, labels, domains = case.batch(torch.float64)
    count = count_positives(labels, domains, views=case.views or 1, same_domain=case.same_domain)
    assert_close(count == 0, rows_of(case) == 0)


# The module


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("same_domain", BOTH)
@pytest.mark.parametrize("unlabelled", WHERE)
def test_cross_domain_module_equals_the_function(unlabelled, same_domain, reduction):
    batch = Case().batch(torch.float64)
    arguments = {"same_domain": same_domain, "unlabelled": unlabelled, "reduction": reduction}
    expected = cross_domain_loss(*batch, temperature=0.2, **arguments)
    assert_close(CrossDomainLoss(temperature=0.2, **arguments)(*batch), expected, rtol=0, atol=0)
