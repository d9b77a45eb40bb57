"""The folder of a run: that it can be written, and what it says of how the run was started."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

from cl_train._errors import InputError


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


def write_config(out: Path, *, run: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Write `config.json`: what identifies the run, devices and versions."""
    text = {
        "run": dict(run),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
        },
    }
    (out / "config.json").write_text(json.dumps(text, indent=2, default=str) + "\n")
