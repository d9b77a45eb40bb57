"""Some images of a data set."""

from collections.abc import Sequence
from pathlib import PurePath

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError


class Subset(ImageDataset):
    """Some images of a data set, numbered anew from 0; its classes stay the same.

    Args:
        dataset: Images.
        ids: Numbers of those that are in it, in their order, int64, (m,), m >= 1.

    Raises:
        InputError: A number is none of an image, or there are none.
    """

    def __init__(self, dataset: ImageDataset, ids: Tensor | Sequence[int]) -> None:
        self.ids = torch.as_tensor(ids)
        if self.ids.ndim != 1 or len(self.ids) == 0 or self.ids.is_floating_point() or self.ids.dtype == torch.bool:
            raise InputError(
                f"`ids` must be integers of shape (m,) with m >= 1, got {self.ids.dtype} {tuple(self.ids.shape)}."
            )
        lowest, highest = int(self.ids.min()), int(self.ids.max())
        if lowest < 0 or highest >= len(dataset):
            raise InputError(f"`ids` must be in 0 ... {len(dataset) - 1}, got {lowest if lowest < 0 else highest}.")
        self.dataset = dataset
        self.labels = None if dataset.labels is None else dataset.labels[self.ids]
        self.classes = dataset.classes
        self.images = None if dataset.images is None else dataset.images[self.ids]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        return self.dataset.read(int(self.ids[index]))

    def name(self, index: int) -> str:
        """What the data set calls it."""
        return self.dataset.name(int(self.ids[index]))

    def targets(self, ids: Tensor) -> Tensor | None:
        """What the data set tells of them."""
        return self.dataset.targets(self.ids[ids])


def find_by_name(dataset: ImageDataset, names: Sequence[str]) -> Tensor:
    """Numbers of the images whose names end in what is given, whole parts of a path: (m,).

    Raises:
        InputError: A name fits no image, or more than one.
    """
    known: dict[str, list[tuple[PurePath, int]]] = {}
    for number in range(len(dataset)):
        path = PurePath(dataset.name(number))
        known.setdefault(path.name, []).append((path, number))
    found = []
    for name in names:
        parts = PurePath(name).parts
        fits = [number for path, number in known.get(parts[-1], []) if path.parts[-len(parts) :] == parts]
        if len(fits) != 1:
            raise InputError(f"`labels` must list names of images, {name!r} is the end of {len(fits)} images' names.")
        found.append(fits[0])
    return torch.tensor(found)
