"""What breaks a run. Each function says in a line what happened, and whether that is what has to."""

import errno
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from cl_train import ArrayDataset, FolderDataset, ImageDataset, InputError
from cl_train._plan import Plan
from cl_train._run import Run
from torch import Tensor

TIMEOUT = 5.0  # of the process group, where a process hangs


class Outcome(NamedTuple):
    """What happened, and whether it had to."""

    text: str
    good: bool


class Ended(NamedTuple):
    """Exit codes, what was printed, and the time until the last process ended."""

    codes: list[int | None]
    printed: str
    seconds: float


def ended(call: Callable[[], object], folder: Path, *, world: int = 1, seconds: float = 120) -> Ended:
    """Run to the end."""
    log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
    begun = time.monotonic()
    codes = tiny.wait(tiny.fork(call, world=world, log=log), seconds=seconds)
    return Ended(codes, log.read_text(), time.monotonic() - begun)


def whole(folder: Path, world: int) -> Path:
    """The run that was left alone, with a checkpoint of every step."""
    out = folder / f"whole {world}"
    if not out.exists():
        found = ended(partial(tiny.run, out, checkpoint_every=1, keep_checkpoints=tiny.STEPS), folder, world=world)
        assert set(found.codes) == {0}, found.printed
    return out


def _equals(out: Path, expected: Path, *, step: int = tiny.STEPS) -> bool:
    return tiny.gap(tiny.saved(out, step=step), tiny.saved(expected, step=step)) == 0


# Other settings


def another_world(folder: Path) -> Outcome:
    """2 processes, then 1, and the other way around: refused, unless allowed."""
    texts, good = [], True
    for first, second in ((2, 1), (1, 2)):
        out = folder / f"{first} then {second}"
        begun = ended(partial(tiny.run, out, max_steps=5), folder, world=first)
        refused = ended(partial(tiny.run, out), folder, world=second)
        allowed = ended(partial(tiny.run, out, may_change={"processes"}), folder, world=second)
        difference = abs(tiny.log_of(out)[-1]["loss"] - tiny.log_of(whole(folder, second))[-1]["loss"])
        good &= set(begun.codes) == {0} and 0 not in refused.codes and set(allowed.codes) == {0}
        good &= f"is of a run with processes={first}, this one has processes={second}" in refused.printed
        good &= difference < 0.2 and [entry["step"] for entry in tiny.log_of(out)][-1] == tiny.STEPS
        texts.append(f"{first} to {second}: refused; allowed, the loss differs by {difference:.1e}")
    return Outcome("; ".join(texts), good)


# Numbers that are not finite


def _poisoned(out: Path, poison: tiny.Poison, at: list[int], *, only: int | None = None, **changes: Any) -> Any:
    trained = tiny.method()
    rank = int(os.environ.get("RANK", "0"))
    if only is None or only == rank:
        trained.poison, trained.at = poison, at
    result = tiny.run(out, trained=trained, **changes)
    print(f"skipped {result.skipped_steps}\n", end="")  # in one write, as the processes share a file
    return result


def nonfinite(folder: Path, *, world: int = 1, only: int | None = None) -> Outcome:
    """Each kind in the middle of a window of the log; the state must be that of the step before."""
    good, latency, seconds, at = True, 0, 0.0, 4
    for poison in ("loss", "embedding", "gradient"):
        out = folder / f"stop {poison} {world}"
        found = ended(partial(_poisoned, out, poison, [at], only=only), folder, world=world)
        said = re.findall(r"FloatingPointError: .* is not finite at step (\d+)", found.printed)
        good &= set(found.codes) == {1} and said == [str(at)] * world
        good &= _equals(out, whole(folder, world), step=at) and "NaN" not in (out / "metrics.jsonl").read_text()
        latency, seconds = max(latency, 6 - at), max(seconds, found.seconds)
    text = f"all stop with the state of step {at}, which differs by 0; noticed {latency} steps later, with the log"
    return Outcome(text, good)


