"""Which images each step of a run takes: a function of the step, so a run can go on from any."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._frozen import digest_of
from cl_train._loader import Batch, Share, batches, epoch_ids
from cl_train._method import Method

Sampler = Callable[[int], Tensor]  # number of a step -> numbers of its images, on all processes, (batch_size,)


def check_whole(name: str, value: Any) -> None:
    """Raise unless an argument is a whole number, of Python's or numpy's; True is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"`{name}` must be a whole number, got {value!r}.")


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
        sampler: What chooses the images of a step; by default each epoch is a permutation of all.

    Raises:
        InputError: An argument is out of its range.
    """

    dataset: ImageDataset
    batch_size: int
    epochs: int
    seed: int
    process: int
    processes: int
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "seed", "batch_size"):
            check_whole(name, getattr(self, name))
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
        known = {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "seed": self.seed,
            "processes": self.processes,
        }
        if self.sampler is None:
            return known
        # by what it does: its repr may say nothing of it, or tell its place in memory, another one in the next process
        first = torch.cat([self.ids(step) for step in range(min(3, self.total_steps))])
        return known | {"sampler": f"{type(self.sampler).__name__} {digest_of(first)[:16]}"}

    @property
    def share(self) -> int:
        """Images of a batch on one process."""
        return self.batch_size // self.processes

    def step_of(self, state: dict[str, Any]) -> int:
        """The step to go on from, given a checkpoint's state: as many passes, should the batches have been others."""
        if not state:
            return 0
        run = state["run"]
        if run["batch_size"] == self.batch_size and run["images"] == len(self.dataset):
            return state["step"]
        return state["step"] * self.steps_per_epoch // (run["images"] // run["batch_size"])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.dataset) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def ids(self, step: int) -> Tensor:
        """The numbers of the images of a step, on all processes, (batch_size,).

        Raises:
            InputError: The sampler gives something else.
        """
        if self.sampler is not None:
            return self._check(self.sampler(step))
        epoch, index = divmod(step, self.steps_per_epoch)
        ids = epoch_ids(
            len(self.dataset), batch_size=self.batch_size, seed=self.seed, epoch=epoch, process=0, processes=1
        )
        return ids[index]

    def draw(self, step: int) -> int:
        """What keys are drawn by: the epoch or, with a sampler, by which an image may come again in it, the step."""
        return step // self.steps_per_epoch if self.sampler is None else step

    def batches(
        self,
        start: int,
        stop: int,
        *,
        method: Method,
        workers: int | None,
        device: torch.device,
        skip_unreadable: bool = False,
        timeout: float = 120.0,
    ) -> Generator[tuple[int, Batch]]:
        """Steps start ... stop - 1, each with this process's share of its batch; cuts of files stay on the host."""
        source = batches(
            self.dataset,
            self._shares(start, stop, method),
            cut=method.cut,
            workers=workers,
            device=device,
            host=True,
            skip_unreadable=skip_unreadable,
            timeout=timeout,
        )
        with closing(source):
            yield from enumerate(source, start=start)

    def _shares(self, start: int, stop: int, method: Method) -> Iterator[Share]:
        """Numbers and keys of this process's images, step by step; an epoch's order is made when it is needed."""
        if self.sampler is not None:
            for step in range(start, stop):
                numbers = self.ids(step).view(self.processes, self.share)[self.process]
                yield numbers, method.keys(numbers, seed=self.seed, epoch=self.draw(step))
            return
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
            for numbers in ids:
                yield numbers, method.keys(numbers, seed=self.seed, epoch=epoch)
            start += len(ids)

    def _check(self, ids: Tensor) -> Tensor:
        """The images that a sampler gives."""
        if ids.shape != (self.batch_size,) or ids.dtype != torch.int64:
            raise InputError(
                f"`sampler` must give int64 numbers of shape ({self.batch_size},), got {ids.dtype} {tuple(ids.shape)}."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= len(self.dataset):
            raise InputError(f"`sampler` must give numbers of the {len(self.dataset)} images, got {ids.tolist()}.")
        if len(ids.unique()) < len(ids):
            raise InputError("`sampler` must give each image at most once in a batch: it would be its own negative.")
        return ids
