"""What a person sees: a bar on a terminal, lines elsewhere, with the time left."""

import io
import re
import sys

import pytest
from cl_train import _progress as progress
from cl_train._progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def make(**changes) -> Progress:
    return Progress(**{"total": 10, "done": 0, "title": "pretrain", "visible": True} | changes)


def test_a_line_has_figures_speed_and_the_time_left(clock, capsys):
    shown = make()
    for _ in range(4):
        shown.step()
    clock(60)
    shown.tell({"loss": 1.23456, "contrast_top1": 0.5, "images_per_second": 1234.5})
    line = "pretrain: step 4/10, loss 1.235, contrast_top1 0.5, 1234 images/s, 01:30 left\n"
    assert capsys.readouterr().err == line


def test_the_time_left_counts_the_steps_of_this_start_only(clock, capsys):
    shown = make(done=6)
    shown.step()
    shown.step()
    clock(60)
    shown.tell({"loss": 1.0})
    assert capsys.readouterr().err == "pretrain: step 8/10, loss 1, 01:00 left\n"


def test_lines_are_15_seconds_apart(clock, capsys):
    shown = make()
    for _ in range(9):
        shown.step()
        clock(6)
        shown.tell({})
    assert re.findall(r"step \d+", capsys.readouterr().err) == ["step 3", "step 6", "step 9"]


def test_the_end_is_always_a_line_and_says_what_it_took(clock, capsys):
    shown = make(total=1)
    shown.step()
    clock(3)
    shown.tell({"loss": 2.0})
    assert capsys.readouterr().err == "pretrain: step 1/1, loss 2, took 00:03\n"


def test_nothing_is_shown_where_it_is_not_visible(clock, capsys):
    shown = make(total=1, visible=False)
    shown.step()
    clock(60)
    shown.tell({"loss": 2.0})
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_the_figures_and_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = make(done=5)
    for _ in range(5):
        shown.step()
    shown.tell({"loss": 1.5, "images_per_second": 100.0})
    shown.close()
    text = sys.stderr.getvalue()
    assert "\n" not in text[:-1]
    assert re.search(r"pretrain: 100%\|.*\| 10/10 .*step.*loss 1.5, 100 images/s", text.split("\r")[-1])
