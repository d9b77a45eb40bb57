"""Batches of several domains: what is in each, and that everything has its turn."""

import re
from collections import Counter

import pytest
import torch
from cl_train import ArrayDataset, DomainBatches, DomainDataset, InputError, Relabelled


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def domains(*labels: list[int]) -> DomainDataset:
    """A domain for each list of labels, of classes a to e; -1 is none."""
    return DomainDataset(
        {
            str(d): Relabelled(
                ArrayDataset(torch.zeros(len(of), 1, 1, 1)), torch.tensor(of), classes=["a", "b", "c", "d", "e"]
            )
            for d, of in enumerate(labels)
        }
    )


# Rendered: eight of each of three classes. Photographed: a has three, b one, c none with a label, and 14 have none.
RENDERED = [0, 1, 2] * 8
PHOTOGRAPHED = [0, 0, 0, 1] + [-1] * 14
MIXED = domains(RENDERED, PHOTOGRAPHED)


def cells(dataset: DomainDataset, ids: torch.Tensor) -> Counter[tuple[int, int]]:
    """How many images a batch has of each class and domain."""
    return Counter((int(label), int(domain)) for label, domain in dataset.targets(ids).tolist())


# A function of the step


def test_batches_are_a_function_of_the_seed_and_the_step():
    first = DomainBatches(MIXED, batch_size=12, seed=3)
    batches = [first(step) for step in range(20)]
    torch.manual_seed(9)
    again = DomainBatches(MIXED, batch_size=12, seed=3)
    for step in (19, 4, 0, 11, 4):  # in any order, asked for twice
        assert torch.equal(again(step), batches[step])


def test_another_seed_makes_other_batches():
    batches = [DomainBatches(MIXED, batch_size=12, seed=seed)(0).sort().values.tolist() for seed in range(4)]
    assert len({tuple(batch) for batch in batches}) == 4


def test_batches_are_numbers_of_the_images():
    ids = DomainBatches(MIXED, batch_size=12)(5)
    assert (ids.dtype, ids.shape) == (torch.int64, (12,))


@pytest.mark.parametrize("unlabelled", [0.0, 0.25, None])
@pytest.mark.parametrize("batch_size", [12, 15, 16])
@pytest.mark.parametrize("classes", [None, 2])
def test_no_image_is_twice_in_a_batch(classes, batch_size, unlabelled):
    sampler = DomainBatches(MIXED, batch_size=batch_size, unlabelled=unlabelled, classes=classes)
    for step in range(40):
        assert len(sampler(step).unique()) == batch_size


def test_images_of_a_batch_are_in_no_order_of_class_or_domain():
    sampler = DomainBatches(MIXED, batch_size=12)
    free = [(MIXED.labels[sampler(step)] < 0).nonzero().flatten().tolist() for step in range(50)]
    counts = Counter(place for batch in free for place in batch)
    assert len(counts) == 12  # half are without label, and so every place is in about half of the batches
    assert min(counts.values()) > 12
    assert max(counts.values()) < 38


# What is in a batch


@pytest.mark.parametrize(
    ("unlabelled", "batch_size", "free"), [(None, 12, 6), (0.25, 12, 3), (0.0, 12, 0), (0.3, 7, 2), (0.7, 14, 10)]
)
def test_a_batch_has_the_share_without_label_that_was_asked_for(unlabelled, batch_size, free):
    sampler = DomainBatches(MIXED, batch_size=batch_size, unlabelled=unlabelled, classes=2)
    for step in range(10):
        assert int((MIXED.labels[sampler(step)] < 0).sum()) == free


def test_a_batch_has_all_images_without_label_by_default_where_they_are_fewer_than_half():
    sampler = DomainBatches(domains([0, 1] * 8, [0, 1, -1, -1]), batch_size=12)
    assert int((sampler(3) >= 18).sum()) == 2


def test_a_class_meets_in_every_batch_that_is_made():
    dataset = domains([0, 1, 2, 3, 4] * 6, [0, 1, 2, 3, 4] * 6)
    sampler = DomainBatches(dataset, batch_size=10)
    for step in range(6):
        assert cells(dataset, sampler(step)) == {(label, domain): 1 for label in range(5) for domain in range(2)}


