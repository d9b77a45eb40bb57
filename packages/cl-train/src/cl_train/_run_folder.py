"""The folder of a run: that it can be written, and what it says of how the run was started."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from cl_train._errors import InputError

_BAD_IMAGES = "bad_images.txt"


def make_run_folder(out: Path) -> None:
    """Make the folder `out`, or raise.

    Raises:
        InputError: It cannot be made, or nothing can be written there.
    """
    trial = out / ".writable"
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"`out` must be a folder that can be written to, {out}: {error.strerror}.") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Within it no other run can use the folder. The system gives it back when the process dies, however it dies.

    Raises:
        InputError: Another run is using it.
    """
    lock, holder = FileLock(out / ".lock"), out / ".lock.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text() if holder.is_file() else "another process"
        raise InputError(f"`out` must be the folder of one run at a time, {out} is in use by {who}.") from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        # Before it is given back: afterwards it may be another run's, and a third one would make and hold a new file.
        with suppress(PermissionError):  # of Windows, where it stays
            (out / ".lock").unlink(missing_ok=True)
        lock.release()


def write_config(out: Path, *, run: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Write `config.json`: what identifies the run, devices and versions."""
    text = {
        "run": dict(run),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions(),
    }
    (out / "config.json").write_text(json.dumps(text, indent=2, default=str) + "\n")


@cache
def versions() -> dict[str, str]:
    """Of what a run is made by."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {n: version(n) for n in ("accelerate", "cl-train", "cl-augment", "cl-models", "cl-losses")}


def note_bad_images(out: Path, found: Iterable[tuple[int, str]]) -> None:
    """Append to `bad_images.txt`: the step, a tab, and the name, as the system spells it whatever the locale."""
    with (out / _BAD_IMAGES).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(_lines(found))


def forget_bad_images(out: Path, *, step: int, now: int) -> None:
    """Drop from `bad_images.txt` what steps from `step` on found, of a run that went on beyond its checkpoint.

    Where batches are others than before and `step` is counted as `now`, those that stay are counted as before that.
    """
    path = out / _BAD_IMAGES
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
    found = [(int(number), name) for number, name in (line.split("\t", 1) for line in lines)]
    kept = [(min(number, now - 1), name) for number, name in found if number < step]
    partial = path.with_suffix(".partial")
    partial.write_text(_lines(kept), encoding="utf-8", errors="surrogateescape")
    partial.replace(path)
    if not kept:
        path.unlink()


def _lines(found: Iterable[tuple[int, str]]) -> str:
    return "".join(f"{step}\t{name}\n" for step, name in found)
