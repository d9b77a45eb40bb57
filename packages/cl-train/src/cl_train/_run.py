"""A run under way: its steps, and when it looks, logs and saves."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object

from cl_train._checkpoint import save_checkpoint
from cl_train._checkpoint_folder import Saving
from cl_train._errors import InputError
from cl_train._finite import FiniteGuard
from cl_train._history import History
from cl_train._interrupt import Interrupted, StopRequest
from cl_train._launch import on_main
from cl_train._loader import Batch
from cl_train._meter import Meter
from cl_train._method import Method
from cl_train._plan import Plan
from cl_train._progress import Progress
from cl_train._run_folder import note_bad_images, versions
from cl_train._step import Gradient
from cl_train._trackers import Trackers
from cl_train._unhealthy import UnhealthyRun
from cl_train._watch import Watch

Metrics = dict[str, torch.Tensor]


@dataclass
class Run:
    """What the steps of a run share.

    Args:
        method: What is trained.
        optimizer: Its optimiser, as Accelerate prepared it.
        plan: Which images make a batch.
        gradient: `(batch, step) -> metrics`: leaves the gradient of a batch in the method's parameters; "finite" among
            the metrics tells whether its numbers were.
        factor: `step -> factor` of the learning rates.
        guard: Takes back steps that are not finite.
        stop: Notices signals.
        watch: Looks at the run's health.
        history: The log.
        trackers: Where the log is sent too.
        progress: What a person sees.
        accelerator: Processes and devices.
        out: Folder of the run.
        saving: When checkpoints are written.
        log_every: Steps between entries of the log.
        max_bad_images: Share of the images read that may be unreadable.
        identity: What must be equal for another run to go on from this one's checkpoints.
        step: Steps taken.
        origin: The path of another run that this one went on from, or None.
        skipped_images: Images that could not be read so far, over all processes.
    """

    method: Method
    optimizer: AcceleratedOptimizer
    plan: Plan
    gradient: Gradient
    factor: Callable[[int], float]
    guard: FiniteGuard
    stop: StopRequest
    watch: Watch
    history: History
    trackers: Trackers
    progress: Progress
    accelerator: Accelerator
    out: Path
    saving: Saving
    log_every: int
    max_bad_images: float
    identity: dict[str, Any]
    step: int
    origin: str | None = None
    skipped_images: int = 0
    meter: Meter = field(default_factory=Meter)
    unread: list[tuple[int, str]] = field(default_factory=list)

    def train(self, last: int, *, workers: int | None) -> None:
        """Take steps up to number `last`, or until the run is asked to stop.

        Raises:
            Interrupted: It was asked to, and has saved.
            FloatingPointError: A number was not finite, and the run is to stop then.
            InputError: More images than allowed could not be read.
            UnhealthyRun: It is ill, and to stop then; it has saved.
        """
        with self.stop.listening():
            if self.step < last:
                self._look_at_images()
            self._steps(last, workers=workers)
            self.stop.close()
        if self.stop.signal:
            raise Interrupted(self.stop.signal, self.step)

    def _look_at_images(self) -> None:
        try:
            self.watch.before_first(self.plan.dataset, step=self.step, epoch=self.step / self.plan.steps_per_epoch)
        except UnhealthyRun:
            self.stop.close()
            raise

    def _steps(self, last: int, *, workers: int | None) -> None:
        """Steps up to number `last` or until all processes have agreed to stop; the last one is saved."""
        batches = self.plan.batches(
            self.step,
            last,
            method=self.method,
            workers=workers,
            device=self.accelerator.device,
            skip_unreadable=self.max_bad_images > 0,
        )
        with closing(batches):
            self._follow(batches, last)

    def _follow(self, batches: Iterator[tuple[int, Batch]], last: int) -> None:
        per_epoch, every = self.plan.steps_per_epoch, self.saving.every
        for step, batch in batches:
            self._step(batch, step)
            self.step = step + 1
            stops = bool(self.stop.agreed())
            ends = self.step % per_epoch == 0 or self.step == last
            try:
                if ends or self.step % self.log_every == 0:
                    self._look()
                if stops or ends or (every is not None and self.step % every == 0):
                    self._save(epoch_ends=self.step % per_epoch == 0)
                self.watch.check(step=self.step, epoch=self.step / per_epoch)
            except (InputError, FloatingPointError, UnhealthyRun):  # what ends a run here ends it on all processes
                self.stop.close()
                raise
            if stops:
                return

    def _step(self, batch: Batch, step: int) -> None:
        factor = self.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.unread += [(step, name) for name in batch.skipped]
        self.guard.remember()
        self.watch.expect(epoch_ends=(step + 1) % self.plan.steps_per_epoch == 0)
        metrics = self.gradient(batch, step)
        counts = self.guard.judge(metrics.pop("finite"), step=step)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # by the scaler of fp16
            self.method.after_step(step, self.plan.total_steps)
        self.optimizer.zero_grad()
        self.guard.settle(counts)
        self.watch.settle(counts)
        self.meter.add(metrics, counts, images=self.plan.batch_size)
        self.progress.step()

    def _look(self) -> None:
        """Fetch what has gathered on the device, and write it down."""
        self._check()
        means = self.meter.fetch(self.accelerator)
        entry = {"step": self.step, "epoch": self.step / self.plan.steps_per_epoch}
        entry |= {"lr": self.optimizer.param_groups[0]["lr"]} | means
        entry |= self.watch.look(self.history.entries, step=self.step, epoch=entry["epoch"])
        for name, count in (("skipped_steps", self.guard.skipped()), ("skipped_images", self.skipped_images)):
            if count:
                entry[name] = count
        if self.saving.best is not None and self.saving.best not in entry and "loss" in entry:
            raise InputError(f"`keep_best` must be a figure of the log, one of {[*entry]}, got {self.saving.best!r}.")
        self.history.add(**entry)
        on_main(self.accelerator, self.history.write)
        self.trackers.add(entry)
        self.progress.tell(means)

    def _save(self, *, epoch_ends: bool) -> None:
        self._check()
        self._write(epoch_ends=epoch_ends)

    def _write(self, *, epoch_ends: bool) -> None:
        state = {
            "step": self.step,
            "epoch": self.step // self.plan.steps_per_epoch if epoch_ends else None,
            "run": self.identity,
            "meter": self.meter.state(self.accelerator),
            "skipped_steps": self.guard.skipped(),
            "skipped_images": self.skipped_images,
            "origin": self.origin,
            "versions": versions(),
            "score": None if self.saving.best is None else self.history.last(self.saving.best),
        }
        folder = self.out / "checkpoints"

        def save() -> None:
            self.history.sync()
            save_checkpoint(folder, self.method, self.optimizer, self.accelerator, state)
            self.saving.prune(folder)

        on_main(self.accelerator, save)

    def _check(self) -> None:
        """Whether the run may go on: this waits for the device."""
        if self.guard.ended():
            self._end_nonfinite()
        if self.max_bad_images > 0:
            self._count_unread()
            self._check_unread()

    def _end_nonfinite(self) -> None:
        """Save what was learnt before the bad step, write down its images, and raise."""
        self.step = int(self.guard.first)  # the guard has taken back this one and all after it
        ids = self.plan.ids(self.step)
        report = {"step": self.step, "epoch": self.plan.draw(self.step), "seed": self.plan.seed, "images": ids.tolist()}
        on_main(self.accelerator, lambda: (self.out / "nonfinite.json").write_text(json.dumps(report) + "\n"))
        self.guard.forget()
        self.unread = [(step, name) for step, name in self.unread if step < self.step]
        if self.max_bad_images > 0:
            self._count_unread()  # and no more: too many of them are not why the run ends
        self._write(epoch_ends=self.step > 0 and self.step % self.plan.steps_per_epoch == 0)
        raise FloatingPointError(
            f"an embedding, the loss or a gradient is not finite at step {self.step}; weights are those before it, its "
            f"images are in {self.out / 'nonfinite.json'}."
        )

    def _count_unread(self) -> None:
        """Add up over processes the images that could not be read, and name them in a file."""
        found = sorted(gather_object(self.unread))
        self.unread = []
        self.skipped_images += len(found)
        if found:
            on_main(self.accelerator, lambda: note_bad_images(self.out, found))

    def _check_unread(self) -> None:
        """Raise if more images than allowed could not be read."""
        # of the epochs begun, as within one they need not come evenly
        per_epoch = self.plan.steps_per_epoch
        limit = self.max_bad_images * -(-self.step // per_epoch) * per_epoch * self.plan.batch_size
        if self.skipped_images > max(limit, 1):
            raise InputError(
                f"`max_bad_images` is {self.max_bad_images:g} of all, {self.skipped_images} of "
                f"{self.step * self.plan.batch_size} could not be read; they are in {self.out / 'bad_images.txt'}."
            )