def test_a_batch_is_all_labelled_by_default_where_all_images_are():
    dataset = domains([0, 1] * 4, [0, 1] * 4)
    assert int((dataset.labels[DomainBatches(dataset, batch_size=8)(0)] < 0).sum()) == 0


def test_every_class_of_a_batch_has_as_many_rows_as_another():
    sampler = DomainBatches(MIXED, batch_size=15, unlabelled=0.2)
    for step in range(10):
        assert torch.bincount(MIXED.labels[sampler(step)].clamp_min(-1) + 1).tolist() == [3, 4, 4, 4]


def test_rows_that_classes_do_not_divide_go_to_other_classes_in_turn():
    sampler = DomainBatches(MIXED, batch_size=8, unlabelled=0.0)
    wide = Counter()
    for step in range(60):
        counts = torch.bincount(MIXED.labels[sampler(step)], minlength=3).tolist()
        assert sorted(counts) == [2, 3, 3]
        wide.update(label for label, count in enumerate(counts) if count == 3)
    assert min(wide.values()) > 25  # of 60, 40 on average


def test_every_domain_of_a_class_has_as_many_rows_as_another_as_far_as_it_has_images():
    """Worked out by hand: 12 rows of three classes are 4 of each; b has one photograph, c none."""
    sampler = DomainBatches(MIXED, batch_size=12, unlabelled=0.0)
    for step in range(20):
        assert cells(MIXED, sampler(step)) == {(0, 0): 2, (0, 1): 2, (1, 0): 3, (1, 1): 1, (2, 0): 4}


def test_what_a_domain_lacks_of_a_class_the_others_make_up_for_alike():
    dataset = domains([0] * 6 + [1] * 6, [0] + [1] * 6, [0] * 6 + [1] * 2)
    sampler = DomainBatches(dataset, batch_size=20)
    for step in range(20):
        found = cells(dataset, sampler(step))
        for label, sizes in ((0, (6, 1, 6)), (1, (6, 6, 2))):
            counts = [found[label, d] for d in range(3)]
            assert sum(counts) == 10
            # a domain has fewer than another by more than one row only where all its images are in the batch
            assert all(a >= b - 1 or a == size for a, size in zip(counts, sizes, strict=True) for b in counts)


def test_a_batch_of_some_classes_has_images_of_these_alone():
    sampler = DomainBatches(domains(list(range(5)) * 4, list(range(5)) * 4), batch_size=8, classes=2)
    for step in range(20):
        found = Counter(label for label, _ in cells(MIXED_OF_FIVE, sampler(step)).elements())
        assert sorted(found.values()) == [4, 4]


MIXED_OF_FIVE = domains(list(range(5)) * 4, list(range(5)) * 4)


# Everything has its turn


def test_classes_take_turns():
    dataset = domains(list(range(4)) * 3, list(range(4)) * 3)
    sampler = DomainBatches(dataset, batch_size=4, classes=2)
    for turn in range(10):
        found = [set(dataset.labels[sampler(2 * turn + place)].tolist()) for place in range(2)]
        assert found[0] | found[1] == {0, 1, 2, 3}


def test_which_classes_meet_changes_with_the_turns():
    dataset = domains(list(range(4)) * 3, list(range(4)) * 3)
    sampler = DomainBatches(dataset, batch_size=4, classes=2)
    assert len({frozenset(dataset.labels[sampler(2 * turn)].tolist()) for turn in range(30)}) == 6


def test_a_class_that_a_turn_leaves_over_is_another_one_in_other_turns():
    sampler = DomainBatches(MIXED_OF_FIVE, batch_size=4, classes=2)
    left = [
        set(range(5)) - set(MIXED_OF_FIVE.labels[torch.cat([sampler(2 * turn), sampler(2 * turn + 1)])].tolist())
        for turn in range(40)
    ]
    assert all(len(classes) == 1 for classes in left)
    assert set().union(*left) == set(range(5))


