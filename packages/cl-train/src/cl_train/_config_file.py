"""Settings in a TOML file: read with every mistake named, and written with where each came from."""

import argparse
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from cl_train._errors import InputError
from cl_train._kinds import Kind


def read_config(path: str, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The settings that a file gives.

    Args:
        path: A TOML file without tables.
        kinds: What may stand there: names of settings, and their values.

    Raises:
        InputError: It cannot be read, or holds an unknown name or a value of the wrong kind.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise InputError(f"`--config` must be a file that can be read, {path}: {error.strerror}.") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(f"`--config` must be a TOML file, {path}: {error}.") from error
    for name, value in found.items():
        if name not in kinds:
            raise InputError(f"`{name}` in {path} is no setting{did_you_mean(name, kinds)} (--help lists the flags).")
        try:
            found[name] = kinds[name].from_toml(value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"`{name}` in {path} {error}.") from error
    return found


def format_config(values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Settings as TOML that `read_config` takes, each with its source; TOML has no None, so that is a comment."""
    lines = []
    for name, value in values.items():
        text = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        lines.append(f"{text:<36}  # {sources[name]}\n")
    return "".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Words that name the closest of what is known, none where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)  # 0.6 finds "blur" in "colour"
    return f", did you mean {close[0]}?" if close else ""


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # strings, whole numbers and booleans are written as in JSON, but for one character that TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
