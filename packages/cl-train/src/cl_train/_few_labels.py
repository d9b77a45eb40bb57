"""Which rows have labels, when few have; and which are held out to choose by."""

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from cl_train._errors import InputError


def few_labels(labels: Tensor, amount: int | float, *, seed: int) -> Tensor:
    """Numbers of rows that keep their labels, as many of each class.

    Errors name the amount `labels`, as the functions do that hand it on.

    Args:
        labels: Class of each row, integers from 0, (n,).
        amount: An int, how many of each class, >= 1; or a float in (0, 1), a share of all rows, rounded to whole rows
            and spread over the classes evenly, whatever their sizes. Which classes get one more than others is drawn.
        seed: Of `numpy.random.default_rng`, by which each class's rows are drawn in turn without replacement.

    Returns:
        int64, class by class, on the CPU.

    Raises:
        InputError: The amount is out of its range, leaves a class without a row, or a class has too few rows.
    """
    rows = _by_class(labels)
    random = np.random.default_rng(seed)
    counts = _counts(amount, len(labels), list(rows), random)
    chosen = []
    for (label, members), count in zip(rows.items(), counts, strict=True):
        if len(members) < count:
            share = f"{count}" if isinstance(amount, Integral) else f"{amount}, which is {count}"
            raise InputError(
                f"`labels` must be at most the images of each class, {len(members)} in class {label}, got {share}."
            )
        chosen.append(random.choice(members, count, replace=False))
    return torch.from_numpy(np.concatenate(chosen))


def check_rows(labels: Tensor, n: int) -> Tensor:
    """Numbers of rows that keep their labels as they were given: int64, (k,).

    Raises:
        InputError: They are no whole numbers from 0 to n - 1, one stands twice, or there are none.
    """
    rows = labels.long()
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool or len(rows.unique()) < len(rows):
        raise InputError("`labels` must be numbers of rows, integers of shape (k,), none of them twice.")
    if len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= n:
        raise InputError(f"`labels` must be numbers of rows, one or more from 0 to {n - 1}.")
    return rows


def held_out(labels: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Two parts of all rows: those to train on, and those to choose hyperparameters by.

    Of each class with two rows or more, the share is held out, rounded, but at least one row and never all.

    Args:
        labels: Class of each row, integers from 0, (n,).
        share: In (0, 1).
        seed: Of `numpy.random.default_rng`, by which each class's rows are drawn in turn.

    Returns:
        Numbers of the rows kept and of those held out, int64, each in rising order, on the CPU.

    Raises:
        InputError: The share is out of its range, or no class has two rows.
    """
    if not 0 < share < 1:
        raise InputError(f"`held_out` must be in (0, 1), got {share}.")
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for members in _by_class(labels).values():
        if len(members) > 1:
            count = min(max(1, round(share * len(members))), len(members) - 1)
            held[random.choice(members, count, replace=False)] = True
    if not held.any():
        raise InputError("`train_y` must have a class of at least two images, so that one can be held out.")
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _by_class(labels: Tensor) -> dict[int, np.ndarray]:
    """The rows of each class that occurs, both in rising order."""
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or int(labels.min()) < 0:
        raise InputError(f"labels must be classes, integers from 0, of shape (n,), got {tuple(labels.shape)}.")
    classes = labels.cpu().numpy()
    order = np.argsort(classes, kind="stable")
    found, begins = np.unique(classes[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, begins[1:]), strict=True))


def _counts(amount: int | float, rows: int, classes: list[int], random: np.random.Generator) -> list[int]:
    """How many rows of each class."""
    if isinstance(amount, bool) or not (amount >= 1 if isinstance(amount, Integral) else 0 < amount < 1):
        raise InputError(
            f"`labels` must be a whole number for each class, at least 1, or a share of all in (0, 1), got {amount!r}."
        )
    if isinstance(amount, Integral):
        return [int(amount)] * len(classes)
    total = round(amount * rows)
    each, more = divmod(total, len(classes))
    if each == 0:
        raise InputError(
            f"`labels` must leave each class at least one image, got {amount}: {total} of {rows} images for "
            f"{len(classes)} classes."
        )
    counts = np.full(len(classes), each)
    counts[random.permutation(len(classes))[:more]] += 1
    return counts.tolist()
