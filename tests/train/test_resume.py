"""Runs that are killed from outside, and faults of whole runs, as benchmarks/resume.py and faults.py measure them.

Both fork what they need from one process each, which takes its time to import torch.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 280  # alone on two cores, 20 and 30


def table(script: str) -> dict[str, list[str]]:
    """The cells of each row by its first one; nothing that was started outlives this call."""
    process = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / script), "--quick"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the forked ones too
        process.wait()
        process.stdout.close()
        process.stderr.close()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in printed.splitlines() if "|" in line]
    assert rows, errors
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.fixture(scope="module")
def killed() -> dict[str, list[str]]:
    return table("resume.py")


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    return table("faults.py")


@pytest.mark.parametrize(
    "case",
    ["array, 0 workers, 1 process", "folder, 2 workers, 1 process", "folder, 0 workers, 2 processes"],
)
def test_killed_runs_end_with_the_weights_and_the_log_of_the_whole_run_bit_for_bit(killed, case):
    runs, kills, equal, difference, _ = killed[case]
    assert int(runs) >= 2
    assert int(kills.split()[0]) >= int(runs)
    assert (equal, difference) == (runs, "0")


def test_a_restart_that_forgets_the_momentum_is_noticed(killed):
    runs, _, equal, difference, _ = killed["array, 0 workers, 1 process, without the optimiser's state"]
    assert (int(runs) >= 1, equal) == (True, "0")
    assert float(difference) > 1e-3


@pytest.mark.parametrize(
    "fault",
    [
        "1 SIGKILL at random moments while saving",
        "3 no space left on the main one of 2 processes",
        "9 other number of processes",
        "11 SIGTERM, SIGINT, SIGUSR1, again while saving; 1 process",
        "11 the same to one of 2 processes",
        "13 NaN loss, NaN embedding, infinite gradient on one of 2 processes",
        "13 the same, to be skipped",
        "14 an image is damaged or unusual: truncated JPEG, empty, web page, 1 x 1, bomb, CMYK, 16 bits, "
        "palette with transparency, EXIF rotation",
        "15 a worker that reads images raises, ends, is killed, hangs (limit 2 s)",
        "16 one of 2 processes dies or hangs",
        "18 two runs on one folder",
        "19 read-only folder, missing, empty or too few images",
        "20 killed three times; other clock, locale, working directory",
    ],
)
def test_a_run_withstands(faults, fault):
    happened, _, verdict = faults[fault]
    assert verdict == "holds", happened


def test_all_faults_that_were_tried_are_named_above(faults):
    named = next(mark for mark in test_a_run_withstands.pytestmark if mark.name == "parametrize").args[1]
    assert sorted(faults) == sorted(named)
