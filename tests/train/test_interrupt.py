"""Being asked to stop: the run saves after the step it is at, and the process leaves with a code that says why."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import tiny
import torch
from cl_train._interrupt import SIGNALS, Interrupted, StopRequest

ALONE = SimpleNamespace(num_processes=1)


def asked(out, number=signal.SIGTERM, *, at=5, **changes):
    """A run that sends itself a signal before its forward `at`, from 0."""
    trained = tiny.method()
    trained.before_step = lambda step: os.kill(os.getpid(), number) if step == at else None
    return tiny.run(out, trained=trained, **changes)


def steps(out):
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)],
    ids=lambda value: str(value),
)
def test_a_signal_ends_the_run_after_the_step_with_a_code_of_its_own(tmp_path, number, code):
    with pytest.raises(Interrupted) as caught:
        asked(tmp_path, number, checkpoint_every=None)
    assert (caught.value.code, caught.value.signal, caught.value.step) == (code, number, 6)
    assert steps(tmp_path) == [4, 6]


def test_an_interrupted_run_goes_on_to_the_same_weights_and_log(tmp_path):
    tiny.run(tmp_path / "whole")
    for at in (1, 2, 3):  # forwards since the restart
        with pytest.raises(Interrupted):
            asked(tmp_path / "chain", at=at)
    tiny.run(tmp_path / "chain")
    assert tiny.gap(tiny.saved(tmp_path / "chain"), tiny.saved(tmp_path / "whole")) == 0
    assert tiny.log_of(tmp_path / "chain") == tiny.log_of(tmp_path / "whole")


@pytest.mark.parametrize("at", [tiny.STEPS - 1, 1])
def test_a_signal_in_the_last_step_is_heeded_too(tmp_path, at):
    with pytest.raises(Interrupted) as caught:
        asked(tmp_path, at=at, max_steps=at + 1)
    assert caught.value.step == at + 1
    assert tiny.run(tmp_path, max_steps=at + 1).steps == at + 1


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch):
    original, calls = torch.save, []

    def save(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(Interrupted) as caught:
        tiny.run(tmp_path)
    assert caught.value.step == 3  # the first checkpoint is that of step 2
    assert len(calls) == 2
    assert steps(tmp_path) == [2, 3]


def test_the_first_signal_decides_the_code(tmp_path):
    trained = tiny.method()

    def send(step):
        if step == 2:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)

    trained.before_step = send
    with pytest.raises(Interrupted) as caught:
        tiny.run(tmp_path, trained=trained)
    assert caught.value.code == 138


@pytest.mark.parametrize("ends", ["well", "by a signal", "by an error"])
def test_signals_mean_what_they_meant_after_the_run(tmp_path, ends):
    before = [signal.getsignal(number) for number in SIGNALS]
    if ends == "well":
        tiny.run(tmp_path, max_steps=1)
    elif ends == "by a signal":
        with pytest.raises(Interrupted):
            asked(tmp_path, at=0)
    else:
        trained = tiny.method()
        trained.before_step = lambda step: 1 / 0
        with pytest.raises(ZeroDivisionError):
            tiny.run(tmp_path, trained=trained)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("ends", ["by a signal", "by a bad number"])
def test_a_method_has_its_own_forward_back_however_the_run_ends(tmp_path, ends):
    trained = tiny.method()
    trained.before_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if ends == "by a signal" else None
    trained.poison, trained.at = "loss", [0] if ends == "by a bad number" else []
    with pytest.raises((Interrupted, FloatingPointError)):
        tiny.run(tmp_path, trained=trained, mixed_precision="bf16")
    trained.before_step = None
    seen = []
    trained.encoder.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trained(torch.rand(2, 3, 8, 8))
    assert seen == [torch.float32]  # not that of the run


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(tiny.run(tmp_path, max_steps=2).steps))
    thread.start()
    thread.join()
    assert results == [2]


@pytest.mark.parametrize("name", ["ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"])
def test_the_death_of_a_launcher_is_a_signal(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    stop = StopRequest(ALONE)
    assert stop.agreed() == 0
    another = os.getppid() + 1  # usually 1; but the tests may run without a parent of their own
    monkeypatch.setattr(os, "getppid", lambda: another)
    assert stop.agreed() == signal.SIGTERM


def test_the_death_of_a_shell_is_none(monkeypatch):
    stop = StopRequest(ALONE)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # as with nohup
    assert stop.agreed() == 0


def test_uncaught_it_ends_the_process_with_its_code_and_without_a_traceback():
    text = "from cl_train._interrupt import Interrupted; raise Interrupted(15, 3)"
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (143, "")
