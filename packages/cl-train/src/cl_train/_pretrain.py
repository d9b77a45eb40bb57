"""The loop: any method, any data set, one process or many."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from cl_train._checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
)
from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._history import History
from cl_train._lars import LARS, lars_groups
from cl_train._launch import MixedPrecision, check_accelerator, make_accelerator
from cl_train._meter import Meter
from cl_train._method import Method
from cl_train._plan import Plan
from cl_train._progress import Progress
from cl_train._run_folder import make_run_folder, write_config
from cl_train._schedule import scaled_lr, warmup_cosine
from cl_train._step import train_step


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
    """

    encoder: nn.Module
    history: list[dict[str, Any]]
    out: Path
    checkpoint: Path | None
    steps: int
    seconds: float


def pretrain(
    method: Method,
    dataset: ImageDataset,
    *,
    epochs: int,
    batch_size: int,
    out: str | Path,
    optimizer: Optimizer | None = None,
    warmup_epochs: float | None = None,
    seed: int = 0,
    resume: str | Path = "auto",
    workers: int | None = None,
    mixed_precision: MixedPrecision = "auto",
    max_steps: int | None = None,
    sync_batchnorm: bool = True,
    log_every: int = 50,
    keep_checkpoints: int = 2,
    config: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> PretrainResult:
    """Train a method on images, on one process or on as many as the launcher started.

    Each step makes the views of a batch, embeds all of them in one forward, and follows the gradient of the loss over
    the batch of all processes. Which images make a batch and how they are augmented is a function of
    (seed, epoch, image), so neither the number of processes nor of workers nor a restart changes them.

    Learning rates rise linearly for `warmup_epochs` from 0 to the optimiser's own, then fall along a cosine to 0 at
    the end of `epochs`. A checkpoint is written at the end of each epoch. `out` receives `metrics.jsonl`,
    `config.json` and `checkpoints/`.

    Args:
        method: What to train, such as `SimCLR`. Trained in place; its weights are the caller's, and must be equal on
            all processes.
        dataset: Images; labels are used by a method's probe only.
        epochs: Passes over the data, >= 1.
        batch_size: Images per step over all processes, >= 2 and a multiple of the number of processes. What does not
            fill a batch at the end of an epoch is left out.
        out: Folder of the run, made if needed.
        optimizer: Made from `method`'s parameters; by default SimCLR's LARS with learning rate 0.3 batch_size / 256
            and weight decay 1e-6 (arXiv:2002.05709, section 2.3).
        warmup_epochs: In [0, epochs]; None: the paper's 10, or a tenth of `epochs` if that is less.
        seed: Seed of the order of the images and of their views, >= 0.
        resume: "auto" goes on from the newest checkpoint in `out`, if there is one; "never" begins anew and removes
            them; a path is a checkpoint or a run's folder to go on from.
        workers: Worker processes per process that read images which are not in memory; None: one for each core, at
            most 8.
        mixed_precision: "auto": bf16 where the device has it natively, else float32; "no", "bf16", "fp16".
        max_steps: Stop after so many steps of the whole run, >= 1; the schedule stays that of `epochs`.
        sync_batchnorm: On several CUDA processes, let BatchNorm see all of them. Local statistics would tell which
            rows belong together.
        log_every: Steps between entries of the log, >= 1; the end of each epoch is always one.
        keep_checkpoints: Newest checkpoints to keep, >= 1.
        config: The caller's own settings, for `config.json`. A run goes on only where they are the same, so leave out
            what may change in between, such as paths.
        accelerator: By default `make_accelerator(mixed_precision)`.
        progress: Whether the main process shows a progress bar.

    Returns:
        The trained encoder and what was logged.

    Raises:
        InputError: Something that was handed over cannot be used. Raised before the first step and before anything is
            written, but for what only the first batch or the decoding of a file can tell.
        FloatingPointError: The loss is not finite.
        ValueError: The loss refuses what it is given; those of cl-losses refuse embeddings that are not finite.
    """
    accelerator = make_accelerator(mixed_precision) if accelerator is None else accelerator
    check_accelerator(accelerator)
    warmup_epochs = min(10.0, epochs / 10) if warmup_epochs is None else warmup_epochs
    _check_counts(warmup_epochs, epochs, workers, max_steps, log_every, keep_checkpoints)
    plan = Plan(dataset, batch_size, epochs, seed, accelerator.process_index, accelerator.num_processes)
    if optimizer is None:
        optimizer = LARS(lars_groups(method, weight_decay=1e-6), scaled_lr(0.3, batch_size))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    run = _identity(plan, optimizer, warmup_epochs, config)
    out = Path(out)
    checkpoint, start = find_checkpoint(resume, out=out), 0
    if checkpoint is not None:
        start = read_state(checkpoint, run=run)["step"]
        load_checkpoint(checkpoint, method=method, optimizer=optimizer, accelerator=accelerator)
    _check_agreement(start, accelerator)
    make_run_folder(out)  # the last thing that can be refused
    if accelerator.is_main_process:
        remove_checkpoints(out / "checkpoints", after=start if checkpoint else -1)
        write_config(out, run=run, accelerator=accelerator)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():  # it rewrites the file that the others then read
        history = History(out / "metrics.jsonl", step=start, write=accelerator.is_main_process)

    model, prepared = _prepare(method, optimizer, accelerator, sync_batchnorm=sync_batchnorm)
    last = plan.total_steps if max_steps is None else min(max_steps, plan.total_steps)
    warmup_steps = round(warmup_epochs * plan.steps_per_epoch)
    shown = Progress(total=last, done=start, title="pretrain", visible=progress and accelerator.is_main_process)
    optimizer.zero_grad()  # of what the caller may have computed with it
    meter, began = Meter(), time.monotonic()
    for step, batch in plan.batches(start, last, method=method, workers=workers, device=accelerator.device):
        factor = warmup_cosine(step, warmup_steps=warmup_steps, total_steps=plan.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        meter.add(train_step(method, model, prepared, batch, accelerator), images=batch_size)
        shown.step()
        done = step + 1
        pause = done % plan.steps_per_epoch == 0 or done == last
        if pause or done % log_every == 0:
            means = meter.fetch(accelerator)
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(f"the loss is {means['loss']} at step {done}.")
            history.add(step=done, epoch=done / plan.steps_per_epoch, lr=optimizer.param_groups[0]["lr"], **means)
            shown.tell(" ".join(f"{name} {value:.4g}" for name, value in means.items()))
        if pause:
            if accelerator.is_main_process:
                state = {"step": done, "run": run}
                save_checkpoint(out / "checkpoints", method, optimizer, accelerator, state, keep=keep_checkpoints)
            accelerator.wait_for_everyone()
    shown.close()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # gives `method` its own forward back
    _share_buffers(method, accelerator)
    seconds = time.monotonic() - began if start < last else 0.0
    newest = find_checkpoint("auto", out=out)
    return PretrainResult(method.encoder, history.entries, out, newest or checkpoint, max(start, last), seconds)


def _prepare(
    method: Method, optimizer: Optimizer, accelerator: Accelerator, *, sync_batchnorm: bool
) -> tuple[nn.Module, Optimizer]:
    """The method on its device, wrapped for several processes and for the precision, and its optimiser."""
    if sync_batchnorm and accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(method)  # in place; the parameters stay the same objects
    # NHWC: convolutions are faster so on tensor cores, and twice as fast in float32 on a CPU.
    method.to(memory_format=torch.channels_last).train()
    return accelerator.prepare(method, optimizer)


def _identity(
    plan: Plan, optimizer: Optimizer, warmup_epochs: float, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What must be equal for a run to go on from another's checkpoint."""
    groups = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    settings = {"warmup_epochs": warmup_epochs, "optimizer": type(optimizer).__name__, "optimizer_groups": groups}
    return dict(config or {}) | plan.identity | settings


def _check_agreement(start: int, accelerator: Accelerator) -> None:
    """Processes that went on from different steps would train on, paired wrongly, without an error."""
    starts = accelerator.gather(torch.tensor([start], device=accelerator.device)).tolist()
    if len(set(starts)) > 1:
        raise InputError(f"`out` must be a folder that all processes share, they found checkpoints of steps {starts}.")


def _share_buffers(method: Method, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers: BatchNorm's running statistics are those of a process's own share."""
    if accelerator.num_processes > 1:
        for buffer in method.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _check_counts(
    warmup_epochs: float, epochs: int, workers: int | None, max_steps: int | None, log_every: int, keep_checkpoints: int
) -> None:
    for name, least, value in (
        ("epochs", 1, epochs),
        ("warmup_epochs", 0, warmup_epochs),
        ("workers", 0, workers),
        ("max_steps", 1, max_steps),
        ("log_every", 1, log_every),
        ("keep_checkpoints", 1, keep_checkpoints),
    ):
        if value is not None and value < least:
            raise InputError(f"`{name}` must be at least {least}, got {value}.")
    if warmup_epochs > epochs:
        raise InputError(f"`warmup_epochs` must be at most `epochs`, {epochs}, got {warmup_epochs:g}.")
