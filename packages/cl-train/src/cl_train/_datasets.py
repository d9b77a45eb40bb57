"""What the loop reads: images with a fixed number each, some with labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from cl_train._errors import InputError


class ImageDataset(ABC):
    """Images numbered 0 ... n - 1. Abstract; `ArrayDataset` and `FolderDataset` are the kinds.

    The number is the image's identity: its random views are a function of (seed, epoch, number).

    Attributes:
        labels: Class of each image, int64, shape (n,), or None without labels.
        classes: Names of the classes, or None without labels.
        images: All images as one tensor (n, c, h, w), uint8 or float in [0, 1], when they are in memory, else None:
            they are then read one by one and may differ in size.
    """

    labels: Tensor | None
    classes: list[str] | None
    images: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w), uint8 or float in [0, 1]."""


class ArrayDataset(ImageDataset):
    """Images that are one tensor in memory.

    Args:
        images: Shape (n, c, h, w), uint8 or float in [0, 1].
        labels: Class of each image, integers in 0 ... number of classes - 1, shape (n,).
        classes: Names of the classes; by default their numbers.

    Raises:
        InputError: Shapes or dtypes are others, or there are no images.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, *, classes: Sequence[str] | None = None) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise InputError(f"`images` must have shape (n, c, h, w) with n >= 1, got {tuple(images.shape)}.")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise InputError(f"`images` must be uint8 or float in [0, 1], got {images.dtype}.")
        self.images, self.labels, self.classes = images, None, None
        if labels is not None:
            if labels.shape != images.shape[:1] or labels.is_floating_point():
                raise InputError(
                    f"`labels` must be integers of shape ({len(images)},), got {labels.dtype} {tuple(labels.shape)}."
                )
            if int(labels.min()) < 0:
                raise InputError(f"`labels` must be at least 0, got {int(labels.min())}.")
            self.labels = labels.long()
            self.classes = list(classes) if classes is not None else [str(c) for c in range(int(labels.max()) + 1)]
            if int(labels.max()) >= len(self.classes):
                raise InputError(
                    f"`labels` must be below the number of `classes`, {len(self.classes)}, got {int(labels.max())}."
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._tensor())

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        return self._tensor()[index]

    def _tensor(self) -> Tensor:
        assert self.images is not None  # set by the constructor; the attribute is optional in other kinds only
        return self.images
