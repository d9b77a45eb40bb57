"""Labels as every data set keeps them."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_train._errors import InputError


def check_labels(labels: Tensor | Sequence[int], classes: Sequence[str] | None, *, n: int) -> tuple[Tensor, list[str]]:
    """Labels, and the names of their classes.

    Args:
        labels: Class of each image, integers in 0 ... number of classes - 1, shape (n,).
        classes: Names of the classes; None: their numbers.
        n: Number of images.

    Returns:
        Labels, int64, (n,), and names.

    Raises:
        InputError: They are no integers, not one for each image, or out of range.
    """
    if not isinstance(labels, Tensor):
        try:
            labels = torch.tensor([operator.index(label) for label in labels], dtype=torch.int64)
        except TypeError as error:
            raise InputError(f"`labels` must be integers: {error}.") from error
    if labels.shape != (n,) or labels.is_floating_point():
        raise InputError(f"`labels` must be integers of shape ({n},), got {labels.dtype} {tuple(labels.shape)}.")
    if int(labels.min()) < 0:
        raise InputError(f"`labels` must be at least 0, got {int(labels.min())}.")
    names = [str(name) for name in classes] if classes is not None else [str(c) for c in range(int(labels.max()) + 1)]
    if int(labels.max()) >= len(names):
        raise InputError(f"`labels` must be below the number of `classes`, {len(names)}, got {int(labels.max())}.")
    return labels.long(), names


def check_all_labelled(labels: Tensor, *, name: str) -> None:
    """Raise if some images have no label, as of a `Relabelled` data set."""
    missing = int((labels < 0).sum())
    if missing:
        raise InputError(
            f"`{name}` must have a label for each image, {missing} of {len(labels)} have none: take a Subset."
        )
