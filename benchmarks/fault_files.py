"""What breaks a checkpoint, or a process that writes one: each function says how often, and how often it held."""

import builtins
import contextlib
import copy
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
from cl_train import InputError, make_accelerator
from cl_train._checkpoint import damage, load_checkpoint, peek, save_checkpoint
from cl_train._checkpoint_folder import Saving, find_checkpoint, list_checkpoints, quarantine, remove_checkpoints

Counts = tuple[int, int]  # survived, of
SAVING = Saving(every=None, keep=2, keep_every=None, best=None)


class Trained:
    """A method with an optimiser that has a momentum, and their checkpoints in `out`."""

    def __init__(self, out: Path) -> None:
        self.folder, self.out = out / "checkpoints", out
        self.method, self.accelerator = tiny.method(), make_accelerator("no")
        self.optimizer = torch.optim.SGD(self.method.parameters(), 0.1, momentum=0.9)
        views = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        sum(field.sum() for field in self.method(views)).backward()
        self.optimizer.step()

    def save(self, step: int, **run: Any) -> Path:
        """A checkpoint, as a run writes it: with what has to go."""
        state = {"step": step, "epoch": None, "run": run, "score": None}
        saved = save_checkpoint(self.folder, self.method, self.optimizer, self.accelerator, state)
        SAVING.prune(self.folder)
        return saved

    def found(self) -> int | None:
        """Step of the checkpoint that a run would go on from; None: there is none."""
        checkpoint = find_checkpoint("auto", out=self.out)
        return None if checkpoint is None else peek(checkpoint)["step"]

    def start(self) -> int | None:
        """Do what a run does when it starts, and say from which step."""
        checkpoint = find_checkpoint("auto", out=self.out)
        if checkpoint is None:
            remove_checkpoints(self.folder, after=-1)
            return None
        step = peek(checkpoint)["step"]
        load_checkpoint(checkpoint, method=self.method, optimizer=self.optimizer, accelerator=self.accelerator)
        quarantine(self.folder, newest=checkpoint)
        remove_checkpoints(self.folder, after=step)
        return step


def _two(out: Path) -> tuple[Trained, Path]:
    """Checkpoints of steps 2 and 4, and the folder of the second."""
    trained = Trained(out)
    trained.save(2)
    return trained, trained.save(4)


def truncated(out: Path) -> Counts:
    """Each file of the newest checkpoint cut at 0, 1, 50 and 99 %."""
    trained, newest = _two(out)
    noticed = cases = 0
    for file in sorted(newest.iterdir()):
        content = file.read_bytes()
        for share in (0, 0.01, 0.5, 0.99):
            file.write_bytes(content[: int(len(content) * share)])
            cases += 1
            noticed += damage(newest) is not None and trained.found() == 2
        file.write_bytes(content)
    assert trained.found() == 4
    return noticed, cases


def deleted(out: Path) -> Counts:
    """Each file deleted, all of them, or replaced by a folder."""
    trained, newest = _two(out)
    noticed = cases = 0
    for file in [*sorted(newest.iterdir()), None]:
        shutil.copytree(newest, out / "copy")
        for path in [file] if file else list(newest.iterdir()):
            path.unlink()
        cases += 1
        noticed += damage(newest) is not None and trained.found() == 2
        if file:
            file.mkdir()
            cases += 1
            noticed += damage(newest) is not None and trained.found() == 2
        shutil.rmtree(newest)
        (out / "copy").rename(newest)
    assert trained.found() == 4
    return noticed, cases


