"""Batches: which images, in which order, for which process, and how they come off the disk."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice, tee

import numpy as np
import torch
from torch import Tensor

from cl_train._batch import Batch as Batch
from cl_train._batch import HostCuts, to_device
from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._launch import cores_per_process
from cl_train._readers import Cut, Indices, Piece, PieceReader, read_pieces

_PIECE = 32  # images that a worker reads at a time
_MOST_ON_DEVICE = 1 / 8  # of its free memory: what a chunk that fits leaves is a quarter, and not for images alone

Share = tuple[Tensor, Tensor]  # numbers and keys of the images that one process has of a batch, each (b,)


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


def batches(
    dataset: ImageDataset,
    shares: Iterable[Share],
    *,
    cut: Cut,
    workers: int | None,
    device: torch.device,
    host: bool = False,
    skip_unreadable: bool = False,
    least: int = 2,
    timeout: float = 120.0,
) -> Generator[Batch]:
    """Read batches. Images in memory come as they are; others are read and cut one by one in worker processes.

    Args:
        dataset: Where from.
        shares: Numbers and keys of the images of each batch, taken some batches ahead.
        cut: `(image (1, c, h, w), key (1,)) -> tensor or pair of tensors (1, ...)`, what makes images of unequal sizes
            equal.
        workers: Number of worker processes; 0 reads in this one; None: one for each core of this process, at most 8.
        device: Where the batches go.
        host: Leave images on the host for `Batch.to` to move, so that they need not fit on the device together.
        skip_unreadable: Leave out images that cannot be read, and name them in `Batch.skipped`.
        least: Images that a batch must keep then, >= 0.
        timeout: Seconds without a sign of life after which a worker is taken to hang, > 0.

    Yields:
        One `Batch` for each of `shares`.

    Raises:
        InputError: An image cannot be read; or fewer than `least` of a batch can, when they are skipped.
        RuntimeError: A worker process died or hangs.
    """
    if dataset.images is not None:
        yield from _from_memory(dataset, dataset.images, shares, device, host=host)
        return
    count = min(8, cores_per_process()) if workers is None else workers
    shares, ahead = tee(shares)  # workers are given pieces before the batch is asked for
    pieces = (piece for ids, keys in ahead for piece in _pieces(ids, keys))
    reader = PieceReader(dataset, cut, workers=count)
    with closing(read_pieces(reader, pieces, workers=count, pin=device.type == "cuda", timeout=timeout)) as found:
        for ids, keys in shares:
            pieces_of_batch = islice(found, -(-len(ids) // _PIECE))
            cuts, kept, skipped = _gather(pieces_of_batch, ids, dataset, least=least if skip_unreadable else None)
            images = cuts if host else cuts.to(device)
            yield Batch(images, to_device(keys[kept], device), _targets(dataset, ids[kept], device), skipped)


def _from_memory(
    dataset: ImageDataset, images: Tensor, shares: Iterable[Share], device: torch.device, *, host: bool
) -> Iterator[Batch]:
    if device.type == "cuda" and images.nbytes < _MOST_ON_DEVICE * torch.cuda.mem_get_info(device)[0]:
        images = images.to(device)  # once: a batch is then picked there, and nothing waits for the host
    for ids, keys in shares:
        picked = images[to_device(ids, images.device)]
        picked = picked if host else to_device(picked, device)
        yield Batch(picked, to_device(keys, device), _targets(dataset, ids, device))


def _targets(dataset: ImageDataset, ids: Tensor, device: torch.device) -> Tensor | None:
    targets = dataset.targets(ids)
    return None if targets is None else to_device(targets, device)


def _pieces(ids: Tensor, keys: Tensor) -> list[Indices]:
    """A batch in pieces for workers that share the work of each: memory is for pieces, not for batches."""
    pairs = list(zip(ids.tolist(), keys.tolist(), strict=True))
    return [pairs[start : start + _PIECE] for start in range(0, len(pairs), _PIECE)]


def _gather(
    pieces: Iterable[Piece], ids: Tensor, dataset: ImageDataset, *, least: int | None
) -> tuple[HostCuts, Tensor, tuple[str, ...]]:
    """Cuts of a batch, which of its images they are, bool (b,), and the names of the others."""
    parts = []
    kept = torch.ones(len(ids), dtype=torch.bool)
    for index, piece in enumerate(pieces):
        for place, reason in piece.unread:
            kept[index * _PIECE + place] = False
            if least is None:
                raise InputError(reason)
            if int(kept.sum()) < least:
                few = f"a batch must have at least {least} images that can be read on each process"
                raise InputError(f"{few}; {reason}")
        if piece.cuts is not None:
            parts.append(piece.cuts)
    return HostCuts(parts), kept, tuple(dataset.name(number) for number in ids[~kept].tolist())
