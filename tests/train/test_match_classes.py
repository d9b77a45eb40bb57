"""Classes of a domain's clusters, against plain loops, and on clusters whose domain has moved them."""

import math
import re

import pytest
import torch
from cl_train import InputError, match_classes
from torch import Tensor
from torch.testing import assert_close

CLASSES, WIDTH = 4, 6
SHAPES = "`source_x` and `target_x` must have shapes (n, d) and (m, d) with m >= 2, got"


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row)) or 1.0
    return [x / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def centred(rows: list[list[float]]) -> list[list[float]]:
    rows = [unit(row) for row in rows]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [unit([x - m for x, m in zip(row, mean, strict=True)]) for row in rows]


def means(rows: list[list[float]], labels: list[int], before: list[list[float]]) -> list[list[float]]:
    found = []
    for c, old in enumerate(before):
        own = [row for row, label in zip(rows, labels, strict=True) if label == c]
        found.append(unit([sum(column) for column in zip(*own, strict=True)]) if own else old)
    return found


def loop(source_x, source_y, target_x, known=None, keep=1.0, iterations=50) -> tuple[list[int], list[float]]:
    """The docstring, row by row, in Python's numbers."""
    source, target, y = centred(source_x.tolist()), centred(target_x.tolist()), source_y.tolist()
    fixed = [-1] * len(target) if known is None else known.tolist()
    centres = means(source, y, [[0.0]] * (max(y) + 1))

    def nearest() -> list[int]:
        found = []
        for row, own in zip(target, fixed, strict=True):
            cosines = [dot(row, centre) for centre in centres]
            found.append(cosines.index(max(cosines)) if own < 0 else own)
        return found

    labels = nearest()
    for _ in range(iterations):
        centres = means(target, labels, centres)
        before, labels = labels, nearest()
        if labels == before:
            break
    margins = []
    for row in target:
        second, first = sorted(dot(row, centre) for centre in centres)[-2:]
        margins.append(first - second)
    named = sorted((margin for margin, own in zip(margins, fixed, strict=True) if own < 0), reverse=True)
    least = named[max(1, round(keep * len(named))) - 1]
    chosen = [
        label if margin >= least or own >= 0 else -1 for label, margin, own in zip(labels, margins, fixed, strict=True)
    ]
    return chosen, margins


def clouds(*, seed: int, rows: int = 15, noise: float = 0.5, shift: float = 1.0) -> tuple[Tensor, ...]:
    """Classes in two domains, each domain moved by a vector of its own: source rows and classes, target ones."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    places, y = random(CLASSES, WIDTH), torch.arange(CLASSES).repeat(rows)
    source, target = (places[y] + noise * random(len(y), WIDTH) + shift * random(WIDTH) for _ in range(2))
    return source, y, target, y.clone()


def share(found: Tensor, expected: Tensor) -> float:
    return (found == expected).double().mean().item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iterations", [1, 2, 50])
@pytest.mark.parametrize("keep", [1.0, 0.35])
def test_classes_and_margins_are_those_of_a_loop(seed, iterations, keep):
    source, y, target, _ = clouds(seed=seed, noise=1.0)
    found = match_classes(source, y, target, keep=keep, iterations=iterations)
    labels, margins = loop(source, y, target, keep=keep, iterations=iterations)
    assert found.labels.tolist() == labels
    assert found.labels.dtype == torch.int64
    assert_close(found.margin, torch.tensor(margins, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_with_known_rows_classes_are_those_of_a_loop_too(seed):
    source, y, target, target_y = clouds(seed=seed, noise=1.0)
    known = torch.where(torch.arange(len(y)) % 5 == 0, target_y, -1)
    found = match_classes(source, y, target, known=known, keep=0.5)
    assert found.labels.tolist() == loop(source, y, target, known, keep=0.5)[0]


def test_more_than_one_iteration_makes_a_difference():
    source, y, target, _ = clouds(seed=1, noise=1.0)
    once, converged = (match_classes(source, y, target, iterations=n).labels for n in (1, 50))
    assert not torch.equal(once, converged)


def test_clusters_that_their_domain_has_moved_are_matched_where_raw_nearest_means_fail():
    source, y, target, target_y = clouds(seed=0, noise=0.2, shift=3.0)
    places = torch.stack([source[y == c].mean(0) for c in range(CLASSES)])
    raw = torch.cdist(target, places).argmin(1)
    assert share(raw, target_y) == 0.5  # two classes get all
    assert share(match_classes(source, y, target).labels, target_y) == 1.0


def test_what_a_domain_adds_to_all_its_unit_rows_is_irrelevant():
    """Exactly so on a circle around the axis along which the domain is moved."""
    angles = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    circle = torch.stack([angles.cos(), angles.sin(), torch.zeros(24)], dim=1)
    y = torch.arange(24) // 6
    margins = [match_classes(circle, y, circle + torch.tensor([0.0, 0.0, h])).margin for h in (0.0, 5.0, -50.0)]
    assert_close(margins[1], margins[0], rtol=0, atol=1e-9)
    assert_close(margins[2], margins[0], rtol=0, atol=1e-9)


def test_the_length_of_rows_is_irrelevant():
    source, y, target, _ = clouds(seed=2)
    lengths = 2.0 ** (torch.arange(len(y)) % 9 - 4)[:, None]
    found, expected = match_classes(source * lengths, y, target / lengths), match_classes(source, y, target)
    assert torch.equal(found.labels, expected.labels)
    assert_close(found.margin, expected.margin)


def test_known_rows_keep_their_class_whatever_lies_nearest():
    source, y, target, target_y = clouds(seed=0, noise=0.1)
    wrong = (target_y + 1) % CLASSES
    known = torch.where(torch.arange(len(y)) < 8, wrong, -1)
    found = match_classes(source, y, target, known=known, keep=0.1).labels
    assert torch.equal(found[:8], wrong[:8])


def test_known_rows_steer_the_rows_beside_them():
    """Each target cluster lies at the place of another class: without labels all are mistaken, with some none."""
    source, y, target, target_y = clouds(seed=0, noise=0.1, shift=0.0)
    swapped = (target_y + 1) % CLASSES
    known = torch.where(torch.arange(len(y)) % 2 < 1, -1, swapped)
    known[: CLASSES * 11] = swapped[: CLASSES * 11]
    free = known < 0
    assert int(free.sum()) == 8
    assert share(match_classes(source, y, target).labels[free], swapped[free]) == 0
    assert share(match_classes(source, y, target, known=known).labels[free], swapped[free]) == 1


def test_the_surest_are_kept():
    source, y, target, _ = clouds(seed=3, noise=1.0)
    everything = match_classes(source, y, target)
    for keep, count in ((0.25, 15), (0.5, 30), (0.001, 1), (1.0, 60)):
        found = match_classes(source, y, target, keep=keep)
        kept = found.labels >= 0
        assert int(kept.sum()) == count
        assert torch.equal(found.labels[kept], everything.labels[kept])
        assert kept.all() or everything.margin[kept].min() > everything.margin[~kept].max()


def test_classes_that_were_kept_are_more_often_right():
    source, y, target, target_y = clouds(seed=5, noise=1.2)
    found = match_classes(source, y, target, keep=0.5).labels
    kept = found >= 0
    everything = share(match_classes(source, y, target).labels, target_y)
    assert share(found[kept], target_y[kept]) > everything + 0.05


def test_equally_sure_rows_are_kept_or_left_together():
    x = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0)
    y = torch.arange(3).repeat_interleave(4)
    assert torch.equal(match_classes(x, y, x, keep=0.3).labels, y)


def test_a_row_between_two_classes_has_the_first_and_no_margin():
    source, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = match_classes(source, y, target, iterations=1)
    assert found.labels.tolist() == [0, 1, 0, 0]
    first = match_classes(source, y, target[2:], iterations=1)
    assert first.labels.tolist() == [0, 0]
    assert first.margin.tolist() == [0, 0]


def test_margins_of_opposite_classes_are_2():
    source, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    assert_close(match_classes(source, y, 5 * source).margin, torch.full((2,), 2.0, dtype=torch.float64))


def test_a_class_without_target_rows_keeps_its_centre():
    """Rows of the other classes have the margin to it that the source's mean gives."""
    source, y, target, target_y = clouds(seed=0, noise=0.1, shift=0.0)
    some = target[target_y != 2]
    found = match_classes(source, y, some)
    labels, margins = loop(source, y, some)
    assert 2 not in labels
    assert found.labels.tolist() == labels
    assert_close(found.margin, torch.tensor(margins, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(found.margin.isfinite().all())


def test_where_target_rows_are_permuted_so_is_the_result():
    source, y, target, target_y = clouds(seed=1, noise=1.0)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    known = torch.where(torch.arange(len(y)) % 7 == 0, target_y, -1)
    expected = match_classes(source, y, target, known=known, keep=0.6)
    found = match_classes(source, y, target[order], known=known[order], keep=0.6)
    assert torch.equal(found.labels, expected.labels[order])
    assert_close(found.margin, expected.margin[order], rtol=0, atol=1e-12)


def test_where_features_are_rotated_nothing_changes():
    source, y, target, _ = clouds(seed=1, noise=1.0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[
        0
    ]
    found, expected = match_classes(source @ turn, y, target @ turn), match_classes(source, y, target)
    assert torch.equal(found.labels, expected.labels)
    assert_close(found.margin, expected.margin, rtol=0, atol=1e-12)


def test_nothing_has_a_gradient_and_arguments_stay_as_they_are():
    source, y, target, _ = clouds(seed=0)
    source.requires_grad_()
    before = [source.detach().clone(), y.clone(), target.clone()]
    assert not match_classes(source, y, target, known=torch.full_like(y, -1)).margin.requires_grad
    assert all(torch.equal(a.detach(), b) for a, b in zip((source, y, target), before, strict=True))


X, Y = torch.eye(4), torch.tensor([0, 1, 1, 0])
LABELS = "`source_y` must hold a class from 0 for each of 4 rows."
CLASSES_ = "`source_y` must have at least two classes, numbered from 0, each with a row."
KNOWN = "`known` must hold -1 or a class of `source_y` for each of 4 rows."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source_x": X[0]},
            f"{SHAPES} (4,) and (4, 4).",
        ),
        (
            {"target_x": X[:, :3]},
            f"{SHAPES} (4, 4) and (4, 3).",
        ),
        (
            {"target_x": X[:0]},
            f"{SHAPES} (4, 4) and (0, 4).",
        ),
        ({"source_x": X * torch.nan}, "`source_x` must be finite, it holds NaN or infinity."),
        ({"target_x": X / 0}, "`target_x` must be finite, it holds NaN or infinity."),
        ({"source_x": X[:0], "source_y": Y[:0]}, LABELS.replace("4", "0", 1)),
        ({"source_y": Y[:3]}, LABELS),
        ({"source_y": Y - 1}, LABELS),
        ({"source_y": Y.float()}, LABELS),
        ({"source_y": Y == 1}, LABELS),
        ({"source_y": 2 * Y}, CLASSES_),
        ({"source_y": 0 * Y}, CLASSES_),
        ({"known": Y[:3]}, KNOWN),
        ({"known": 2 * Y}, KNOWN),
        ({"known": -2 * Y}, KNOWN),
        ({"known": Y.float()}, KNOWN),
        ({"keep": 0.0}, "`keep` must be in (0, 1], got 0.0."),
        ({"keep": 1.1}, "`keep` must be in (0, 1], got 1.1."),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0."),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"source_x": X, "source_y": Y, "target_x": X} | changes
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        match_classes(**arguments)
