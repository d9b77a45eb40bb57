"""Which rows have labels, and which are held out."""

import re

import numpy as np
import pytest
import torch
from cl_train._few_labels import few_labels, held_out

UNEVEN = torch.tensor([0] * 10 + [1] * 20 + [2] * 31)[torch.randperm(61, generator=torch.Generator().manual_seed(0))]


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def counts(rows: torch.Tensor, labels: torch.Tensor = UNEVEN) -> list[int]:
    return torch.bincount(labels[rows], minlength=int(labels.max()) + 1).tolist()


@pytest.mark.parametrize("amount", [1, 4, np.int64(4), 10])
def test_a_whole_number_is_that_many_of_each_class(amount):
    rows = few_labels(UNEVEN, amount, seed=0)
    assert counts(rows) == [amount] * 3
    assert len(rows.unique()) == 3 * amount


def test_rows_are_numpys_choice_class_by_class():
    random = np.random.default_rng(7)
    expected = [random.choice(np.flatnonzero(UNEVEN.numpy() == c), 4, replace=False) for c in range(3)]
    assert few_labels(UNEVEN, 4, seed=7).tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize(("share", "total"), [(0.05, 3), (0.1, 6), (0.13, 8), (0.33, 20), (0.48, 29)])
def test_a_share_is_exact_in_all_and_even_over_classes(share, total):
    found = counts(few_labels(UNEVEN, share, seed=0))
    assert sum(found) == total
    assert max(found) - min(found) <= 1


def test_which_class_gets_one_more_is_drawn():
    assert len({tuple(counts(few_labels(UNEVEN, 0.11, seed=seed))) for seed in range(20)}) == 3


def test_a_draw_is_a_function_of_the_seed_alone():
    first = few_labels(UNEVEN, 0.2, seed=3)
    np.random.seed(9)
    assert torch.equal(few_labels(UNEVEN, 0.2, seed=3), first)
    assert not torch.equal(few_labels(UNEVEN, 0.2, seed=4), first)


def test_numbers_of_classes_may_have_gaps():
    assert counts(few_labels(UNEVEN * 3, 2, seed=0), UNEVEN * 3) == [2, 0, 0, 2, 0, 0, 2]


RULE = "`labels` must be a whole number for each class, at least 1, or a share of all in (0, 1), got"


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (0, f"{RULE} 0."),
        (-1, f"{RULE} -1."),
        (True, f"{RULE} True."),
        (1.0, f"{RULE} 1.0."),
        (0.0, f"{RULE} 0.0."),
        (float("nan"), f"{RULE} nan."),
        (0.03, "`labels` must leave each class at least one image, got 0.03: 2 of 61 images for 3 classes."),
        (11, "`labels` must be at most the images of each class, 10 in class 0, got 11."),
        (0.75, "`labels` must be at most the images of each class, 10 in class 0, got 0.75, which is 15."),
    ],
)
def test_an_amount_that_cannot_be_drawn_is_refused(amount, message):
    with refused(message):
        few_labels(UNEVEN, amount, seed=0)


@pytest.mark.parametrize(
    "labels", [torch.zeros(4), torch.zeros(4, 1).long(), torch.zeros(0).long(), -torch.ones(4).long()]
)
def test_labels_that_are_no_classes_are_refused(labels):
    with refused(f"labels must be classes, integers from 0, of shape (n,), got {tuple(labels.shape)}."):
        few_labels(labels, 1, seed=0)


# Held out


@pytest.mark.parametrize(
    ("share", "held"), [(0.1, [1, 2, 3]), (0.5, [5, 10, 16]), (0.01, [1, 1, 1]), (0.99, [9, 19, 30])]
)
def test_a_share_of_each_class_is_held_out_but_never_none_or_all(share, held):
    kept, found = held_out(UNEVEN, share, seed=0)
    assert counts(found) == held
    assert sorted([*kept.tolist(), *found.tolist()]) == list(range(61))


def test_a_class_of_one_row_is_trained_on():
    kept, held = held_out(torch.tensor([0, 1, 1]), 0.5, seed=0)
    assert 0 in kept.tolist()
    assert len(held) == 1


def test_what_is_held_out_is_a_function_of_the_seed():
    assert torch.equal(held_out(UNEVEN, 0.3, seed=1)[1], held_out(UNEVEN, 0.3, seed=1)[1])
    assert not torch.equal(held_out(UNEVEN, 0.3, seed=1)[1], held_out(UNEVEN, 0.3, seed=2)[1])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with refused(f"`held_out` must be in (0, 1), got {share}."):
        held_out(UNEVEN, share, seed=0)


def test_nothing_to_hold_out_is_refused():
    with refused("`train_y` must have a class of at least two images, so that one can be held out."):
        held_out(torch.arange(5), 0.1, seed=0)
