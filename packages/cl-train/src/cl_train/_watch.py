"""A look at a run's health at the end of each epoch, on all processes alike.

What is found is told by `warnings.warn`, not by a line on standard error: users can filter it, turn it into an error or
assert it, notebooks show it, and a bar on a terminal stays. The main process alone warns.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._embeddings import width_of
from cl_train._health import Finding, duplicated_images, judge, local_negatives
from cl_train._launch import on_main
from cl_train._method import Method
from cl_train._seen import Seen
from cl_train._twins import share_of_twins
from cl_train._unhealthy import HealthWarning, UnhealthyRun

Health = Literal["warn", "stop", "off"]


@dataclass
class Watch:
    """Takes the figures of the last step of an epoch, and warns of what they show, of each kind once.

    It has no state that a restart would have to bring back: what the look before found is judged again, from the log.

    Args:
        health: "stop" also ends the run, "off" does nothing.
        method: Whose `health` gives the figures.
        seen: What the loss saw.
        images: That a loss sees, over all processes.
        accelerator: The processes.
    """

    health: Health
    method: Method
    seen: Seen
    images: int
    accelerator: Accelerator
    told: set[str] = field(default_factory=set)
    last: Finding | None = None  # what ends the run

    def before_first(self, dataset: ImageDataset, *, step: int, epoch: float) -> None:
        """Look at the images, before any step of this call, where a twin of an image would be among its negatives.

        Raises:
            UnhealthyRun: Many are duplicates, and such a run is to end.
        """
        if self.health != "off" and self.method.negatives(self.images) is not None:
            finding = on_main(self.accelerator, lambda: duplicated_images(share_of_twins(dataset)))
            found = [] if finding is None else [finding]
            self._tell(found, ends=found, epoch=epoch)
            self.check(step=step, epoch=epoch)

    def expect(self, *, epoch_ends: bool) -> None:
        """Say, before a step, whether it is one to be looked at."""
        self.seen.wanted = epoch_ends and self.health != "off"

    def settle(self, counts: Tensor) -> None:
        """Forget a step that was taken back; this waits for the device, once an epoch."""
        if self.seen.wanted and not bool(counts):
            self.seen.forget()

    def look(self, history: list[dict[str, Any]], *, step: int, epoch: float) -> dict[str, float]:
        """Figures of the step that was kept, none if none was, and a warning of what is new.

        Args:
            history: The log before this entry.
            step: Steps so far.
            epoch: Passes so far.
        """
        if self.seen.embeddings is None:
            return {}
        figures = self._figures()
        width = width_of(self.seen.embeddings)
        apart = self._local_negatives()
        self.seen.forget()

        def verdict() -> tuple[list[Finding], set[str]]:
            looks = [entry for entry in history if figures.keys() <= entry.keys()] if figures else []
            earlier, before = ([{}, {}, *looks])[-2:]
            lately = judge(before, earlier, images=self.images, width=width)
            now = judge({"step": step} | figures, before, images=self.images, width=width)
            return now, {finding.name for finding in lately}

        # the main one's verdict is that of all: where machines differ, so may a last bit
        found, before = on_main(self.accelerator, verdict)
        lasting = [finding for finding in found if finding.name in before]
        self._tell([*apart, *found], ends=[*apart, *lasting], epoch=epoch)
        return figures

    def check(self, *, step: int, epoch: float) -> None:
        """Raise if what was found ends the run.

        Raises:
            UnhealthyRun: It does.
        """
        if self.last is not None:
            raise UnhealthyRun(self.last, step=step, epoch=epoch)

    def _figures(self) -> dict[str, float]:
        scalars = self.method.health(self.seen.embeddings)
        if not scalars:
            return {}
        values = torch.stack([value.detach().double() for value in scalars.values()])
        return dict(zip(scalars, values.tolist(), strict=True))

    def _local_negatives(self) -> list[Finding]:
        """What differs between processes, where the method says that all of them contrast with the same batch."""
        loss = self.seen.loss
        if self.accelerator.num_processes == 1 or loss is None or self.method.negatives(self.images) is None:
            return []
        finding = local_negatives(self.accelerator.gather(loss.detach().double().reshape(1)).tolist())
        return [] if finding is None else [finding]

    def _tell(self, found: list[Finding], *, ends: list[Finding], epoch: float) -> None:
        new = [finding for finding in found if finding.name not in self.told]
        self.told |= {finding.name for finding in new}

        def warn() -> Finding | None:
            for finding in new:
                try:
                    warnings.warn(HealthWarning(finding, epoch=epoch), stacklevel=4)
                except HealthWarning:  # where a filter makes it an error, all processes end, and have saved
                    return finding
            return None

        refused = on_main(self.accelerator, warn) if new else None
        self.last = refused or (ends[0] if self.health == "stop" and ends else None)