def strays(out: Path) -> Counts:
    """Files and folders that are no checkpoints, beside them and in them: nothing changes, and they can be pruned."""
    trained, newest = _two(out)
    (newest / "notes.txt").write_text("mine")
    strays = ("step-", "step-x", "step-00000009.bak", "step-²", "best", "damaged-step-00000008", ".step-00000001.old")
    for name in strays:
        (trained.folder / name / "inner").mkdir(parents=True)
    for name in ("step-00000007", "notes.txt", ".step-00000003.partial", ".step-00000003.replaced"):
        (trained.folder / name).write_text("mine")
    (trained.folder / "step-00000006").mkdir()  # empty: the process died after mkdir
    (trained.folder / "step-00000005").symlink_to(out / "nowhere")
    checks = [trained.found() == 4, trained.start() == 4, trained.save(7).is_dir()]
    there = [path.name for path in list_checkpoints(trained.folder)]
    checks += [trained.found() == 7, there == [newest.name, "step-00000007"]]
    checks.append((trained.folder / "damaged-step-00000006").is_dir())
    return sum(checks), len(checks)


def flipped(out: Path, *, count: int, seed: int = 0) -> Counts:
    """A single bit flipped somewhere in the newest checkpoint, manifest included, so many times."""
    trained, newest = _two(out)
    random_, noticed = random.Random(seed), 0
    files = sorted(newest.iterdir())
    contents = [file.read_bytes() for file in files]
    for _ in range(count):
        # each file as often as the others, or the small ones would hardly be hit
        file, content = random_.choice([*zip(files, contents, strict=True)])
        bit = random_.randrange(8 * len(content))
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        noticed += damage(newest) is not None
        file.write_bytes(content)
    assert trained.found() == 4
    return noticed, count


class _Mark:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def malicious(out: Path) -> tuple[int, int, int]:
    """A pickle that runs code in place of each file, the manifest as it was or rewritten: executed, refused, of."""
    trained, newest = _two(out)
    mark = out / "executed"
    executed = refused = cases = 0
    for file in sorted(newest.iterdir()):
        for kind in ("pickle", "torch"):
            for forged in (False, True):
                shutil.copytree(newest, out / "copy")
                file.write_bytes(pickle.dumps(_Mark(mark))) if kind == "pickle" else torch.save(_Mark(mark), file)
                if forged and file.name != "manifest.json":
                    _forge(newest)
                cases += 1
                try:
                    refused += trained.start() == 2
                except (InputError, ValueError):
                    refused += 1
                executed += mark.exists()
                for path in trained.folder.glob(f"*{newest.name}"):
                    shutil.rmtree(path)
                (out / "copy").rename(newest)
    assert trained.start() == 4
    return executed, refused, cases


def _forge(checkpoint: Path) -> None:
    """A manifest that fits."""
    files = [file for file in checkpoint.iterdir() if file.name != "manifest.json"]
    manifest = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


class Death(BaseException):
    """The process dies here, as nothing catches this."""


class _File:
    """A file whose writes can be cut in the middle."""

    def __init__(self, file: Any, boundary: Callable[[], None]) -> None:
        self.file, self.boundary = file, boundary

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.boundary()
        return half + self.file.write(content[half:])


_CALLS = (
    *("open", "close", "mkdir", "rename", "replace", "unlink"),
    *("rmdir", "fsync", "stat", "lstat", "scandir", "listdir"),
)


@contextlib.contextmanager
def breaking(boundary: Callable[[str], None]) -> Iterator[None]:
    """Within it `boundary` is called, with its name, before each call that a file system sees, and in writes."""
    before = {name: getattr(os, name) for name in _CALLS}
    opened = io.open

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            boundary(name)
            return before[name](*args, **kwargs)

        return call

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        boundary("open")
        handle = opened(file, mode, *args, **kwargs)
        return handle if mode.startswith("r") else _File(handle, partial(boundary, "write"))

    for name in _CALLS:
        setattr(os, name, wrapped(name))
    io.open = builtins.open = open_
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(os, name, call)
        io.open = builtins.open = opened


def _counted(at: int, die: Callable[[], None], seen: list[str]) -> Callable[[str], None]:
    def boundary(name: str) -> None:
        seen.append(name)
        if len(seen) - 1 == at:
            die()

    return boundary


def _raise() -> None:
    raise Death


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Name, what is there before, what is saved, and from which step a run must be able to go on at least.
SITUATIONS: dict[str, tuple[tuple[int, ...], int, int | None]] = {
    "the first": ((), 2, None),
    "another, and one has to go": ((2, 4), 6, 4),
    "the only one again, with other settings": ((2,), 2, 2),
}


