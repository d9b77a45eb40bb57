"""The log, sent also to where a person watches many runs: TensorBoard, Weights & Biases, Trackio."""

import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from cl_train._errors import InputError

Tracker = Literal["tensorboard", "wandb", "trackio"]
_PROJECT = "cl-train"


def check_trackers(names: Collection[str]) -> None:
    """Raise unless each is one of the three, and installed.

    Raises:
        InputError: One is not.
    """
    for name in names:
        if name not in get_args(Tracker):
            allowed = ", ".join(map(repr, get_args(Tracker)))
            raise InputError(f"`trackers` must be of {allowed}, got {name!r}.")
        spec = importlib.util.find_spec(name)
        # without an origin it is a folder of that name, such as the one wandb leaves where it has run
        if spec is None or spec.origin is None:
            raise InputError(f"`trackers` asks for {name!r}, which is not installed: pip install 'cl-train[{name}]'.")


class Trackers:
    """Sends each entry of a run's log once, also after a resume; for the main process.

    `trackers.json` in the run's folder says what has been sent where. A run that goes on from before the newest entry
    sent makes the same entries again, and they are not sent again. If its settings have changed it makes others, and
    a new run is begun at the tracker, with the log up to here: what was sent cannot be taken back everywhere.

    What a tracker still held when the process was killed is lost there.

    Args:
        names: Trackers that `check_trackers` has accepted.
        out: The run's folder; TensorBoard's files go to `out/tensorboard`, wandb's to `out/wandb`, and Trackio's where
            `trackio show` looks for them.
        config: Settings, nested; sent as plain values, once.
        step: Steps taken so far, 0 at the beginning.
        entries: The log so far.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        out: Path,
        config: Mapping[str, Any],
        step: int,
        entries: Sequence[Mapping[str, Any]],
    ) -> None:
        self.path = out / "trackers.json"
        self.started: dict[str, GeneralTracker] = {}
        self.closing = ExitStack()
        self.runs: dict[str, dict[str, Any]] = _read(self.path) if step > 0 else {}
        settings, name_of_new = flatten(config), _name(out)
        with ExitStack() as undo:
            undo.callback(self.close)
            for name in dict.fromkeys(names):
                run = self.runs.get(name)
                if run is None or (run["config"] != settings and run["step"] > step):
                    self.runs[name] = {"run": name_of_new, "step": 0, "config": settings}
                    self._start(name, out).store_init_configuration(settings)
                else:
                    self.runs[name] = run | {"config": settings}
                    self._start(name, out)
            for entry in entries:
                self.add(entry)
            self._write()
            undo.pop_all()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Send an entry to those that do not have it."""
        step = entry["step"]
        behind = [name for name in self.started if self.runs[name]["step"] < step]
        values = {name: value for name, value in entry.items() if name != "step"}
        for name in behind:
            # wandb otherwise holds a step back until the next, and a run that is killed loses it
            self.started[name].log(values, step=step, **({"commit": True} if name == "wandb" else {}))
            self.runs[name]["step"] = step
        if behind:
            self._write()

    def close(self) -> None:
        """Let each send what it still holds back."""
        self.started.clear()
        self.closing.close()

    def _start(self, name: str, out: Path) -> GeneralTracker:
        tracker = _start(name, self.runs[name]["run"], out)
        self.closing.callback(tracker.finish)
        self.started[name] = tracker
        return tracker

    def _write(self) -> None:
        if self.started:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.runs, indent=2) + "\n")
            partial.replace(self.path)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What has been sent where; nothing if that cannot be read, as after a power cut: then it is a new run there."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def flatten(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Nested settings as plain values under dotted names; what is neither a number nor text becomes text.

    >>> flatten({"lr": 0.3, "groups": [{"decay": 0.0}], "data": None})
    {'lr': 0.3, 'groups.0.decay': 0.0, 'data': 'None'}
    """
    flat: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in flatten({str(k): v for k, v in value.items()}).items()}
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _start(name: str, run: str, out: Path) -> GeneralTracker:
    """The tracker of that name, going on with the run if it knows it."""
    if name == "tensorboard":
        tracker = TensorBoardTracker(run, out / "tensorboard")
    elif name == "wandb":
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        tracker = WandBTracker(project, id=run, name=run, resume="allow", dir=str(out))
    else:
        tracker = TrackioTracker(_PROJECT, name=run, resume="allow")
    tracker.start()
    return tracker


def _name(out: Path) -> str:
    """A name for a new run that no other has: that of its folder, the time, and some chance."""
    folder = re.sub(r"[^\w.-]", "-", out.resolve().name)
    return f"{folder}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
