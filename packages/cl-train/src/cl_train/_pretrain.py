"""The loop: any method, any data set, one process or many."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from cl_train._begin import begin
from cl_train._checkpoint_folder import find_checkpoint
from cl_train._datasets import ImageDataset
from cl_train._finite import OnNonfinite
from cl_train._lars import LARS, lars_groups
from cl_train._launch import MixedPrecision, check_accelerator, make_accelerator, on_main
from cl_train._method import Method
from cl_train._norms import Statistics, share_statistics
from cl_train._plan import Plan, Sampler
from cl_train._run_folder import locked, make_run_folder
from cl_train._schedule import scaled_lr
from cl_train._settings import ChunkSize, Settings
from cl_train._start import check_new, find_start, tidy
from cl_train._step import Compile
from cl_train._trackers import Tracker, check_trackers
from cl_train._watch import Health


@dataclass(frozen=True)
class PretrainResult:
    """What a run leaves.

    Attributes:
        encoder: The trained encoder, on the device it was trained on.
        history: Entries of `metrics.jsonl`: step, epoch (passes so far), lr, the method's metrics ("loss" in nats),
            images_per_second over all processes.
        out: Folder of the run.
        checkpoint: The newest checkpoint, or the one that was resumed.
        steps: Optimiser steps since the beginning of the run.
        seconds: Time in the loop of this call, checkpoints included; 0 when the run was finished already.
        skipped_steps: Steps that were taken back because a number was not finite.
        skipped_images: Images that could not be read, over all processes.
    """

    encoder: nn.Module
    history: list[dict[str, Any]]
    out: Path
    checkpoint: Path | None
    steps: int
    seconds: float
    skipped_steps: int
    skipped_images: int


def pretrain(
    method: Method,
    dataset: ImageDataset,
    *,
    epochs: int,
    batch_size: int,
    out: str | Path,
    chunk_size: ChunkSize = None,
    accumulate: int = 1,
    batchnorm: Statistics = "sync",
    optimizer: Optimizer | None = None,
    sampler: Sampler | None = None,
    warmup_epochs: float | None = None,
    seed: int = 0,
    resume: str | Path = "auto",
    may_change: Collection[str] = (),
    workers: int | None = None,
    mixed_precision: MixedPrecision = "auto",
    compile: Compile = "no",
    max_steps: int | None = None,
    log_every: int = 50,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    keep_every: int | None = None,
    keep_best: str | None = None,
    on_nonfinite: OnNonfinite = "stop",
    max_bad_images: float = 0.0,
    health: Health = "warn",
    trackers: Collection[Tracker] = (),
    config: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    title: str = "pretrain",
) -> PretrainResult:
    """Train a method on images, on one process or on as many as the launcher started.

    Each step makes the views of a batch, embeds them, and follows the gradient of the loss over the batch of all
    processes. Which images make a batch and how they are augmented is a function of (seed, epoch, image), so neither
    the number of processes nor of workers nor a restart changes them.

    Learning rates rise linearly for `warmup_epochs` from 0 to the optimiser's own, then fall along a cosine to 0 at the
    end of `epochs`. Epochs have len(dataset) // batch_size steps; the authors' code, which fills the last batch of an
    epoch from the next, takes len(dataset) * epochs // batch_size + 1. `out` receives `metrics.jsonl`, `config.json`
    and `checkpoints/`. On SIGTERM, SIGINT or SIGUSR1 all processes end after the same step and save; the same call goes
    on from there, to the same weights as without the interruption.

    **Large batches.** With `chunk_size` the network sees at most so many images at a time, while the loss sees all of
    the batch: memory is that of a chunk, time at most 4/3 of a step that fits. What comes from a chunk rather than
    from the batch are the statistics of BatchNorm, unless `batchnorm="global"`, and the numbers of random layers.
    `accumulate` is the other way to a large step; it adds no negatives, as each part has a loss of its own.

    Args:
        method: What to train, such as `SimCLR`. Trained in place; its weights are the caller's, and must be equal on
            all processes.
        dataset: Images; what labels are used for, if anything, is the method's.
        epochs: Passes over the data, >= 1.
        batch_size: Images per step over all processes, >= 2 and a multiple of the number of processes. What does not
            fill a batch at the end of an epoch is left out.
        out: Folder of the run, made if needed. One run at a time.
        chunk_size: Images of one process that go through the network at once, >= 1; None: all of its share; "auto":
            as many as fit into three quarters of the memory that is free.
        accumulate: Parts of a step, >= 1, whose losses are averaged. Divides the share of a process.
        batchnorm: Whose statistics BatchNorm normalises by in training. "sync": of a chunk, over all processes;
            "local": of a chunk on its own process, which tells which rows belong together; "global": of the whole
            batch, exactly, by computing each chunk again for each layer (see the documentation for what that costs).
            Running statistics move once per step, with the first chunk's (of the main process) or, if global, with
            the batch's; BYOL's once a view.
        optimizer: Made from `method`'s parameters; by default SimCLR's LARS with learning rate 0.3 batch_size / 256
            and weight decay 1e-6 (arXiv:2002.05709, section 2.3).
        sampler: `step -> numbers of its images`, int64, (batch_size,), over all processes, none twice, such as
            `DomainBatches`; None: each epoch is a random permutation. It must depend on the step alone, so that a run
            can go on; a digest of its first batches is kept in `config.json`. Epochs are then counted by steps, and
            views are drawn by the step.
        warmup_epochs: In [0, epochs]; None: the paper's 10, or a tenth of `epochs` if that is less.
        seed: Seed of the order of the images, of their views and of random layers, >= 0.
        resume: "auto" goes on from the newest checkpoint in `out` that is whole, if there is one; "never" begins anew
            and removes them; a path is a checkpoint or a run's folder to go on from.
        may_change: Names of settings in `config.json` that may differ from those of the checkpoint, such as
            "processes", "batch_size", "chunk_size"; the run then goes on, but is no longer the one it was.
        workers: Worker processes per process that read images which are not in memory; None: one for each core, at
            most 8.
        mixed_precision: "auto": bf16 where the device has it natively, else float32; "no", "bf16", "fp16".
        compile: "views": what makes the views by torch.compile; "all": the network too.
        max_steps: Stop after so many steps of the whole run, >= 1; the schedule stays that of `epochs`.
        log_every: Steps between entries of the log, >= 1; the end of each epoch is always one.
        checkpoint_every: Steps between checkpoints, >= 1; the end of each epoch is always one.
        keep_checkpoints: Newest checkpoints to keep, >= 2.
        keep_every: Also keep those at the end of every so many epochs, >= 1.
        keep_best: Also keep the one with the highest value of this metric, such as "probe_top1".
        on_nonfinite: What to do when an embedding, the loss or a gradient is not finite, on any process. The step is
            taken back on all of them, and "stop" ends the run with the weights before it, its images written to
            `nonfinite.json`; "skip" counts it and goes on.
        max_bad_images: Share of the images of the epochs begun that may be unreadable, in [0, 1). At 0 the first one
            ends the run, by name; above, they are left out of their batches, counted, and written to `bad_images.txt`
            with the step.
        health: "warn" logs figures of the last step of each epoch that show whether the method is well, looks for
            images that are in the data set more than once, and gives a `HealthWarning` on the main process for each
            kind of trouble, once; "stop" also ends the run, saved, where trouble holds at the ends of two epochs, or at
            once for duplicated images and for negatives of each process's own; "off" does nothing.
        trackers: Where each entry of the log is sent too, once, also after a resume, with the settings in
            `config.json`: any of "tensorboard" (files in `out/tensorboard`), "wandb" and "trackio", extras of this
            package.
        config: The caller's own settings, for `config.json`. A run goes on only where they are the same, but for those
            in `may_change`.
        accelerator: By default `make_accelerator(mixed_precision)`.
        progress: Whether the main process shows a progress bar.
        title: What the progress bar calls the run.

    Returns:
        The trained encoder and what was logged.

    Raises:
        InputError: Something that was handed over cannot be used. Raised before the first step and before anything is
            written, but for what only the first batch or the decoding of a file can tell.
        InputError: During the run, on all processes: the folder cannot be written, or too many images cannot be read.
        Interrupted: The run was asked to stop, and has saved.
        FloatingPointError: A number was not finite.
        UnhealthyRun: The run is ill, and `health` is "stop".
    """
    accelerator = make_accelerator(mixed_precision) if accelerator is None else accelerator
    check_accelerator(accelerator)
    settings = Settings(
        epochs=epochs,
        chunk_size=chunk_size,
        accumulate=accumulate,
        batchnorm=batchnorm,
        warmup_epochs=min(10.0, epochs / 10) if warmup_epochs is None else warmup_epochs,
        workers=workers,
        compile=compile,
        max_steps=max_steps,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        keep_every=keep_every,
        keep_best=keep_best,
        on_nonfinite=on_nonfinite,
        max_bad_images=max_bad_images,
        health=health,
    )
    on_main(accelerator, lambda: check_trackers(trackers))
    plan = Plan(dataset, batch_size, epochs, seed, accelerator.process_index, accelerator.num_processes, sampler)
    settings.check_split(plan)
    if optimizer is None:
        optimizer = LARS(lars_groups(method, weight_decay=1e-6), scaled_lr(0.3, batch_size))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    out = Path(out)
    last = plan.total_steps if max_steps is None else min(max_steps, plan.total_steps)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda(accelerator)))
        # Held before it is looked at, as a run that is about to end there still writes and removes checkpoints.
        exists = on_main(accelerator, out.is_dir)
        if exists:
            stack.enter_context(_holding(out, accelerator))
        start = find_start(method, plan, optimizer, accelerator, settings, out, resume, may_change, config or {})
        accelerator.wait_for_everyone()  # until all have read what is about to be tidied up
        if not exists:
            stack.enter_context(_holding(out, accelerator))
            on_main(accelerator, lambda: check_new(out))
        on_main(accelerator, lambda: tidy(method, optimizer, out, start, accelerator))
        model, prepared = stack.enter_context(_prepared(method, optimizer, accelerator, settings))
        visible = progress and accelerator.is_main_process
        run = begin(
            method,
            plan,
            model,
            prepared,
            accelerator,
            settings,
            out,
            start,
            last,
            trackers,
            visible=visible,
            title=title,
        )
        began = time.monotonic()
        try:
            run.train(last, workers=workers)
        finally:
            run.progress.close()
            run.trackers.close()
        seconds = time.monotonic() - began if start.step < last else 0.0
        _share_buffers(method, accelerator)
        newest = on_main(accelerator, lambda: find_checkpoint("auto", out=out))
    return PretrainResult(
        encoder=method.encoder,
        history=run.history.entries,
        out=out,
        checkpoint=newest or start.checkpoint,
        steps=max(start.step, last),
        seconds=seconds,
        skipped_steps=run.guard.skipped(),
        skipped_images=run.skipped_images,
    )


@contextmanager
def _prepared(
    method: Method, optimizer: Optimizer, accelerator: Accelerator, settings: Settings
) -> Iterator[tuple[nn.Module, AcceleratedOptimizer]]:
    """The method on its device, wrapped for several processes and for the precision, and its optimiser."""
    # NHWC: convolutions are faster so on tensor cores, and twice as fast in float32 on a CPU.
    method.to(accelerator.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if settings.batchnorm == "sync":
        share_statistics(method, processes=accelerator.num_processes)
    if settings.compile == "all":
        method.encoder.compile()
    prepared = accelerator.prepare(method, optimizer)
    try:
        yield prepared
    finally:  # the method gets its own forward back
        # Accelerate keeps what it has prepared: weights and momentum of each run of a script with several.
        for kept, ours in zip((accelerator._models, accelerator._optimizers), prepared, strict=True):
            kept[:] = [each for each in kept if each is not ours]
        accelerator.unwrap_model(method, keep_fp32_wrapper=False)
        # Accelerate leaves a mark, for which it would not put the next run of this method under autocast.
        vars(method).pop("_is_accelerate_prepared", None)


@contextmanager
def _holding(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """The run folder for this run alone; what the main process is refused, all are."""
    with ExitStack() as stack:

        def take() -> None:
            make_run_folder(out)
            stack.enter_context(locked(out))

        on_main(accelerator, take)
        yield


def _share_buffers(method: Method, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers: BatchNorm's running statistics are those of a process's own share."""
    if accelerator.num_processes > 1:
        for buffer in method.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _cuda(accelerator: Accelerator) -> list[torch.device]:
    return [accelerator.device] if accelerator.device.type == "cuda" else []
