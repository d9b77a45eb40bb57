"""Checkpoints of a run: one folder each, which is there whole or not at all."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from cl_train._errors import InputError

_PREFIX = "step-"


def save_checkpoint(
    folder: Path, method: nn.Module, optimizer: Optimizer, accelerator: Accelerator, state: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder/step-<n>`, then remove all but the newest `keep` of its kind.

    Written under another name and renamed, so a folder of this name is complete. Random numbers are functions of
    (seed, epoch, image) and need no saving.

    Args:
        folder: Folder of the checkpoints.
        method: Module with everything that was learnt.
        optimizer: Its optimiser.
        accelerator: Holds the gradient scaler under fp16.
        state: Plain numbers and text: steps taken ("step") and what the run was started with ("run").
        keep: Checkpoints to keep, >= 1.

    Returns:
        The new folder.
    """
    final = folder / f"{_PREFIX}{state['step']:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that died while it wrote
    partial.mkdir(parents=True)
    # clones, because safetensors refuses tensors that share memory
    weights = {name: tensor.contiguous().clone() for name, tensor in method.state_dict().items()}
    save_file(weights, partial / "method.safetensors")
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    if accelerator.scaler is not None:
        torch.save(accelerator.scaler.state_dict(), partial / "scaler.pt")
    state = state | {"sha256": {file.name: _digest(file) for file in sorted(partial.iterdir())}}
    (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "state.json").is_file())


def find_checkpoint(resume: str | Path, *, out: Path) -> Path | None:
    """The checkpoint that `resume` means.

    Args:
        resume: "auto": the newest of the run in `out`, if any; "never": none; else a checkpoint, or a run's folder.
        out: The run's folder.

    Returns:
        A checkpoint folder, or None to start from the beginning.

    Raises:
        InputError: `resume` is a path without a checkpoint, or of another run than the one that `out` already holds.
    """
    if resume == "never":
        return None
    if resume == "auto":
        found = list_checkpoints(out / "checkpoints")
        return found[-1] if found else None
    path = Path(resume)
    found = [path] if (path / "state.json").is_file() else list_checkpoints(path / "checkpoints")
    if not found:
        raise InputError(f"`resume` must be 'auto', 'never', a checkpoint or the folder of a run, got {path}.")
    own = list_checkpoints(out / "checkpoints")
    if own and found[-1].parent.resolve() != own[-1].parent.resolve():
        raise InputError(f"`out` must have no checkpoints of its own to go on from {path}, {out} has {len(own)}.")
    return found[-1]


def read_state(checkpoint: Path, *, run: dict[str, Any]) -> dict[str, Any]:
    """The saved state, after checking that the files are as they were written, and of the same run.

    Raises:
        InputError: A file is damaged or missing, or the run was started with other settings.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except ValueError as error:
        raise InputError(f"{checkpoint}/state.json is damaged: {error}.") from error
    for name, digest in state["sha256"].items():
        if not (checkpoint / name).is_file() or _digest(checkpoint / name) != digest:
            raise InputError(f"{checkpoint}/{name} is damaged or missing: resume from another checkpoint.")
    here = json.loads(json.dumps(run, default=str))  # as it looks when it comes from a file: tuples are lists
    for name in sorted(here.keys() | state["run"].keys()):
        there = state["run"].get(name)
        if there != here.get(name):
            raise InputError(
                f"{checkpoint} is of a run with {name}={there}, this one has {name}={here.get(name)}: give that value, "
                "another `out`, or resume 'never'."
            )
    return state


def load_checkpoint(checkpoint: Path, *, method: nn.Module, optimizer: Optimizer, accelerator: Accelerator) -> None:
    """Fill a method and its optimiser from a checkpoint that `read_state` has accepted.

    Raises:
        InputError: The checkpoint is of another architecture.
    """
    weights = load_file(checkpoint / "method.safetensors")
    expected = {name: tuple(t.shape) for name, t in method.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if expected.get(name) != found:
            raise InputError(
                f"{checkpoint} does not fit the method: {name} has shape {found} there, {expected.get(name)} here."
            )
    method.load_state_dict(weights)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    if accelerator.scaler is not None and (checkpoint / "scaler.pt").is_file():
        accelerator.scaler.load_state_dict(torch.load(checkpoint / "scaler.pt", weights_only=True))


def remove_checkpoints(folder: Path, *, after: int) -> None:
    """Remove those of later steps: a run that goes on from an earlier one leaves them behind."""
    for checkpoint in list_checkpoints(folder):
        if int(checkpoint.name.removeprefix(_PREFIX)) > after:
            shutil.rmtree(checkpoint)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
