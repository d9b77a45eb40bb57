"""Command lines: a preset, what flags change of it, and one line when they cannot."""

import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from cl_train import InputError, flag, parse_flags, run_script


@dataclass(frozen=True)
class Config:
    preset: str
    data: str | None = flag(None, "where the images are")
    epochs: int = flag(10, "passes, 100 % of the images each")
    lr: float = flag(0.1, "learning rate")
    warmup_epochs: float = flag(1.5, "warm-up")
    workers: int | None = flag(None, "processes that read")
    blur: bool = flag(True, "whether to blur")
    encoder: Literal["small", "large"] = flag("small", "network")
    stem: Literal["a", "b"] | None = flag(None, "first layers")


LARGE = Config("large")
SMALL = replace(LARGE, preset="small", epochs=2, blur=False)


def parse(line: str, **changes) -> Config:
    arguments = {"choose": lambda given: "large" if given.get("data") else "small", "argv": line.split()} | changes
    return parse_flags({"large": LARGE, "small": SMALL}, **arguments)


# Presets


@pytest.mark.parametrize("preset", [LARGE, SMALL])
def test_a_preset_is_taken_as_it_is(preset):
    assert parse(f"--preset {preset.preset}") == preset


def test_without_a_preset_the_flags_choose_it():
    assert parse("--data /images") == replace(LARGE, data="/images")
    assert parse("--epochs 3") == replace(SMALL, epochs=3)


def test_choose_sees_the_flags_that_were_given_and_no_others():
    seen = {}

    def choose(given):
        seen.update(given)
        return "small"

    parse("--epochs 3 --no-blur", choose=choose)
    assert seen == {"epochs": 3, "blur": False}


def test_a_given_preset_is_not_chosen():
    assert parse("--preset small --data /images") == replace(SMALL, data="/images")


def test_flags_change_what_they_name_and_nothing_else():
    assert parse("--preset large --lr 0.5 --encoder large") == replace(LARGE, lr=0.5, encoder="large")


def test_the_scripts_own_words_are_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--epochs", "7"])
    assert parse("", argv=None) == replace(SMALL, epochs=7)


# Kinds of values


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--epochs 7", "epochs", 7),
        ("--lr 1e-3", "lr", 0.001),
        ("--lr 2", "lr", 2.0),
        ("--warmup-epochs 0.5", "warmup_epochs", 0.5),
        ("--data /a/b", "data", "/a/b"),
        ("--workers 0", "workers", 0),
        ("--blur", "blur", True),
        ("--no-blur", "blur", False),
        ("--encoder large", "encoder", "large"),
        ("--stem b", "stem", "b"),
    ],
)
def test_a_value_has_the_type_of_its_field(line, name, value):
    found = getattr(parse(line), name)
    assert found == value
    assert type(found) is type(value)


def test_a_flag_that_may_be_none_is_none_by_default():
    assert parse("").workers is None


# What is refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--colour blue", "unrecognized arguments: --colour blue"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),  # no abbreviations
        ("--epochs three", "argument --epochs: invalid int value: 'three'"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--workers none", "argument --workers: invalid int value: 'none'"),
        ("--epochs", "argument --epochs: expected one argument"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused(line, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)} {re.escape('(--help lists the flags).')}$"):
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "--preset huge",
        "--encoder medium",
        "--stem c",
    ],
)
def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(line):
    name, value = line.split()
    with pytest.raises(InputError, match=f"^argument {name}: invalid choice: '{value}' [(]choose from .*[)] [(]--help"):
        parse(line)


def test_a_refusal_is_one_line():
    with pytest.raises(InputError) as caught:
        parse("--epochs three")
    assert "\n" not in str(caught.value)


def test_a_refusal_prints_nothing_itself(capsys):
    with pytest.raises(InputError):
        parse("--epochs three")
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_flag_with_its_text(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help", description="What the script does.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "What the script does." in text
    for name in ("--preset", "--data", "--epochs", "--warmup-epochs", "--blur", "--no-blur", "--encoder", "100 % of"):
        assert name in text


# Scripts


def test_a_script_that_ends_well_exits_with_0():
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: None)
    assert caught.value.code == 0


@pytest.fixture
def refusing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])

    def main():
        raise InputError("`data` must be a folder.")

    return main


def test_a_script_whose_input_cannot_be_used_exits_with_2(refusing):
    with pytest.raises(SystemExit) as caught:
        run_script(refusing)
    assert caught.value.code == 2


def test_a_script_whose_input_cannot_be_used_prints_one_line(refusing, capsys):
    with pytest.raises(SystemExit):
        run_script(refusing)
    assert capsys.readouterr() == ("", "script.py: error: `data` must be a folder.\n")


def test_a_process_of_several_says_which_it_is(refusing, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        run_script(refusing)
    assert capsys.readouterr().err == "[rank 3] script.py: error: `data` must be a folder.\n"


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), FloatingPointError("nan")])
def test_any_other_error_of_a_script_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)) as caught:
        run_script(main)
    assert caught.value is error
