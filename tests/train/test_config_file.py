"""Settings in a file: between the preset and the command line, every mistake named, and printed as they are read."""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from cl_train import InputError, flag, parse_flags


@dataclass(frozen=True)
class Config:
    preset: str
    data: str | None = flag(None, "where the images are")
    epochs: int = flag(10, "passes")
    weight_decay: float = flag(1e-6, "decay")
    blur: bool = flag(True, "whether to blur")
    stem: Literal["a", "b"] | None = flag(None, "first layers")
    chunk: int | Literal["auto"] | None = flag(None, "images at once")
    also: tuple[Literal["x", "y"], ...] = flag((), "where else")
    names: tuple[str, ...] = flag(("some",), "names")


LARGE = Config("large")
SMALL = replace(LARGE, preset="small", epochs=2, blur=False, stem="b")


@pytest.fixture
def parse(tmp_path):
    def run(toml: str | bytes, *words: str) -> Config:
        (tmp_path / "run.toml").write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        return parse_flags(
            {"large": LARGE, "small": SMALL},
            choose=lambda given: "large" if given.get("data") else "small",
            argv=["--config", str(tmp_path / "run.toml"), *words],
        )

    return run


# What wins


def test_a_file_changes_what_it_names_and_nothing_else(parse):
    assert parse("epochs = 7") == replace(SMALL, epochs=7)


def test_a_flag_wins_over_the_file(parse):
    assert parse("epochs = 7\nblur = true", "--epochs", "9") == replace(SMALL, epochs=9, blur=True)


def test_a_tuple_of_the_command_line_replaces_that_of_the_file(parse):
    assert parse('also = ["x", "y"]', "--also").also == ()


def test_the_preset_may_stand_in_the_file(parse):
    assert parse('preset = "large"') == LARGE


def test_the_preset_of_the_command_line_wins_over_that_of_the_file(parse):
    assert parse('preset = "large"\nepochs = 7', "--preset", "small") == replace(SMALL, epochs=7)


def test_what_the_file_says_takes_part_in_the_choice_of_the_preset(parse):
    assert parse('data = "/images"') == replace(LARGE, data="/images")


def test_an_empty_file_changes_nothing(parse):
    assert parse("# nothing") == SMALL


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("epochs = 3", 3),
        ("weight_decay = 0.5", 0.5),
        ("weight_decay = 2", 2.0),
        ("weight_decay = 1e-4", 1e-4),
        ("blur = true", True),
        ('data = "/a b"', "/a b"),
        ('stem = "a"', "a"),
        ("chunk = 64", 64),
        ('chunk = "auto"', "auto"),
        ('also = ["y", "x"]', ("y", "x")),
        ("names = []", ()),
    ],
)
def test_a_value_has_the_type_of_its_field(parse, line, value):
    found = getattr(parse(line), line.split()[0])
    assert found == value
    assert type(found) is type(value)


# What is refused


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("epoch = 3", "`epoch` in FILE is no setting, did you mean epochs? (--help lists the flags)."),
        ("weight-decay = 0.1", "`weight-decay` in FILE is no setting, did you mean weight_decay? (--help"),
        ("colour = 1", "`colour` in FILE is no setting (--help lists the flags)."),
        ("[train]\nepochs = 3", "`train` in FILE is no setting"),
        ('config = "other.toml"', "`config` in FILE is no setting"),
        ('epochs = "three"', "`epochs` in FILE must be int, got 'three'."),
        ("epochs = 1.0", "`epochs` in FILE must be int, got 1.0."),
        ("epochs = true", "`epochs` in FILE must be int, got True."),
        ('weight_decay = "1e-4"', "`weight_decay` in FILE must be float, got '1e-4'."),
        ("weight_decay = false", "`weight_decay` in FILE must be float, got False."),
        ("blur = 1", "`blur` in FILE must be bool, got 1."),
        ("data = 5", "`data` in FILE must be str, got 5."),
        ("data = [1]", "`data` in FILE must be str, got [1]."),
        ('stem = "c"', "`stem` in FILE must be 'a' or 'b', got 'c'."),
        ('chunk = "all"', "`chunk` in FILE must be int or 'auto', got 'all'."),
        ('also = "x"', "`also` in FILE must be a list of 'x' or 'y', got 'x'."),
        ('also = ["z"]', "`also` in FILE must be a list of 'x' or 'y', got ['z']."),
        ("names = [[1]]", "`names` in FILE must be a list of str, got [[1]]."),
        ('preset = "huge"', "`preset` in FILE must be 'large' or 'small', got 'huge'."),
        ("epochs = ", "`--config` must be a TOML file, FILE: Invalid value (at"),
        ("epochs = 1\nepochs = 2", "`--config` must be a TOML file, FILE: Cannot overwrite a value (at"),
        (b"data = '\xff'", "`--config` must be a TOML file, FILE: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_file_and_name(parse, tmp_path, toml, message):
    with pytest.raises(
        InputError, match="^" + re.escape(message.replace("FILE", str(tmp_path / "run.toml")))
    ) as caught:
        parse(toml)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("none.toml", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, reason):
    path = tmp_path / name
    with pytest.raises(
        InputError, match=f"^`--config` must be a file that can be read, {re.escape(str(path))}: {reason}.$"
    ):
        parse_flags({"large": LARGE}, choose=lambda given: "large", argv=["--config", str(path)])


# Printed


@pytest.fixture
def printed(parse, capsys):
    def run(toml: str, *words: str) -> str:
        with pytest.raises(SystemExit) as end:
            parse(toml, "--print-config", *words)
        assert end.value.code == 0
        return capsys.readouterr().out

    return run


def test_the_settings_are_printed_with_where_each_came_from(printed, tmp_path):
    lines = printed('weight_decay = 0.5\nalso = ["x"]\nepochs = 4', "--epochs", "9").splitlines()
    assert [re.sub("  +", "  ", line) for line in lines] == [
        'preset = "small"  # chosen',
        "# data is not set  # preset",
        "epochs = 9  # flag",
        f"weight_decay = 0.5  # file {tmp_path / 'run.toml'}",
        "blur = false  # preset",
        'stem = "b"  # preset',
        "# chunk is not set  # preset",
        f'also = ["x"]  # file {tmp_path / "run.toml"}',
        'names = ["some"]  # preset',
    ]


@pytest.mark.parametrize(("words", "source"), [(["--preset", "large"], "flag"), ([], "file")])
def test_a_preset_that_was_asked_for_is_not_said_to_be_chosen(printed, words, source):
    assert f"# {source}" in printed('preset = "large"', *words).splitlines()[0]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--data", '/a/ü "b" \\c\t\x7f🙂'],
        ["--weight-decay", "1e-30", "--preset", "large"],
        ["--weight-decay", "inf"],
        ["--also", "x", "y", "--chunk", "auto"],
        ["--names", "a b", "#", "--blur"],
    ],
)
def test_what_is_printed_is_read_as_the_same_settings(printed, parse, words):
    assert parse(printed("", *words)) == parse("", *words)


def test_a_weight_decay_that_is_no_number_is_printed_as_toml_has_it(printed, parse):
    assert math.isnan(parse(printed("", "--weight-decay", "nan")).weight_decay)
