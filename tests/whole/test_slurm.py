"""The Slurm script, with commands of the same names in place of Slurm: what it starts, and when it goes on later."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "slurm.sh"

SRUN = """#!/bin/bash
echo "$@" | head -n 1 >> srun.txt
while [[ $1 == --* ]]; do shift; done
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task"; code=$?
    highest=$((code > highest ? code : highest))
done
exit $highest
"""
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.txt
[[ $1 != show ]] || printf 'node7\\nnode8\\n'
"""
PYTHON = """#!/bin/bash
for word in "$@"; do echo "$word"; done > words-$RANK.txt
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT" > environment-$RANK.txt
[[ $RANK == 1 ]] && exit "$ENDS_WITH"
exit 0
"""


@pytest.fixture
def submit(tmp_path):
    """Run the script as a job of two nodes with two processes each, the second of which ends with a code."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "4"}
    environment = os.environ | slurm | {"SLURM_NTASKS_PER_NODE": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*words: str, ends_with: int = 0) -> int:
        code = {"ENDS_WITH": str(ends_with)}
        return subprocess.run(["bash", SCRIPT, *words], cwd=tmp_path, env=environment | code, timeout=30).returncode

    return run


def requeued(folder: Path) -> list[str]:
    return [line for line in (folder / "scontrol.txt").read_text().splitlines() if line.startswith("requeue")]


def test_every_process_knows_the_others(submit, tmp_path):
    assert submit() == 0
    found = [(tmp_path / f"environment-{rank}.txt").read_text().split() for rank in range(4)]
    locals_ = ["0", "1", "0", "1"]
    assert found == [[str(rank), locals_[rank], "4", "2", "node7", "34567"] for rank in range(4)]


def test_every_process_is_given_the_words_of_the_job(submit, tmp_path):
    words = ["--data", "/a b/$HOME", "--may-change", "x", "*"]
    submit(*words)
    for rank in range(4):
        assert (tmp_path / f"words-{rank}.txt").read_text().splitlines() == ["examples/simclr_imagenet.py", *words]


@pytest.mark.parametrize("code", [138, 143])
def test_a_job_that_was_asked_to_stop_goes_back_into_the_queue(submit, tmp_path, code):
    assert submit(ends_with=code) == code
    assert requeued(tmp_path) == ["requeue 1234567"]


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137])
def test_a_job_that_ended_otherwise_does_not(submit, tmp_path, code):
    assert submit(ends_with=code) == code
    assert requeued(tmp_path) == []


def test_slurm_signals_the_processes_in_time_and_may_requeue():
    options = [line.split(maxsplit=1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(options)
    assert not any("#" in option for option in options)


def test_slurm_reads_all_options():
    """It stops at the first line that is neither empty nor a comment."""
    lines = SCRIPT.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
