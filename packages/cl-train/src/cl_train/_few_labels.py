"""Which rows have labels, when few have."""

import numpy as np
import torch
from torch import Tensor

from cl_train._errors import InputError


def few_labels(labels: Tensor, amount: int | float, *, seed: int) -> Tensor:
    """Numbers of rows that keep their labels, as many of each class.

    Args:
        labels: Class of each row, int64, (n,).
        amount: An int, how many of each class, >= 1; or a float in (0, 1), a share of all rows, spread over the classes
            evenly: classes that get one more than others are drawn.
        seed: Of `numpy.random.default_rng`, by which each class's rows are drawn in turn without replacement.

    Returns:
        int64, class by class.

    Raises:
        InputError: The amount is out of its range, or a class has too few rows.
    """
    random = np.random.default_rng(seed)
    classes = labels.unique().tolist()
    if isinstance(amount, float):
        each, more = divmod(round(amount * len(labels)), len(classes))
        counts = np.full(len(classes), each)
        counts[random.permutation(len(classes))[:more]] += 1
    else:
        counts = np.full(len(classes), amount)
    if min(counts) < 1 or (isinstance(amount, float) and amount >= 1):
        raise InputError(
            f"`labels` must be a share in (0, 1) or a whole number for each of {len(classes)} classes, got {amount}."
        )
    chosen = []
    for label, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels.cpu().numpy() == label)
        if len(members) < count:
            raise InputError(
                f"`labels` must be at most the images of each class, {len(members)} in class {label}, got {count}."
            )
        chosen.append(random.choice(members, count, replace=False))
    return torch.from_numpy(np.concatenate(chosen))
