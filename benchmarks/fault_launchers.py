"""Launchers that are ended: what becomes of the processes that they have started."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import tiny
from cl_train._checkpoint import damage
from cl_train._checkpoint_folder import list_checkpoints
from fault_runs import Outcome, ended, whole

SCRIPT = Path(__file__).with_name("tiny.py")
ACCELERATE = ["-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no", "--num_machines=1"]
LAUNCHERS: dict[str, tuple[list[str], int]] = {
    "python": ([], 1),
    "torchrun, 2 processes": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], 2),
    "accelerate launch, 1 process": ([*ACCELERATE, "--cpu", "--num_processes=1"], 1),
    "accelerate launch, 2 processes": ([*ACCELERATE, "--multi_gpu", "--num_processes=2"], 2),
}


def launch(launcher: list[str], out: Path, *, pause: float) -> subprocess.Popen[bytes]:
    """Start the tiny run."""
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *launcher, str(SCRIPT), str(out), str(pause)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _taken(out: Path) -> list[int]:
    return [len(file.read_text().split()) for file in sorted(out.glob("taken by *"))]


def ended_launcher(folder: Path, name: str, number: int, *, repeats: int) -> Outcome:
    """A signal to the launcher; its processes must save the same step, leave, and be able to go on."""
    launcher, world = LAUNCHERS[name]
    seconds, lost, orphans, codes, good = [], 0, 0, set(), True
    for repeat in range(repeats):
        out = folder / f"{name} {number} {repeat}"
        process = launch(launcher, out, pause=0.3)
        until = time.monotonic() + 300
        while len(_taken(out)) < world or min(_taken(out)) < 3:
            assert process.poll() is None, out.with_suffix(".log").read_text()
            assert time.monotonic() < until, "no step was taken"
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(60)
        _, left = psutil.wait_procs(family, timeout=60)
        seconds.append(time.monotonic() - begun)
        orphans += len(left)
        for each in left:
            each.kill()
        codes.add(process.returncode)
        newest = list_checkpoints(out / "checkpoints")[-1]
        taken = _taken(out)
        lost = max(lost, max(taken) - int(newest.name[5:]))
        good &= len(set(taken)) == 1 and damage(newest) is None
        again = ended(partial(tiny.run, out, checkpoint_every=None), folder, world=world)
        good &= set(again.codes) == {0}
        good &= tiny.gap(tiny.saved(out), tiny.saved(whole(folder, world))) == 0
    text = f"exit code {sorted(codes)}; all gone after {median(seconds):.1f} s (most {max(seconds):.1f}); "
    text += f"{lost} steps lost, {orphans} orphans; going on gives the weights of the whole run"
    return Outcome(text, good and not lost and not orphans)


def killed_torchrun(folder: Path) -> Outcome:
    """SIGKILL of torchrun, which cannot tell its processes."""
    return ended_launcher(folder, "torchrun, 2 processes", signal.SIGKILL, repeats=1)
