"""Batches: which images, in which order, for which process, and how they come off the disk."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._launch import cores_per_process

_PIECE = 32  # images that a worker reads at a time

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
        try:
            image = self.dataset.read(number)
        except InputError as error:
            return error  # for `_from_files` to raise: raised here, it would arrive with a traceback in its text
        cuts = self.cut(image[None], torch.tensor([key]))
        return cuts[0] if isinstance(cuts, Tensor) else tuple(part[0] for part in cuts)


def _collate(cuts: list[Any]) -> Any:
    errors = [cut for cut in cuts if isinstance(cut, InputError)]
    return errors[0] if errors else default_collate(cuts)


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
    read: Iterator[Any] = (
        _from_files(dataset, ids, keys, cut, workers, device)
        if dataset.images is None
        else (dataset.images[numbers] for numbers in ids)
    )
    for images, numbers, batch_keys in zip(read, ids, keys, strict=True):
        labels = None if dataset.labels is None else _to(dataset.labels[numbers], device)
        yield Batch(_to(images, device), _to(batch_keys, device), labels)


def _from_files(
    dataset: ImageDataset,
    ids: Sequence[Tensor],
    keys: Sequence[Tensor],
    cut: Cut,
    workers: int | None,
    device: torch.device,
) -> Iterator[Any]:
    """Cuts of whole batches, from workers that share the work of each: memory is for pieces, not for batches."""
    pairs = [list(zip(n.tolist(), k.tolist(), strict=True)) for n, k in zip(ids, keys, strict=True)]
    pieces = [[batch[start : start + _PIECE] for start in range(0, len(batch), _PIECE)] for batch in pairs]
    loader = iter(
        DataLoader(
            _CutImages(dataset, cut),
            batch_sampler=[piece for batch in pieces for piece in batch],
            collate_fn=_collate,
            num_workers=min(8, cores_per_process()) if workers is None else workers,
            pin_memory=device.type == "cuda",
        )
    )
    for batch in pieces:
        parts = [_to(_checked(next(loader)), device) for _ in batch]
        if isinstance(parts[0], Tensor):
            yield torch.cat(parts)
        else:
            yield tuple(torch.cat(views) for views in zip(*parts, strict=True))


def _checked(cuts: Any) -> Any:
    if isinstance(cuts, InputError):
        raise cuts
    return cuts


def _to(images: Any, device: torch.device) -> Any:
    if not isinstance(images, Tensor):
        return tuple(_to(part, device) for part in images)
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()  # from pageable memory the copy would wait for the device
    return images.to(device, non_blocking=True)
