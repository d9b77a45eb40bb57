"""Batches: which images, in which order, for which process, and how they come off the disk."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cl_train._datasets import ImageDataset
from cl_train._launch import cores_per_process

Cut = Callable[[Tensor, Tensor], Any]


class Batch(NamedTuple):
    """One batch of one process. `images` is (n, c, h, w), or what `cut` made of images that are not in memory."""

    images: Any
    keys: Tensor
    labels: Tensor | None


def epoch_ids(n: int, *, batch_size: int, seed: int, epoch: int, process: int, processes: int) -> list[Tensor]:
    """The numbers of the images of each batch of an epoch, this process's share of them.

    A function of (seed, epoch) alone: all processes permute the images alike and take consecutive parts of the same
    batch. What does not fill a batch is left out, in each epoch other images; padding with duplicates instead, as
    loaders do, would plant false negatives.

    Args:
        n: Number of images.
        batch_size: Images per batch over all processes, a multiple of `processes`.
        seed: Seed of the run.
        epoch: Pass over the data.
        process: Index of this process.
        processes: Number of processes.

    Returns:
        n // batch_size tensors of shape (batch_size / processes,).
    """
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
    whole = order[: n // batch_size * batch_size].reshape(-1, processes, batch_size // processes)
    return list(whole[:, process])


class _CutImages(Dataset[Any]):
    """Reads and cuts one image in a worker; an item's index is the pair (number, key)."""

    def __init__(self, dataset: ImageDataset, cut: Cut) -> None:
        self.dataset, self.cut = dataset, cut

    def __getitem__(self, index: tuple[int, int]) -> Any:
        number, key = index
        cuts = self.cut(self.dataset.read(number)[None], torch.tensor([key]))
        return cuts[0] if isinstance(cuts, Tensor) else tuple(part[0] for part in cuts)


def batches(
    dataset: ImageDataset,
    ids: Sequence[Tensor],
    keys: Sequence[Tensor],
    *,
    cut: Cut,
    workers: int | None,
    device: torch.device,
) -> Iterator[Batch]:
    """Read batches. Images in memory come as they are; others are read and cut one by one in worker processes.

    Args:
        dataset: Where from.
        ids: Numbers of the images of each batch, each (b,).
        keys: Their keys, likewise.
        cut: `(image (1, c, h, w), key (1,)) -> tensor or pair of tensors (1, ...)`, what makes images of unequal sizes
            equal.
        workers: Number of worker processes; 0 reads in this one; None: one for each core of this process, at most 8.
        device: Where the batches go.

    Yields:
        One `Batch` for each element of `ids`.
    """
    if dataset.images is not None:
        source: Iterator[Any] = (dataset.images[numbers] for numbers in ids)
    else:
        plan = [list(zip(n.tolist(), k.tolist(), strict=True)) for n, k in zip(ids, keys, strict=True)]
        source = iter(
            DataLoader(
                _CutImages(dataset, cut),
                batch_sampler=plan,
                num_workers=min(8, cores_per_process()) if workers is None else workers,
                pin_memory=device.type == "cuda",
            )
        )
    for images, numbers, batch_keys in zip(source, ids, keys, strict=True):
        labels = None if dataset.labels is None else dataset.labels[numbers].to(device, non_blocking=True)
        yield Batch(_to(images, device), batch_keys.to(device, non_blocking=True), labels)


def _to(images: Any, device: torch.device) -> Any:
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return tuple(part.to(device, non_blocking=True) for part in images)
