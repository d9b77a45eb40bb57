"""How scripts end: codes that a shell or a scheduler can act on, and one line for what a person can mend."""

import errno
import sys

import pytest
from cl_train import InputError, run_script
from cl_train._interrupt import Interrupted


def end_of(main) -> int:
    with pytest.raises(SystemExit) as end:
        run_script(main)
    return end.value.code


def raiser(error: BaseException, cause: BaseException | None = None):
    def main():
        raise error from cause

    return main


@pytest.fixture(autouse=True)
def _name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])


REFUSAL = InputError("`data` must be a folder.")
FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x")


def test_a_script_that_ends_well_exits_with_0():
    assert end_of(lambda: None) == 0


def test_a_script_whose_input_cannot_be_used_exits_with_2():
    assert end_of(raiser(REFUSAL)) == 2


def test_a_script_whose_input_cannot_be_used_prints_one_line(capsys):
    end_of(raiser(REFUSAL))
    assert capsys.readouterr() == ("", "script.py: error: `data` must be a folder.\n")


def test_a_process_of_several_says_which_it_is(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    end_of(raiser(REFUSAL))
    assert capsys.readouterr().err == "[rank 3] script.py: error: `data` must be a folder.\n"


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (10, 138), (15, 143)])
def test_a_script_that_was_asked_to_stop_exits_with_128_and_the_signal(signal, code, capsys):
    assert end_of(raiser(Interrupted(signal, 7))) == code
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_is_one_line_and_code_1(capsys):
    assert end_of(raiser(FULL)) == 1
    assert capsys.readouterr() == ("", "script.py: error: [Errno 28] No space left on device: 'runs/x'\n")


def test_what_a_full_disk_led_to_is_one_line_too(capsys):
    assert end_of(raiser(OSError("runs/x cannot be written"), FULL)) == 1
    assert capsys.readouterr() == ("", "script.py: error: runs/x cannot be written\n")


OTHERS = [ValueError("a fault"), KeyboardInterrupt(), FloatingPointError("nan"), FileNotFoundError(2, "No", "x")]


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_any_other_error_of_a_script_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        run_script(raiser(error))
    assert caught.value is error
