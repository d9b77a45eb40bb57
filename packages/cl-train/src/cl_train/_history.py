"""The log of a run: one line of JSON per entry, each step once, also after a resume."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cl_train._errors import InputError


class History:
    """Entries in `metrics.jsonl`, in memory and on disk.

    Args:
        path: The file.
        step: Last step that counts: entries after it, of a run that went on beyond the checkpoint that is resumed, are
            dropped. 0 begins anew.
        per_epoch: Steps in an epoch; entries of a run with other batches are counted in these, the last of those with
            one number stays.

    Raises:
        InputError: A line of the file is not what was written.
    """

    def __init__(self, path: Path, *, step: int, per_epoch: int) -> None:
        self.path = path
        self.entries = _read(path, step=step, per_epoch=per_epoch) if path.exists() and step > 0 else []
        self.written = 0

    def begin(self) -> None:
        """Drop from the file what does not count. This and what else writes is for the main process only.

        Raises:
            OSError: It cannot be written.
        """
        # under another name first: a process that dies here would leave half of the log
        partial = self.path.with_name(f".{self.path.name}.partial")
        with _named(self.path):
            partial.write_text("".join(map(_line, self.entries)))
            _sync(partial)
            partial.replace(self.path)
        self.written = len(self.entries)

    def add(self, **entry: float | int) -> None:
        """Note one entry, for the next `write`; it must hold `step`."""
        self.entries.append(entry)

    def write(self) -> None:
        """Append to the file what it lacks.

        Raises:
            OSError: It cannot be written.
        """
        with _named(self.path), self.path.open("a") as file:
            file.writelines(map(_line, self.entries[self.written :]))
        self.written = len(self.entries)

    def sync(self) -> None:
        """Force the file to the disk: a checkpoint must not outlast the log before it.

        Raises:
            OSError: It cannot be written.
        """
        with _named(self.path):
            _sync(self.path)

    def last(self, name: str) -> float | None:
        """The newest value of a metric, if it has been logged."""
        return next((entry[name] for entry in reversed(self.entries) if name in entry), None)


def _read(path: Path, *, step: int, per_epoch: int) -> list[dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    # what follows the last newline was cut off when the process died
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            taken = entry["step"]
            if "epoch" in entry:
                taken = round(entry["epoch"] * per_epoch)
            if 0 < taken <= step:
                entries[taken] = entry | {"step": taken}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is damaged, line {number} is no entry: repair or remove it, or resume 'never'."
            ) from error
    return list(entries.values())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within it an OSError names the file: those of `write` and `fsync` do not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
