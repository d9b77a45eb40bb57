"""Where a run begins: at nothing, or at the checkpoint that `resume` means, and a folder without what comes later."""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from cl_train._checkpoint import load_checkpoint, peek, read_state, save_checkpoint
from cl_train._checkpoint_folder import (
    find_checkpoint,
    list_checkpoints,
    origin_of,
    quarantine,
    remove_checkpoints,
)
from cl_train._config_file import did_you_mean
from cl_train._errors import InputError
from cl_train._fit import fitting_chunk
from cl_train._frozen import digest_of
from cl_train._launch import on_main
from cl_train._method import Method
from cl_train._plan import Plan
from cl_train._run_folder import forget_bad_images, write_config
from cl_train._settings import Settings


@dataclass(frozen=True)
class Start:
    """Where a run begins: a checkpoint or nothing, whose, what it held, the step, and what identifies the run."""

    checkpoint: Path | None
    origin: str | None
    state: dict[str, Any]
    step: int
    chunk_size: int
    identity: dict[str, Any]


def find_start(
    method: Method,
    plan: Plan,
    optimizer: Optimizer,
    accelerator: Accelerator,
    settings: Settings,
    out: Path,
    resume: str | Path,
    may_change: Collection[str],
    config: Mapping[str, Any],
) -> Start:
    """Fill the method and its optimiser from the checkpoint that `resume` means, if there is one."""
    _check_agreement(plan, accelerator)
    checkpoint = on_main(accelerator, lambda: find_checkpoint(resume, out=out))
    _check_shared(checkpoint, accelerator)
    saved: dict[str, Any] = {} if checkpoint is None else peek(checkpoint)["run"]
    chunk_size = settings.chunk_size
    if chunk_size == "auto":
        earlier = saved.get("chunk_size")
        skips = settings.max_bad_images > 0
        chunk_size = fitting_chunk(method, plan, accelerator, skip_unreadable=skips) if earlier is None else earlier
    groups = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    identity = dict(config) | plan.identity | settings.identity(chunk_size)
    identity |= {"mixed_precision": accelerator.mixed_precision}
    identity |= {"optimizer": type(optimizer).__name__, "optimizer_groups": groups}
    _check_names(may_change, identity.keys() | saved.keys())
    state: dict[str, Any] = {}
    if checkpoint is not None:
        state = read_state(checkpoint, run=identity, may_change=may_change)
        load_checkpoint(checkpoint, method=method, optimizer=optimizer, accelerator=accelerator)
    own = checkpoint is None or checkpoint.parent.resolve() == (out / "checkpoints").resolve()
    origin = state.get("origin") if own else origin_of(resume)
    return Start(checkpoint, origin, state, plan.step_of(state), chunk_size or plan.share, identity)


def _check_names(may_change: Collection[str], known: Set[str]) -> None:
    """Raise if a name is none of a setting: it would free nothing."""
    for name in sorted(set(may_change) - known):
        raise InputError(
            f"`may_change` must hold names of settings, {name!r} is none{did_you_mean(name, known) or '.'}"
        )


def check_new(out: Path) -> None:
    """Raise if another run was here between the first look and the lock."""
    if list_checkpoints(out / "checkpoints"):
        raise InputError(f"`out` must be the folder of one run at a time, another has just been in {out}.")


def tidy(method: Method, optimizer: Optimizer, out: Path, start: Start, accelerator: Accelerator) -> None:
    """Set aside what is damaged, remove what is of steps to come, and say how the run was started."""
    folder = out / "checkpoints"
    if start.checkpoint is not None and start.checkpoint.parent.resolve() == folder.resolve():
        quarantine(folder, newest=start.checkpoint)
        if start.step != start.state["step"]:
            # Other batches: steps are counted anew. Saved before the one that was loaded is removed as of a later step.
            state = start.state | {"step": start.step, "run": start.identity, "meter": {}}
            save_checkpoint(folder, method, optimizer, accelerator, state)
    remove_checkpoints(folder, after=start.step if start.checkpoint else -1)
    forget_bad_images(out, step=start.state.get("step", 0), now=start.step)
    if start.checkpoint is None:
        (out / "nonfinite.json").unlink(missing_ok=True)
    write_config(out, run=start.identity, accelerator=accelerator)


def _check_agreement(plan: Plan, accelerator: Accelerator) -> None:
    """Processes with other batches or other labels would each take its share of something else."""
    if accelerator.num_processes == 1:
        return
    targets = plan.dataset.targets(torch.arange(len(plan.dataset)))
    seen = plan.ids(0) if targets is None else torch.cat([plan.ids(0), targets.flatten().cpu()])
    number = torch.tensor([int(digest_of(seen)[:15], 16)], device=accelerator.device)
    if len(accelerator.gather(number).unique()) > 1:
        raise InputError("`dataset` and `sampler` must give all processes the same labels and batches, they differ.")


def _check_shared(checkpoint: Path | None, accelerator: Accelerator) -> None:
    """Processes that do not see the main one's checkpoint would start from other weights."""
    seen = checkpoint is None or (checkpoint / "state.json").is_file()
    seen_by = accelerator.gather(torch.tensor([seen], device=accelerator.device)).tolist()
    if not all(seen_by):
        missing = [process for process, sees in enumerate(seen_by) if not sees]
        raise InputError(f"`out` must be a folder that all processes share, {missing} do not see {checkpoint}.")
