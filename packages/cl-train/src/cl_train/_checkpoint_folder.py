"""The checkpoints of a run: which there are, which one is taken, which of them stay."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_train._checkpoint import damage, discard, peek
from cl_train._errors import InputError

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written, and which of them stay.

    Args:
        every: Steps between checkpoints, besides those at the end of each epoch; None: these only.
        keep: The newest to keep, >= 2: the newest may be on a disk that dies.
        keep_every: Keep those at the end of every so many epochs too; None: none.
        best: Keep the one with the highest value of this metric of the log too; None: none.
    """

    every: int | None
    keep: int
    keep_every: int | None
    best: str | None

    def prune(self, folder: Path) -> None:
        """Remove the checkpoints that are not to be kept."""
        found = list_checkpoints(folder)
        states = {path: _state_of(path) for path in found} if self.keep_every or self.best else {}
        kept = set(found[-self.keep :])
        if self.keep_every is not None:
            kept |= {path for path in found if _is_multiple(states[path].get("epoch"), self.keep_every)}
        scored = [path for path in states if states[path].get("score") is not None]
        if self.best is not None and scored:
            kept.add(max(scored, key=lambda path: (states[path]["score"], _step_of(path))))
        for path in found:
            if path not in kept:
                try:
                    _remove(path)
                except OSError as error:  # such as NFS's of a file that somebody reads; what was saved is safe
                    print(f"{path} could not be removed: {error}.", file=sys.stderr, flush=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, oldest first."""
    return sorted((path for path in _within(folder) if _NAME.fullmatch(path.name) and path.is_dir()), key=_step_of)


def find_checkpoint(resume: str | Path, *, out: Path) -> Path | None:
    """The checkpoint that `resume` means: the newest that is whole.

    Args:
        resume: "auto": that of the run in `out`, if any; "never": none; else a checkpoint, or a run's folder, unless
            the run in `out` went on from there: then it is as "auto".
        out: The run's folder.

    Returns:
        A checkpoint folder, or None to start from the beginning.

    Raises:
        InputError: `resume` is a path without a checkpoint, or of another run than the one that `out` already holds, or
            there are checkpoints and all are damaged.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return _newest_whole(out / "checkpoints")
    path = Path(resume)
    if _NAME.fullmatch(path.name) and path.is_dir():
        found: Path | None = path
        reason = damage(path)
        if reason:
            raise InputError(f"{path} is damaged ({reason}): resume from another checkpoint.")
    else:
        found = _newest_whole(path / "checkpoints")
    if found is None:
        raise InputError(f"`resume` must be 'auto', 'never', a checkpoint or the folder of a run, got {path}.")
    own = list_checkpoints(out / "checkpoints")
    if own and _state_of(own[-1]).get("origin") == origin_of(path):
        return _newest_whole(out / "checkpoints")
    if own and found.parent.resolve() != own[-1].parent.resolve():
        raise InputError(f"`out` must have no checkpoints of its own to go on from {path}, {out} has {len(own)}.")
    return found


def origin_of(resume: str | Path) -> str:
    """How checkpoints name the path that their run went on from."""
    return str(Path(resume).resolve())


def quarantine(folder: Path, *, newest: Path) -> list[Path]:
    """Rename what is damaged, so that it is neither taken for a checkpoint nor counted as one; says so.

    Args:
        folder: Folder of the checkpoints.
        newest: The one that is taken; what is older is not looked at.

    Returns:
        The new names.
    """
    for path in _replaced(folder):
        path.rename(path.with_name(f"step-{_step_of(path):08d}"))
    moved = []
    for path in list_checkpoints(folder):
        reason = damage(path) if _step_of(path) > _step_of(newest) else None
        if reason is not None:
            target = path.with_name(f"damaged-{path.name}")
            discard(target)
            path.rename(target)
            print(f"{path} is damaged ({reason}): moved to {target.name}.", file=sys.stderr, flush=True)
            moved.append(target)
    return moved


def remove_checkpoints(folder: Path, *, after: int) -> None:
    """Remove those of later steps: a run that goes on from an earlier one leaves them behind."""
    for checkpoint in list_checkpoints(folder):
        if _step_of(checkpoint) > after:
            _remove(checkpoint)
    for path in _within(folder):
        if path.name.startswith(".step-"):  # of a run that died while it wrote or removed
            discard(path)


def _newest_whole(folder: Path) -> Path | None:
    found = sorted([*list_checkpoints(folder), *_replaced(folder)], key=_step_of)
    for path in reversed(found):
        if damage(path) is None:
            return path
    if found:
        raise InputError(
            f"every checkpoint in {folder} is damaged; the newest, {found[-1].name}: {damage(found[-1])}. "
            "Repair one, or resume 'never' to begin anew."
        )
    return None


def _replaced(folder: Path) -> list[Path]:
    """Checkpoints whose successor of the same step was about to take their name when the process died."""
    names = {path: f"step-{_step_of(path):08d}" for path in _within(folder) if path.name.endswith(".replaced")}
    return [path for path, name in names.items() if not (folder / name).exists()]


def _within(folder: Path) -> list[Path]:
    # `glob` would take a folder that may not be read for an empty one, and the run would begin anew
    return list(folder.iterdir()) if folder.exists() else []


def _is_multiple(epoch: int | None, every: int) -> bool:
    return epoch is not None and epoch > 0 and epoch % every == 0


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The saved state, empty if it cannot be read: what is older than the newest is not looked at on a resume."""
    try:
        return peek(checkpoint)
    except (OSError, ValueError):
        return {}


def _step_of(checkpoint: Path) -> int:
    found = _NAME.search(checkpoint.name)
    assert found is not None
    return int(found[1])


def _remove(checkpoint: Path) -> None:
    """Under another name first: a folder that is half removed is no checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    discard(hidden)
    checkpoint.rename(hidden)
    discard(hidden)
