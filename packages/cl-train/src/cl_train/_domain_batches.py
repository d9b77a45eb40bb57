"""Batches in which classes meet across domains."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cl_train._domains import DomainDataset
from cl_train._errors import InputError
from cl_train._frozen import digest_of


class DomainBatches:
    """Which images make each batch: so many without label, and of each class equally many in each domain.

    A loss that attracts a class across domains learns nothing from a batch that holds it in one domain only, and chance
    makes such batches where domains differ in size: one labelled photograph of a class beside a thousand renderings is
    in few of them. Here every class of a batch has its share of the rows, and every domain its share of the class, as
    far as it has labelled images of it; what a domain lacks, the others make up for.

    A function of (seed, step), so batches are the same on any number of processes and after a restart. No image is
    twice in a batch. Images of a class in a domain, and those without label, come in random order, all before any comes
    again but for those that are left over: that fill no batch at the end, whose class has a row less in a batch because
    classes do not divide it, or has no turn because `classes` does not divide all of them. So images of a small group
    are seen more often than others, with other views each time.

    Args:
        dataset: Images of several domains.
        batch_size: Images per step over all processes, as given to `pretrain`, >= 2.
        unlabelled: Share of a batch that has no label, in [0, 1); None: a half, or as many as there are.
        classes: Classes per batch, >= 2, which take turns; None: all.
        seed: Seed of the order, >= 0.

    Shape:
        step -> numbers of the images, int64, (batch_size,).

    Raises:
        InputError: An argument is out of its range, or there are too few images of a kind to fill its part of a batch.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        *,
        batch_size: int,
        unlabelled: float | None = None,
        classes: int | None = None,
        seed: int = 0,
    ) -> None:
        self._known = digest_of(dataset.targets(torch.arange(len(dataset))))[:16]
        self._free = (dataset.labels < 0).nonzero().flatten()
        if batch_size < 2:
            raise InputError(f"`batch_size` must be at least 2, got {batch_size}.")
        if unlabelled is None:
            unlabelled = min(0.5, len(self._free) / batch_size)
        if not 0 <= unlabelled < 1:
            raise InputError(f"`unlabelled` must be in [0, 1), got {unlabelled}.")
        if seed < 0:
            raise InputError(f"`seed` must be at least 0, got {seed}.")
        self.batch_size, self.unlabelled, self.classes, self.seed = batch_size, unlabelled, classes, seed
        self._present = dataset.labels[dataset.labels >= 0].unique().tolist()
        self._per_batch = len(self._present) if classes is None else classes
        if len(self._present) < 2:
            raise InputError(f"`dataset` must have labels of at least 2 classes, got {len(self._present)}.")
        if not 2 <= self._per_batch <= len(self._present):
            raise InputError(f"`classes` must be from 2 to {len(self._present)}, those with labels, got {classes}.")
        self._free_rows = round(unlabelled * batch_size)
        if self._free_rows > len(self._free):
            raise InputError(
                f"`unlabelled` {unlabelled:g} of a batch of {batch_size} are {self._free_rows} images, there are "
                f"{len(self._free)} without label."
            )
        self._rows, self._wider = divmod(batch_size - self._free_rows, self._per_batch)
        if self._rows < 2 and any(_domains_of(dataset, label) > 1 for label in self._present):
            raise InputError(
                f"`batch_size` {batch_size} leaves {self._rows} images for each of {self._per_batch} classes, "
                "too few to meet in it: take a larger batch, less `unlabelled`, or fewer `classes`."
            )
        self._cells = {label: _cells(dataset, label) for label in self._present}
        self._strides = {label: self._stride(dataset, label) for label in self._present}
        self._orders: dict[tuple[int, ...], tuple[int, Tensor]] = {}

    def __call__(self, step: int) -> Tensor:
        """Numbers of the images of a step, in random order."""
        chosen = [self._window(self._free, self._free_rows, self._free_rows, step, (2,))] if self._free_rows else []
        for place, (label, visit) in enumerate(self._classes(step)):
            sizes = [len(cell) for cell in self._cells[label]]
            counts = _split(sizes, self._rows + (place < self._wider))
            for domain, (cell, count) in enumerate(zip(self._cells[label], counts, strict=True)):
                if count:
                    stride = self._strides[label][domain]
                    chosen.append(self._window(cell, count, stride, visit, (3, label, domain)))
        ids = torch.cat(chosen)
        return ids[self._permutation(len(ids), 1, step)]

    def __repr__(self) -> str:
        """What makes the batches what they are, with a digest of labels and domains."""
        return (
            f"DomainBatches(batch_size={self.batch_size}, unlabelled={self.unlabelled}, classes={self.classes}, "
            f"seed={self.seed}, labels={self._known})"
        )

    def _stride(self, dataset: DomainDataset, label: int) -> list[int]:
        """Images of a class that a batch takes at most, by domain."""
        most = self._rows + (self._wider > 0)
        sizes = [len(cell) for cell in self._cells[label]]
        if sum(sizes) < most or most == 0:
            raise InputError(
                f"`batch_size` {self.batch_size} leaves {most} images for each class, {dataset.classes[label]!r} has "
                f"{sum(sizes)} with a label: take another batch, more `unlabelled`, or other `classes` in it."
            )
        return [max(pair) for pair in zip(_split(sizes, self._rows), _split(sizes, most), strict=True)]

    def _classes(self, step: int) -> list[tuple[int, int]]:
        """Classes of a batch, and how often each has been in one before."""
        turns = len(self._present) // self._per_batch
        turn, place = divmod(step, turns)
        order = self._permutation(len(self._present), 0, turn)[place * self._per_batch :][: self._per_batch]
        return [(self._present[i], turn) for i in order.tolist()]

    def _window(self, ids: Tensor, count: int, stride: int, visit: int, tag: tuple[int, ...]) -> Tensor:
        """`count` of some images: the next ones of a random order, or the first ones of a new order."""
        turn, place = divmod(visit, len(ids) // stride)
        if tag not in self._orders or self._orders[tag][0] != turn:  # of a million images that takes 20 ms
            self._orders[tag] = turn, self._permutation(len(ids), *tag, turn)
        return ids[self._orders[tag][1][place * stride :][:count]]

    def _permutation(self, n: int, *tag: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, *tag]).permutation(n))


def _cells(dataset: DomainDataset, label: int) -> list[Tensor]:
    """Numbers of a class's images in each domain."""
    of_class = dataset.labels == label
    return [(of_class & (dataset.domains == d)).nonzero().flatten() for d in range(len(dataset.domain_names))]


def _domains_of(dataset: DomainDataset, label: int) -> int:
    """In how many domains a class has labels."""
    return len(dataset.domains[dataset.labels == label].unique())


def _split(sizes: Sequence[int], total: int) -> list[int]:
    """`total` in parts as equal as the sizes allow, of which none is larger than its size."""
    parts, left = [0] * len(sizes), total
    for rest, index in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__), start=-len(sizes)):
        parts[index] = min(sizes[index], left // -rest)
        left -= parts[index]
    return parts
