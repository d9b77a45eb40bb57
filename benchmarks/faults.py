"""Faults on purpose: what was done to a run or to its checkpoints, and what happened.

    hatch run bench:faults            # the table of faults.md: some minutes on 2 cores
    hatch run bench:faults --quick    # without launchers, fewer deaths; what the tests run

Exit code 1 if something that has to hold does not.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import fault_files as files
import fault_images
import fault_launchers as launchers
import fault_runs as runs
import tiny
import torch
from cl_models import resnet18
from cl_train._finite import FiniteGuard
from fault_runs import Outcome
from measure import setting
from torch.nn import functional

Fault = tuple[str, Callable[[Path], Outcome]]


def counted(call: Callable[[Path], files.Counts], word: str) -> Callable[[Path], Outcome]:
    """The outcome of what is counted."""

    def outcome(folder: Path) -> Outcome:
        survived, cases = call(folder)
        return Outcome(f"{survived} of {cases} {word}", survived == cases)

    return outcome


def kills(folder: Path, *, count: int) -> Outcome:
    """SIGKILL at random moments of saving."""
    lost, steps, inside = files.kills(folder, count=count)
    return Outcome(f"lost {lost} of {count} ({inside} in the middle of a write), at most {steps} steps", lost == 0)


def boundaries(folder: Path, *, by_kill: bool) -> Outcome:
    """A death before each call of the file system."""
    found = files.boundaries(folder, by_kill=by_kill)
    texts = [f"{name}: {survived} of {cases}" for name, (survived, cases) in found.items()]
    return Outcome("; ".join(texts) + " survived", all(survived == cases for survived, cases in found.values()))


def malicious(folder: Path) -> Outcome:
    """A pickle that runs code."""
    executed, refused, cases = files.malicious(folder)
    return Outcome(f"executed {executed}, refused {refused} of {cases}", executed == 0 and refused == cases)


def cost_of_the_check(folder: Path) -> Outcome:
    """Time of a step with the guard against numbers that are not finite, and without; for the table only."""
    torch.set_num_threads(2)
    network = resnet18(width=0.5, stem="cifar").train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    guard = FiniteGuard(network, optimizer, on_nonfinite="stop", scaled=False)
    images = torch.rand(64, 3, 32, 32)

    def step(*, guarded: bool) -> float:
        begun = time.perf_counter()
        if guarded:
            guard.remember()
        loss = functional.normalize(network(images)).square().var()
        loss.backward()
        counts = guard.judge(loss.isfinite(), step=0) if guarded else None
        optimizer.step()
        optimizer.zero_grad()
        if counts is not None:
            guard.settle(counts)
        return time.perf_counter() - begun

    times = [(step(guarded=True), step(guarded=False)) for _ in range(12)][2:]
    ratio = median(guarded / bare for guarded, bare in times) - 1
    torch.set_num_threads(1)
    what = f"{ratio:.1%} of a step of a ResNet-18 of half the width, 64 images of 32 px, on the CPU"
    return Outcome(what, ratio < 0.2)


def faults(*, quick: bool) -> Iterator[Fault]:
    """All, numbered as in the list of what was asked for; quick: what tests/train/test_damage.py and others leave."""
    yield "1 SIGKILL at random moments while saving", partial(kills, count=20 if quick else 200)
    if not quick:
        yield from _of_files()
    yield "3 no space left on the main one of 2 processes", runs.full_disk
    yield "9 other number of processes", runs.another_world
    if not quick:
        for name in launchers.LAUNCHERS:
            yield f"10 SIGTERM: {name}", partial(launchers.ended_launcher, name=name, number=signal.SIGTERM, repeats=3)
        yield "10 SIGKILL: torchrun, 2 processes", launchers.killed_torchrun
    yield "11 SIGTERM, SIGINT, SIGUSR1, again while saving; 1 process", runs.signals
    yield "11 the same to one of 2 processes", partial(runs.signals, world=2)
    if not quick:
        yield "12 NaN loss, NaN embedding, infinite gradient", runs.nonfinite
        yield "12 the same, to be skipped", runs.nonfinite_skipped
        yield "12 cost of the check", cost_of_the_check
    poison = "13 NaN loss, NaN embedding, infinite gradient on one of 2 processes"
    yield poison, partial(runs.nonfinite, world=2, only=1)
    yield "13 the same, to be skipped", partial(runs.nonfinite_skipped, world=2, only=1)
    kinds = ", ".join([*fault_images.DAMAGED, *fault_images.UNUSUAL])
    yield f"14 an image is damaged or unusual: {kinds}", fault_images.images
    yield "15 a worker that reads images raises, ends, is killed, hangs (limit 2 s)", runs.readers
    yield "16 one of 2 processes dies or hangs", runs.dead_process
    yield "18 two runs on one folder", runs.one_folder
    yield "19 read-only folder, missing, empty or too few images", runs.refusals
    yield "20 killed three times; other clock, locale, working directory", runs.chain


def _of_files() -> Iterator[Fault]:
    before = "noticed, and the one before is taken"
    yield "2 SIGKILL before each call of the file system while saving", partial(boundaries, by_kill=True)
    full = "kept the last one, named the reason and left nothing"
    yield "3 no space left, I/O error or a limit, at each write and fsync", counted(files.full_disk, full)
    yield "4 each file cut at 0, 1, 50, 99 %", counted(files.truncated, before)
    yield "5 one bit flipped, manifest included", counted(partial(files.flipped, count=1000), "noticed")
    yield "6 files deleted or folders instead, all of them", counted(files.deleted, before)
    yield "6 stray files and folders", counted(files.strays, "checks hold")
    yield "17 a pickle that runs code in place of each file, also with a manifest that fits", malicious


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="what takes less than a minute")
    parser.add_argument("--only", default="", help="faults that begin with this")
    arguments = parser.parse_args()
    tiny.prepare()
    begun, good = time.monotonic(), True
    print("| fault | what happened | seconds | verdict |\n|---|---|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        found = sorted(faults(quick=arguments.quick), key=lambda pair: int(pair[0].split()[0]))
        for number, (fault, call) in enumerate(found):
            if fault.startswith(arguments.only):
                folder = Path(name) / str(number)
                folder.mkdir()
                start = time.monotonic()
                outcome = call(folder)
                verdict = "holds" if outcome.good else "FAILS"
                print(f"| {fault} | {outcome.text} | {time.monotonic() - start:.1f} | {verdict} |", flush=True)
                good = good and outcome.good
    print(f"\n{time.monotonic() - begun:.0f} s. {setting('torch', 'accelerate', 'safetensors', 'filelock')}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