def boundaries(out: Path, *, by_kill: bool) -> dict[str, Counts]:
    """The process dies before each call of the file system that saving makes, once; by SIGKILL, or an exception."""
    results = {}
    for number, (name, (there, step, least)) in enumerate(SITUATIONS.items()):
        template = Trained(out / f"{number}")
        for earlier in there:
            template.save(earlier)
        seen: list[str] = []
        trial = _copy(template, out / f"{number} all")
        with breaking(_counted(-1, _raise, seen)):
            trial.save(step, settings="other")
        survived = 0
        for at in range(len(seen)):
            trial = _copy(template, out / f"{number} {at}")
            _die_at(trial, step, at, by_kill=by_kill)
            reached = trial.found()
            good = reached in (least, step) and trial.start() == reached and trial.save(8).is_dir()
            survived += good and trial.found() == 8 and not [*trial.folder.glob(".*")]
            shutil.rmtree(trial.out)
        results[name] = survived, len(seen)
    return results


def _copy(template: Trained, out: Path) -> Trained:
    if template.folder.exists():
        shutil.copytree(template.folder, out / "checkpoints")
    else:
        out.mkdir(parents=True)
    trial = copy.copy(template)
    trial.folder, trial.out = out / "checkpoints", out
    return trial


def _die_at(trial: Trained, step: int, at: int, *, by_kill: bool) -> None:
    def save() -> None:
        with breaking(_counted(at, _kill if by_kill else _raise, [])):
            trial.save(step, settings="other")

    if by_kill:
        assert tiny.wait(tiny.fork(save)) == [-signal.SIGKILL]
    else:
        with contextlib.suppress(Death):
            save()


def full_disk(out: Path) -> Counts:
    """No space left, or a failing disk, at each write and fsync of saving; and a real limit to a file's size."""
    trained, newest = _two(out)
    before = sorted(path.name for path in trained.folder.iterdir())
    seen: list[str] = []
    with breaking(_counted(-1, _raise, seen)):
        trained.save(6)
    shutil.rmtree(trained.folder)
    trained, newest = _two(out)
    survived = cases = 0
    for at, name in enumerate(seen):
        if name in ("write", "fsync", "mkdir"):
            for code in (errno.ENOSPC, errno.EIO):
                with breaking(_counted(at, partial(_fail, code), [])):
                    survived += _refused(trained, before, os.strerror(code))
                cases += 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            survived += _refused(trained, before, os.strerror(errno.EFBIG))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        cases += 1
    assert newest.is_dir()
    return survived, cases


def _fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def _refused(trained: Trained, before: list[str], reason: str) -> bool:
    """Whether a save fails with the reason and the name of the checkpoint, and leaves what was there, alone."""
    try:
        trained.save(6)
    except OSError as error:
        text, new = str(error), trained.folder / "step-00000006"
        if damage(new) is None:  # all but the last fsync, of the folder, went well
            shutil.rmtree(new)
        there = sorted(path.name for path in trained.folder.iterdir())
        return reason in text and str(new) in text and there == before and trained.found() == 4
    return False


def kills(out: Path, *, count: int, seed: int = 0) -> tuple[int, int, int]:
    """SIGKILL at random moments of a process that does nothing but save: lost, most lost steps, in a save."""
    random_, lost, worst, inside = random.Random(seed), 0, 0, 0
    trained = Trained(out)
    trained.save(1)
    done = tiny.Counter()
    for _ in range(count):
        step = trained.start()
        assert step is not None
        done.value = step

        def save(step: int = step) -> None:
            while True:
                step += 1
                trained.save(step)
                done.value = step

        processes = tiny.fork(save)
        tiny.wait_for(lambda step=step: done.value > step, processes)
        tiny.time.sleep(random_.uniform(0, 0.05))
        tiny.end(processes)
        inside += any(trained.folder.glob(".step-*"))
        found = trained.found()
        lost += found is None or found < done.value
        worst = max(worst, done.value - (found or 0))
    return lost, worst, inside