def _without(out: Path, steps: list[int]) -> None:
    """The run, but for these steps: as if they had never been."""
    original = Run._step
    Run._step = lambda self, batch, step: None if step in steps else original(self, batch, step)
    tiny.run(out)


def nonfinite_skipped(folder: Path, *, world: int = 1, only: int | None = None) -> Outcome:
    """With on_nonfinite="skip": counted, and the first and the last step are no exceptions."""
    good, at = True, [0, 4, 5, tiny.STEPS - 1]
    expected = folder / f"without {world}"
    ended(partial(_without, expected, at), folder, world=world)
    for poison in ("loss", "embedding", "gradient"):
        out = folder / f"skip {poison} {world}"
        call = partial(_poisoned, out, poison, at, only=only, on_nonfinite="skip")
        found = ended(call, folder, world=world)
        good &= set(found.codes) == {0} and found.printed.count(f"skipped {len(at)}") == world
        good &= "NaN" not in (out / "metrics.jsonl").read_text()
        good &= _equals(out, expected)
    return Outcome(f"{len(at)} of {len(at)} steps skipped and counted; the state is that of a run without them", good)


# A disk that fails one process of several


def _full(out: Path) -> None:
    """No space is left for the second checkpoint."""
    fsync = os.fsync

    def full(handle: int) -> None:
        if any((out / "checkpoints").glob(".step-00000004.partial")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    os.fsync = full
    tiny.run(out)


def full_disk(folder: Path) -> Outcome:
    """All processes say so and end, though only the main one writes; then the same call with space again."""
    out = folder / "full"
    found = ended(partial(_said, partial(_full, out)), folder, world=2)
    again = ended(partial(tiny.run, out), folder, world=2)
    reason = r"^checkpoint .*step-00000004 cannot be written, .*No space left on device$"
    said = len(re.findall(reason, found.printed, re.M))
    good = found.codes == [2, 2] and said == 2 and set(again.codes) == {0} and _equals(out, whole(folder, 2))
    what = f"{said} of 2 name the checkpoint and the reason after {found.seconds:.1f} s; going on ends well"
    return Outcome(what, good)


# Signals


def _signalled(out: Path, number: int, at: int, *, rank: int | None, twice: bool = False) -> None:
    """Send a signal to this process before a step, if it is the one; and again while it saves."""
    trained, sent = tiny.method(), []

    def send(step: int) -> None:
        if step == at and rank in (None, int(os.environ.get("RANK", "0"))):
            os.kill(os.getpid(), number)
        sent.append(step)

    trained.before_step = send
    if twice:
        original = torch.save

        def save(*args: Any, **kwargs: Any) -> None:
            for _ in range(2):
                if at in sent:
                    os.kill(os.getpid(), number)
            original(*args, **kwargs)

        torch.save = save
    tiny.run(out, trained=trained, checkpoint_every=None)


def signals(folder: Path, *, world: int = 1) -> Outcome:
    """Each signal, to one process only, again while it saves; then the same call once more."""
    good, steps = True, []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        out = folder / f"{number.name} {world}"
        call = partial(_signalled, out, number, 5, rank=world - 1, twice=True)
        found = ended(call, folder, world=world)
        steps.append(max(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")))
        good &= set(found.codes) == {code}
        again = ended(partial(tiny.run, out, checkpoint_every=None), folder, world=world)
        good &= set(again.codes) == {0} and _equals(out, whole(folder, world))
        good &= tiny.log_of(out) == tiny.log_of(whole(folder, world))
    good &= set(steps) == {6 + (world > 1)}
    text = f"all end after step {steps[0]} with 143, 130, 138; going on gives the weights and log of the whole run"
    return Outcome(text, good)


# One folder, two runs


def _slow(out: Path, taken: tiny.Counter, **changes: Any) -> None:
    trained = tiny.method()
    trained.taken = taken
    trained.before_step = lambda step: time.sleep(0.2)
    tiny.run(out, trained=trained, **changes)


def one_folder(folder: Path) -> Outcome:
    """A second run on a folder that is in use, and after the first was killed, with its readers still there."""
    out, taken, data = folder / "shared", tiny.Counter(), tiny.image_folder(folder / "some images")
    first = tiny.fork(partial(_slow, out, taken, data=data, workers=2), log=folder / "first.log")
    assert tiny.wait_for(lambda: taken.value >= 3, first)
    second = ended(partial(tiny.run, out, data=data), folder)
    alive = first[0].is_alive()
    pid = first[0].pid
    tiny.end(first)
    third = ended(partial(tiny.run, out, data=data), folder)
    good = alive and second.codes == [1] and third.codes == [0]
    good &= f"{out} is in use by process {pid} on " in second.printed
    return Outcome(f"refused after {second.seconds:.1f} s, naming the process; accepted once that was killed", good)


# What is refused before the first step


def refusals(folder: Path) -> Outcome:
    """What can be known in advance, and that one line says it."""
    few, one = tiny.images(), ArrayDataset(tiny.images().images[:1])
    (folder / "no classes").mkdir()
    (folder / "empty class" / "a").mkdir(parents=True)
    (folder / "file").write_text("")
    locked = Path(tempfile.mkdtemp())  # others must be able to look into what is above it
    (locked / "out").mkdir()
    for path in (locked, locked / "out"):
        path.chmod(0o555)

    def as_nobody() -> None:
        if os.getuid() == 0:
            os.seteuid(65534)  # nobody: to root nothing is read-only
        tiny.run(locked / "out")

    cases: dict[str, Callable[[], object]] = {
        "`out` must be a folder that can be written to": as_nobody,
        "`out` must be a folder that can be written to, ": lambda: tiny.run(folder / "file" / "run"),
        "there is no folder": lambda: FolderDataset(folder / "missing"),
        "holds no folders": lambda: FolderDataset(folder / "no classes"),
        "holds none": lambda: FolderDataset(folder / "empty class"),
        "`batch_size` must be at most the number of images, 34": lambda: tiny.run(
            folder / "a", data=few, batch_size=35
        ),
        "`batch_size` must be at most the number of images, 1": lambda: tiny.run(folder / "b", data=one),
        "`batch_size` must be at least 2": lambda: tiny.run(folder / "c", batch_size=1),
    }
    good, longest = True, 0.0
    for message, call in cases.items():
        found = ended(partial(_said, call), folder)
        longest = max(longest, found.seconds)
        good &= found.codes == [2] and message in found.printed and found.printed.count("\n") == 1
    good &= not [name for name in "abc" if (folder / name).exists()]
    return Outcome(f"{len(cases)} of {len(cases)} refused in one line before a step, the slowest {longest:.1f} s", good)


def _said(call: Callable[[], object]) -> None:
    try:
        call()
    except InputError as error:
        print(error)
        raise SystemExit(2) from None


# A chain of deaths


def chain(folder: Path) -> Outcome:
    """Killed three times; in between the clock goes back, the locale and the working directory are others."""
    out, stamps = folder / "chain", iter(range(10))

    def train(number: int, taken: tiny.Counter) -> None:
        os.chdir("/" if number % 2 else folder)
        os.environ |= {"LC_ALL": "C" if number % 2 else "tr_TR.ISO-8859-9", "TZ": f"Test{number}"}
        shift = 86400 * 365 * number
        real = time.time
        time.time = lambda: real() - shift
        trained = tiny.method()
        trained.taken = taken
        tiny.run(out, trained=trained, log_every=1, checkpoint_every=3)

    def entries() -> list[int]:
        return [entry["step"] for entry in tiny.log_of(out)]

    rewound = 0
    for goal in (2, 3, 2):
        taken = tiny.Counter()
        processes = tiny.fork(partial(train, next(stamps), taken))
        assert tiny.wait_for(lambda goal=goal, taken=taken: taken.value >= goal, processes)
        tiny.end(processes)
        rewound += 1
    codes = tiny.wait(tiny.fork(partial(train, next(stamps), tiny.Counter())))
    steps = entries()
    duplicates, missing = len(steps) - len(set(steps)), len({*range(1, tiny.STEPS + 1)} - {*steps})
    good = codes == [0] and not duplicates and not missing and _equals(out, whole(folder, 1))
    return Outcome(f"{rewound} deaths: {duplicates} entries twice, {missing} missing, weights differ by 0", good)


# Processes that die or hang


def _dying(out: Path, at: int, number: int) -> None:
    """The last process sends itself a signal before a step; no one waits longer than `TIMEOUT` for it."""
    trained, rank = tiny.method(), int(os.environ["RANK"])

    def die(step: int) -> None:
        if step == at and rank == 1:
            os.kill(os.getpid(), number)

    trained.before_step = die
    from datetime import timedelta

    kwargs = InitProcessGroupKwargs(timeout=timedelta(seconds=TIMEOUT))
    accelerator = Accelerator(cpu=True, mixed_precision="no", kwargs_handlers=[kwargs])
    tiny.run(out, trained=trained, accelerator=accelerator)


def dead_process(folder: Path) -> Outcome:
    """One of two dies, or hangs, while the other waits for it; then the same call again."""
    texts, good = [], True
    for number, word in ((signal.SIGKILL, "dies"), (signal.SIGSTOP, "hangs")):
        out = folder / f"one {word}"
        processes = tiny.fork(partial(_dying, out, 5, number), world=2, log=folder / f"{word}.log")
        if word == "hangs":
            state = Path(f"/proc/{processes[1].pid}/stat")
            assert tiny.wait_for(lambda state=state: state.read_text().rsplit(")", 1)[1].split()[0] == "T", processes)
        else:
            processes[1].join(60)
        begun = time.monotonic()
        code = tiny.wait(processes[:1], seconds=60)[0]
        seconds = time.monotonic() - begun
        tiny.end(processes)
        again = ended(partial(tiny.run, out), folder, world=2)
        good &= code not in (0, None) and seconds < TIMEOUT + 10
        good &= set(again.codes) == {0} and _equals(out, whole(folder, 2))
        texts.append(f"one {word}: the other ends after {seconds:.1f} s")
    return Outcome("; ".join(texts) + "; going on gives the weights of the whole run", good)


class Deadly(ImageDataset):
    """Images of which one is the end of who reads it, in a worker."""

    def __init__(self, data: ImageDataset, end: Callable[[], object]) -> None:
        self.data, self.end, self.parent = data, end, os.getpid()
        self.labels, self.classes, self.images = data.labels, data.classes, None

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return self.data.name(index)

    def read(self, index: int) -> Tensor:
        if index == 20 and os.getpid() != self.parent:
            self.end()
        return self.data.read(index)


def readers(folder: Path) -> Outcome:
    """A worker process raises, ends, is killed, hangs; then the same call with images that do no harm."""
    data, texts, good = tiny.image_folder(folder / "more images"), [], True
    ends: dict[str, Callable[[], object]] = {
        "raises": lambda: 1 / 0,
        "ends with code 3": lambda: os._exit(3),
        "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hangs": lambda: time.sleep(1000),
    }
    expected = folder / "all read"
    tiny.wait(tiny.fork(partial(tiny.run, expected, data=data)))
    for word, end in ends.items():
        out = folder / f"reader {word}"

        def train(out: Path = out, end: Callable[[], object] = end) -> None:
            Plan.batches = partialmethod(Plan.batches, timeout=2.0)
            tiny.run(out, data=Deadly(data, end), workers=2)

        found = ended(train, folder)
        again = ended(partial(tiny.run, out, data=data), folder)
        good &= found.codes == [1] and data.name(20) in found.printed and again.codes == [0] and _equals(out, expected)
        texts.append(f"{word}: {found.seconds:.1f} s")
    return Outcome("; ".join(texts) + "; all name the file, and going on gives the weights of the whole run", good)