def test_all_images_of_a_cell_come_before_any_comes_again():
    dataset = domains([0, 1] * 6, [0, 1] * 3 + [-1] * 8)
    sampler = DomainBatches(dataset, batch_size=8, unlabelled=0.5)  # of each class one row in each domain
    steps = {(0, 0): 6, (1, 0): 6, (0, 1): 3, (1, 1): 3, (-1, 1): 2}  # images of a cell / rows of it in a batch
    for cell, period in steps.items():
        for turn in range(4):
            ids = torch.cat([sampler(step) for step in range(turn * period, (turn + 1) * period)])
            of_cell = [i for i in ids.tolist() if tuple(dataset.targets(torch.tensor([i]))[0].tolist()) == cell]
            assert (
                len(of_cell)
                == len(set(of_cell))
                == sum(tuple(target) == cell for target in dataset.targets(torch.arange(len(dataset))).tolist())
            )


def test_what_fills_no_batch_at_the_end_is_left_out_and_others_next_time():
    dataset = domains([0, 1] * 3, [0, 1] * 3 + [-1] * 5)
    sampler = DomainBatches(dataset, batch_size=8, unlabelled=0.25)
    turns = [torch.cat([sampler(2 * turn), sampler(2 * turn + 1)]) for turn in range(20)]  # 4 of 5 without label
    free = [frozenset(ids[dataset.labels[ids] < 0].tolist()) for ids in turns]
    assert all(len(images) == 4 for images in free)
    assert len(set(free)) == 5


def test_every_image_comes_in_the_end():
    sampler = DomainBatches(MIXED, batch_size=7, unlabelled=0.3, classes=2)
    assert len(torch.cat([sampler(step) for step in range(150)]).unique()) == len(MIXED)


def test_images_of_a_small_group_are_seen_more_often():
    sampler = DomainBatches(MIXED, batch_size=12, unlabelled=0.0)
    seen = torch.bincount(torch.cat([sampler(step) for step in range(16)]), minlength=len(MIXED))
    assert seen[24 + 3] == 16  # the only photograph of b, in every batch
    assert seen[:24][MIXED.labels[:24] == 0].tolist() == [4] * 8  # two of eight renderings of a in each


# What it is called, and what it refuses


def test_what_makes_the_batches_is_printed():
    sampler = DomainBatches(MIXED, batch_size=12, unlabelled=0.25, classes=2, seed=4)
    assert re.fullmatch(
        r"DomainBatches\(batch_size=12, unlabelled=0.25, classes=2, seed=4, labels=[0-9a-f]{16}\)", repr(sampler)
    )
    plain = repr(DomainBatches(MIXED, batch_size=12))
    assert plain.startswith("DomainBatches(batch_size=12, unlabelled=0.5, classes=None, seed=0, labels=")


def test_other_labels_are_other_batches_by_name():
    first, same, other = (repr(DomainBatches(domains([0, 1, last], [0, 1]), batch_size=4)) for last in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "`batch_size` must be at least 2, got 1."),
        ({"unlabelled": -0.1}, "`unlabelled` must be in [0, 1), got -0.1."),
        ({"unlabelled": 1.0}, "`unlabelled` must be in [0, 1), got 1.0."),
        ({"unlabelled": float("nan")}, "`unlabelled` must be in [0, 1), got nan."),
        ({"seed": -1}, "`seed` must be at least 0, got -1."),
        ({"classes": 1}, "`classes` must be from 2 to 3, those with labels, got 1."),
        ({"classes": 4}, "`classes` must be from 2 to 3, those with labels, got 4."),
        (
            {"batch_size": 30, "unlabelled": 0.5},
            "`unlabelled` 0.5 of a batch of 30 are 15 images, there are 14 without label.",
        ),
        (
            {"batch_size": 27, "unlabelled": 0.0},
            "`batch_size` 27 leaves 9 images for each class, 'c' has 8 with a label: "
            "take another batch, more `unlabelled`, or other `classes` in it.",
        ),
        (
            {"batch_size": 2, "unlabelled": 0.9},
            "`batch_size` 2 leaves 0 images for each of 3 classes, too few to meet in it: "
            "take a larger batch, less `unlabelled`, or fewer `classes`.",
        ),
        (
            {"batch_size": 5, "unlabelled": 0.0},
            "`batch_size` 5 leaves 1 images for each of 3 classes, too few to meet in it: "
            "take a larger batch, less `unlabelled`, or fewer `classes`.",
        ),
    ],
)
def test_batches_that_cannot_be_made_are_refused(arguments, message):
    with refused(message):
        DomainBatches(MIXED, **{"batch_size": 12} | arguments)
