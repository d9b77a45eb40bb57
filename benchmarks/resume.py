"""Exact resume: runs that are killed from outside, again and again, against the run that was not.

    hatch run bench:resume            # the table of resume.md: some minutes on 2 cores
    hatch run bench:resume --quick    # a minute; what the tests run

A run is ended by SIGKILL at random moments, one to three times, in the middle of an epoch, of a window of the log or of
a checkpoint being written, and started again by the same call. Equal are: weights, running statistics and momentum of
the last step, bit for bit, and all of metrics.jsonl but images_per_second. With several processes all of them are
killed, or one, and the others have to end by themselves. In the rows "without the optimiser's state" a restart forgets
the momentum: that the comparison can fail. Exit code 1 if a row is not as it should be.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tiny
import torch
from cl_train import ImageDataset


@dataclass(frozen=True)
class Case:
    """A configuration: kind of data, worker processes, processes, and whether a restart forgets the momentum."""

    data: str
    workers: int
    world: int
    sabotaged: bool = False

    def __str__(self) -> str:
        text = f"{self.data}, {self.workers} workers, {self.world} process{'es' * (self.world > 1)}"
        return text + ", without the optimiser's state" * self.sabotaged


@dataclass
class Row:
    """What became of the runs of a configuration."""

    case: Case
    runs: int = 0
    kills: int = 0
    in_saves: int = 0
    equal: int = 0
    gap: float = 0.0
    lost: list[int] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """As it should be."""
        return self.equal == (0 if self.case.sabotaged else self.runs)

    def __str__(self) -> str:
        lost = f"{sum(self.lost) / max(1, len(self.lost)):.1f} (most {max(self.lost, default=0)})"
        return (
            f"| {self.case} | {self.runs} | {self.kills} ({self.in_saves}) | {self.equal} | {self.gap:.2g} | {lost} |"
        )


def train(case: Case, data: ImageDataset, out: Path, taken: tiny.Counter) -> None:
    """The run, in the process that is to be killed."""
    if case.sabotaged:
        torch.optim.SGD.load_state_dict = lambda self, state: None
    trained = tiny.method()
    trained.taken = taken
    tiny.run(out, trained=trained, data=data, workers=case.workers)


def begin(case: Case, data: ImageDataset, out: Path, taken: tiny.Counter) -> list:
    """Start the processes of a run."""
    taken.value = 0
    return tiny.fork(partial(train, case, data, out, taken), world=case.world, log=out.with_suffix(".log"))


def newest(out: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def interrupted(case: Case, data: ImageDataset, out: Path, random_: random.Random, row: Row) -> bool:
    """Start the run, or go on with it, and kill it; whether it was under way then."""
    taken, start = tiny.Counter(), newest(out)
    processes = begin(case, data, out, taken)
    first = 1 if start or not case.sabotaged else 4  # there must be a momentum to forget
    goal = random_.randint(first, max(first, tiny.STEPS - start - 2)) * case.world  # the counter is every process's
    if not tiny.wait_for(lambda: taken.value >= goal, processes):
        tiny.wait(processes)
        raise RuntimeError(f"{case}: {out.with_suffix('.log').read_text()}")
    time.sleep(random_.uniform(0, 0.03))
    one = case.world > 1 and random_.random() < 0.5
    doomed = processes[random_.randrange(case.world)] if one else None
    if doomed is not None:
        doomed.kill()
        codes = tiny.wait(processes)
        assert None not in codes, f"{case}: a process did not end with the others"
        assert sum(code == 0 for code in codes) in (0, case.world), f"{case}: exit codes {codes}"
        if 0 in codes:
            return False
    else:
        tiny.end(processes)
    if newest(out) == tiny.STEPS:
        return False
    row.kills += 1
    row.in_saves += any((out / "checkpoints").glob(".step-*"))
    row.lost.append(start + taken.value // case.world - newest(out))
    return True


def compare(case: Case, data: ImageDataset, folder: Path, *, runs: int, seed: int) -> Row:
    """Runs of a configuration against one that was left alone."""
    row, random_ = Row(case), random.Random(seed)
    whole = folder / "whole"
    if set(tiny.wait(begin(Case(case.data, 0, case.world), data, whole, tiny.Counter()))) != {0}:
        raise RuntimeError(whole.with_suffix(".log").read_text())
    tensors, lines = tiny.saved(whole), tiny.log_of(whole)
    for number in itertools.count():
        if row.runs == runs:
            break
        out, kills, before = folder / f"run {number}", 2 if case.sabotaged else random_.randint(1, 3), row.kills
        while kills and interrupted(case, data, out, random_, row):
            kills -= 1
        if row.kills == before:
            continue  # it was faster
        if set(tiny.wait(begin(case, data, out, tiny.Counter()))) != {0}:
            raise RuntimeError(out.with_suffix(".log").read_text())
        distance, log = tiny.gap(tiny.saved(out), tensors), tiny.log_of(out)
        row.runs += 1
        row.equal += distance == 0 and log == lines
        row.gap = max(row.gap, distance)
    return row


def cases(*, quick: bool) -> Iterator[tuple[Case, int]]:
    """Configurations, and how many runs of each."""
    if quick:
        yield from ((Case("array", 0, 1), 3), (Case("folder", 2, 1), 2), (Case("folder", 0, 2), 2))
        yield Case("array", 0, 1, sabotaged=True), 1
        return
    for data in ("array", "folder"):
        for workers in (0, 2):
            for world in (1, 2):
                yield Case(data, workers, world), 6
    yield Case("array", 0, 1, sabotaged=True), 2
    yield Case("folder", 2, 2, sabotaged=True), 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few runs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    tiny.prepare()
    begun, good = time.monotonic(), True
    print("| configuration | runs | kills (in a save) | equal | max difference | lost steps per kill |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {"array": tiny.images(), "folder": tiny.image_folder(folder / "images")}
        for number, (case, runs) in enumerate(cases(quick=arguments.quick)):
            place = folder / str(number)
            place.mkdir()
            row = compare(case, data[case.data], place, runs=runs, seed=arguments.seed + number)
            print(row, flush=True)
            good = good and row.good
    print(f"\n{time.monotonic() - begun:.0f} s, torch {torch.__version__}.")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
