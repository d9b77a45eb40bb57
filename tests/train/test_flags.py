"""Command lines: a preset, what flags change of it, and one line when they cannot."""

import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from cl_train import InputError, flag, parse_flags


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
    chunk: int | Literal["auto"] | None = flag(None, "images at once")
    also: tuple[Literal["x", "y"], ...] = flag((), "where else")


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
        ("--chunk 64", "chunk", 64),
        ("--chunk auto", "chunk", "auto"),
        ("--also x", "also", ("x",)),
        ("--also y x", "also", ("y", "x")),
        ("--also", "also", ()),
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
        ("--epoch 3", "unrecognized arguments: --epoch 3, did you mean --epochs?"),  # no abbreviations
        ("--warmup_epochs=3", "unrecognized arguments: --warmup_epochs=3, did you mean --warmup-epochs?"),
        ("--no-blurr", "unrecognized arguments: --no-blurr, did you mean --no-blur?"),
        ("--epochs three", "argument --epochs: must be int, got 'three'"),
        ("--epochs 1.5", "argument --epochs: must be int, got '1.5'"),
        ("--lr fast", "argument --lr: must be float, got 'fast'"),
        ("--workers none", "argument --workers: must be int, got 'none'"),
        ("--epochs", "argument --epochs: expected one argument"),
        ("--preset huge", "argument --preset: must be 'large' or 'small', got 'huge'"),
        ("--encoder medium", "argument --encoder: must be 'small' or 'large', got 'medium'"),
        ("--stem c", "argument --stem: must be 'a' or 'b', got 'c'"),
        ("--chunk all", "argument --chunk: must be int or 'auto', got 'all'"),
        ("--also x,y", "argument --also: must be 'x' or 'y', got 'x,y'"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused(line, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)} {re.escape('(--help lists the flags).')}$"):
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
    for words in (
        *("--config FILE", "--print-config", "--preset {large,small}", "--data STR", "--epochs INT", "100 % of"),
        *("--warmup-epochs FLOAT", "--blur, --no-blur", "--encoder {small,large}", "--chunk INT|auto", "--also [{x,y}"),
    ):
        assert words in text
