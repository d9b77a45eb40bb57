"""The images of a step on one process, and how they are split and moved."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_train._errors import InputError


class HostCuts:
    """Cuts of a batch on the host, in the parts in which workers sent them: copied only when they go to a device.

    The cuts of 4096 images are 5 GB; putting them together on the host would be another copy of that.

    Args:
        parts: Consecutive rows, each a tensor or a tuple of tensors with equally many rows.
    """

    def __init__(self, parts: Sequence[Tensor | tuple[Tensor, ...]]) -> None:
        self.parts = parts

    def __getitem__(self, rows: slice) -> "HostCuts":
        """Some rows, not copied."""
        kept, before = [], 0
        for part in self.parts:
            n = len(part) if isinstance(part, Tensor) else len(part[0])
            start, stop = max(rows.start - before, 0), min(rows.stop - before, n)
            if start < stop:
                kept.append(_rows(part, slice(start, stop)))
            before += n
        return HostCuts(kept)

    def to(self, device: torch.device) -> Tensor | tuple[Tensor, ...]:
        """All rows together on a device."""
        moved = [to_device(part, device) for part in self.parts]
        if len(moved) == 1:
            return moved[0]
        return torch.cat(moved) if isinstance(moved[0], Tensor) else tuple(map(torch.cat, zip(*moved, strict=True)))


class Batch(NamedTuple):
    """One batch of one process. `images` is (n, c, h, w), or what `cut` made of images that are not in memory.

    `labels` are what the data set tells of its images, a row for each: `ImageDataset.targets`.

    `skipped` are images that belong to the batch and could not be read, when that is allowed; nothing else in it is
    about them.
    """

    images: Any
    keys: Tensor
    labels: Tensor | None
    skipped: tuple[str, ...] = ()

    def split(self, size: int, *, share: int, evenly: bool = False) -> list["Batch"]:
        """Consecutive parts of `size` images, the last perhaps smaller.

        Args:
            size: Images of a part, >= 1.
            share: Images that a batch has where all can be read. One with fewer gives as many parts, evenly: processes
                wait for each other part by part.
            evenly: Whether parts of the same number are as equal as they can be: none is left with the odd image.

        Raises:
            InputError: There are fewer images than parts.
        """
        n, parts = len(self.keys), -(-share // size)
        if n < parts:
            raise InputError(f"a batch must have an image for each of {parts} parts, {n} of {share} can be read.")
        bounds = [min(i * size, n) if n == share and not evenly else i * n // parts for i in range(parts + 1)]
        return [
            Batch(_rows(self.images, rows), self.keys[rows], None if self.labels is None else self.labels[rows])
            for rows in (slice(start, stop) for start, stop in pairwise(bounds))
        ]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        labels = None if self.labels is None else to_device(self.labels, device)
        return Batch(to_device(self.images, device), to_device(self.keys, device), labels, self.skipped)


def to_device(images: Any, device: torch.device) -> Any:
    """A tensor, a tuple of tensors, or `HostCuts` on a device, without waiting for it."""
    if isinstance(images, HostCuts):
        return images.to(device)
    if isinstance(images, tuple):
        return tuple(to_device(part, device) for part in images)
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()  # from pageable memory the copy would wait for the device
    return images.to(device, non_blocking=True)


def _rows(images: Any, rows: slice) -> Any:
    return tuple(part[rows] for part in images) if isinstance(images, tuple) else images[rows]
