"""Which images each step of a run takes: a function of the step, so a run can go on from any."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._loader import Batch, batches, epoch_ids
from cl_train._method import Method


@dataclass(frozen=True)
class Plan:
    """The batches of a run, and this process's share of each.

    Args:
        dataset: Images.
        batch_size: Images per step over all processes, >= 2, a multiple of their number, at most all images.
        epochs: Passes over the images, >= 1.
        seed: Seed of the order and of the views, >= 0.
        process: Index of this process.
        processes: Number of processes.

    Raises:
        InputError: An argument is out of its range.
    """

    dataset: ImageDataset
    batch_size: int
    epochs: int
    seed: int
    process: int
    processes: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"`epochs` must be at least 1, got {self.epochs}.")
        if self.seed < 0:
            raise InputError(f"`seed` must be at least 0, got {self.seed}.")
        if self.batch_size < 2:
            raise InputError(f"`batch_size` must be at least 2 (one image has no negatives), got {self.batch_size}.")
        if self.batch_size % self.processes:
            raise InputError(
                f"`batch_size` must be a multiple of the {self.processes} processes, got {self.batch_size}."
            )
        if len(self.dataset) < self.batch_size:
            raise InputError(
                f"`batch_size` must be at most the number of images, {len(self.dataset)}, got {self.batch_size}."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on from another's checkpoint."""
        return {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "seed": self.seed,
        }

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.dataset) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def batches(
        self, start: int, stop: int, *, method: Method, workers: int | None, device: torch.device
    ) -> Iterator[tuple[int, Batch]]:
        """Steps start ... stop - 1, each with this process's share of its batch."""
        while start < stop:
            epoch, skip = divmod(start, self.steps_per_epoch)
            ids = epoch_ids(
                len(self.dataset),
                batch_size=self.batch_size,
                seed=self.seed,
                epoch=epoch,
                process=self.process,
                processes=self.processes,
            )[skip : skip + stop - start]
            keys = [method.keys(numbers, seed=self.seed, epoch=epoch) for numbers in ids]
            source = batches(self.dataset, ids, keys, cut=method.cut, workers=workers, device=device)
            yield from enumerate(source, start=start)
            start += len(ids)
