"""The log of a run: one line of JSON per entry, each step once, also after a resume."""

import json
from pathlib import Path
from typing import Any


class History:
    """Entries in `metrics.jsonl`, in memory and on disk.

    Args:
        path: The file.
        step: Last step that counts: entries after it, of a run that went on beyond the checkpoint that is resumed, are
            dropped. 0 begins anew.
        write: Whether this process writes; the others keep the entries in memory.
    """

    def __init__(self, path: Path, *, step: int, write: bool = True) -> None:
        self.path, self.write = path, write
        # what follows the last newline was cut off when the process died
        lines = path.read_text().split("\n")[:-1] if path.exists() and step > 0 else []
        self.entries: list[dict[str, Any]] = [entry for entry in map(json.loads, lines) if entry["step"] <= step]
        if write:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, **entry: float | int) -> None:
        """Append one entry; it must hold `step`."""
        self.entries.append(entry)
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
