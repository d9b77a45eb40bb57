"""A checkpoint: a folder that is there whole or not at all, and that shows when it was damaged."""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from cl_train._errors import InputError

_MANIFEST = "manifest.json"
_KINDS = {"method.safetensors", "optimizer.pt", "state.json"}  # and the scaler's, under fp16
# what safetensors and torch say of files that are not theirs, cut short, or ask for code to be run
_UNREADABLE = (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError)


def save_checkpoint(
    folder: Path, method: nn.Module, optimizer: Optimizer, accelerator: Accelerator, state: dict[str, Any]
) -> Path:
    """Write `folder/step-<n>`.

    Written under another name, with the SHA-256 of every file in a manifest, forced to the disk, and renamed: a folder
    of this name is complete, and damage shows. Random numbers are functions of (seed, epoch, image) and need no saving.

    Args:
        folder: Folder of the checkpoints.
        method: Module with everything that was learnt.
        optimizer: Its optimiser.
        accelerator: Holds the gradient scaler under fp16.
        state: Plain numbers and text: steps taken ("step"), what the run was started with ("run"), and more.

    Returns:
        The new folder.

    Raises:
        OSError: It cannot be written; what was written of it is removed, older checkpoints are as they were.
    """
    final = folder / f"step-{state['step']:08d}"
    if damage(final) is None and peek(final) == as_read(state):
        return final  # what there is needs no replacing
    partial, replaced = (folder / f".{final.name}.{suffix}" for suffix in ("partial", "replaced"))
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _sync(folder.parent)
        discard(partial)  # of a run that died while it wrote
        partial.mkdir()
        contents = _contents(method, optimizer, accelerator, state)
        manifest = {name: _write(partial / name, content) for name, content in contents}
        _write(partial / _MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        _sync(partial)
        if os.path.lexists(final):  # of the same step and other settings; `find_checkpoint` knows the other name too
            discard(replaced)
            final.rename(replaced)
        partial.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final} cannot be written, earlier ones are as they were: {error}") from error
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    name = _MANIFEST
    try:
        manifest = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not manifest.keys() >= _KINDS:
            return f"{name} is not what was written"
        for name, digest in manifest.items():
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror}"
    except ValueError:
        return f"{name} is not what was written"
    return None


def peek(checkpoint: Path) -> dict[str, Any]:
    """The saved state as it is."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def read_state(checkpoint: Path, *, run: dict[str, Any], may_change: Collection[str] = ()) -> dict[str, Any]:
    """The saved state, after checking that it is of the same run.

    Args:
        checkpoint: From `find_checkpoint`.
        run: What this run is started with.
        may_change: Names of settings that may differ.

    Raises:
        InputError: The run was started with other settings.
    """
    state = peek(checkpoint)
    here = as_read(run)
    for name in sorted((here.keys() | state["run"].keys()) - set(may_change)):
        there = state["run"].get(name)
        if there != here.get(name):
            raise InputError(
                f"{checkpoint} is of a run with {name}={there}, this one has {name}={here.get(name)}: give that value, "
                "another `out`, or resume 'never'."
            )
    return state


def load_checkpoint(checkpoint: Path, *, method: nn.Module, optimizer: Optimizer, accelerator: Accelerator) -> None:
    """Fill a method and its optimiser from a checkpoint that `read_state` has accepted, or leave both as they were.

    Raises:
        InputError: The checkpoint is of another architecture, or not what `save_checkpoint` writes.
    """
    try:
        weights = safetensors.torch.load_file(checkpoint / "method.safetensors")
        saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        scaler = torch.load(checkpoint / "scaler.pt", weights_only=True) if _has_scaler(checkpoint) else None
    except _UNREADABLE as error:
        raise InputError(f"{checkpoint} is not what a run writes: {str(error).splitlines()[0]}") from error
    expected = {name: tuple(t.shape) for name, t in method.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if expected.get(name) != found:
            raise InputError(
                f"{checkpoint} does not fit the method: {name} has shape {found} there, {expected.get(name)} here."
            )
    _fill(optimizer, saved, started=peek(checkpoint)["run"].get("optimizer_groups", []))
    method.load_state_dict(weights)
    if accelerator.scaler is not None and scaler is not None:
        accelerator.scaler.load_state_dict(scaler)


def as_read(settings: Any) -> Any:
    """As they look when they come from a file: tuples are lists."""
    return json.loads(json.dumps(settings, default=str))


def discard(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fill(optimizer: Optimizer, saved: dict[str, Any], *, started: list[dict[str, Any]]) -> None:
    """Load the state; what a group was made with otherwise than in that run (`read_state` allows it) stays."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, settings, earlier in zip(optimizer.param_groups, own, started, strict=False):
        for name in settings.keys() - {"lr"}:  # which the schedule sets
            if name not in earlier or as_read(settings[name]) != earlier[name]:
                group[name] = settings[name]


def _has_scaler(checkpoint: Path) -> bool:
    return (checkpoint / "scaler.pt").is_file()


def _contents(
    method: nn.Module, optimizer: Optimizer, accelerator: Accelerator, state: dict[str, Any]
) -> Iterator[tuple[str, bytes | memoryview]]:
    """Name and content of each file of a checkpoint, but for the manifest."""
    # copies, because safetensors refuses tensors that share memory
    weights = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in method.state_dict().items()
    }
    yield "method.safetensors", safetensors.torch.save(weights)
    yield "optimizer.pt", _bytes_of(optimizer.state_dict())
    if accelerator.scaler is not None:
        yield "scaler.pt", _bytes_of(accelerator.scaler.state_dict())
    yield "state.json", (json.dumps(state, indent=2, default=str) + "\n").encode()


def _bytes_of(state: dict[str, Any]) -> memoryview:
    # torch's and safetensors' own files would report a full disk as errors of many kinds
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _write(file: Path, content: bytes | memoryview) -> str:
    """Write a file, force it to the disk, and return its SHA-256."""
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    return hashlib.sha256(content).hexdigest()


def _sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
