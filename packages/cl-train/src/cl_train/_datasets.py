"""What the loop reads: images with a fixed number each, some with labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from cl_train._errors import InputError
from cl_train._labels import check_labels


class ImageDataset(ABC):
    """Images numbered 0 ... n - 1. Abstract; `ArrayDataset`, `FolderDataset`, `ParquetDataset`, `WrappedDataset` are.

    The number is the image's identity: its random views are a function of (seed, epoch, number).

    Attributes:
        labels: Class of each image, int64, shape (n,), or None without labels.
        classes: Names of the classes, or None without labels.
        images: All images as one tensor (n, c, h, w), uint8 or float in [0, 1], when they are in memory, else None:
            they are then read one by one, in other processes, and may differ in size.
    """

    labels: Tensor | None
    classes: list[str] | None
    images: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w), uint8 or float in [0, 1].

        Raises:
            InputError: It is no image, or damaged. Any other error is a fault of the data set.
        """

    def name(self, index: int) -> str:
        """What to call image `index` before people: where it is kept."""
        return f"image {index}"

    def targets(self, ids: Tensor) -> Tensor | None:
        """What a method's loss is told of images beside their embeddings: their labels, (b,); or None without labels.

        Args:
            ids: Numbers of the images, int64, (b,).
        """
        return None if self.labels is None else self.labels[ids]


def readable(dataset: ImageDataset, n: int) -> list[int]:
    """Numbers of some images that can be read, such as for a look at them.

    Args:
        dataset: Images.
        n: How many, >= 1.

    Returns:
        `n` numbers, spread over the data set where all of these can be read; fewer if no more can.

    Raises:
        InputError: None can be read; it is the first one's.
    """
    spread = [i * (len(dataset) // n) for i in range(n)] if n <= len(dataset) else []
    tried = set(spread)
    found: list[int] = []
    reason: InputError | None = None
    for number in chain(spread, (i for i in range(len(dataset)) if i not in tried)):
        if len(found) == n:
            break
        try:
            dataset.read(number)
        except InputError as error:
            reason = reason or error
        else:
            found.append(number)
    if not found and reason is not None:
        raise reason
    return found


class ArrayDataset(ImageDataset):
    """Images that are one tensor in memory.

    On a GPU they are copied there for the time of a run if they take less than an eighth of its free memory.

    Args:
        images: Shape (n, c, h, w), uint8 or float in [0, 1].
        labels: Class of each image, integers in 0 ... number of classes - 1, shape (n,).
        classes: Names of the classes; by default their numbers.

    Raises:
        InputError: Shapes or dtypes are others, or there are no images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Sequence[int] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise InputError(f"`images` must have shape (n, c, h, w) with n >= 1, got {tuple(images.shape)}.")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise InputError(f"`images` must be uint8 or float in [0, 1], got {images.dtype}.")
        self.images, self.labels, self.classes = images, None, None
        if labels is not None:
            self.labels, self.classes = check_labels(labels, classes, n=len(images))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._tensor())

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        return self._tensor()[index]

    def _tensor(self) -> Tensor:
        assert self.images is not None  # set by the constructor; the attribute is optional in other kinds only
        return self.images
