"""Command lines of scripts: the fields of a small dataclass are the flags."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from cl_train._config_file import did_you_mean, format_config, read_config
from cl_train._errors import InputError
from cl_train._kinds import Kind

C = TypeVar("C")


def flag(default: Any, text: str) -> Any:
    """A field of a dataclass of flags, with what `--help` says of it.

    Args:
        default: The field's default, immutable.
        text: What it is, in a line; for a number of a paper, where it stands there.

    Returns:
        What `dataclasses.field` returns.
    """
    return dataclasses.field(default=default, metadata={"help": text})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a page of usage before the one line that matters."""
        raise InputError(f"{message} (--help lists the flags).")


def parse_flags(
    presets: Mapping[str, C],
    *,
    choose: Callable[[Mapping[str, Any]], str],
    description: str | None = None,
    argv: Sequence[str] | None = None,
) -> C:
    """The settings that a command line asks for: a preset, what a file changes of it, and what its flags change.

    Every field of the dataclass is a flag: `weight_decay` is `--weight-decay`; a bool also has a `--no-` form, a tuple
    takes any number of words. `--config FILE` is a TOML file with names of fields (`weight_decay = 1e-6`), and perhaps
    `preset`; flags win over the file. `--print-config` prints the settings as such a file, each with where it came
    from, and ends the process.

    Args:
        presets: Settings by name, instances of one dataclass whose fields are made by `flag`, of the types bool, int,
            float, str, a Literal, a union of these and None, or a tuple of any number of one. The name is chosen by
            `--preset`.
        choose: Name of the preset when none is given, from the settings that are.
        description: First text of `--help`.
        argv: The words of the command line; by default the script's.

    Returns:
        The settings.

    Raises:
        InputError: A flag or a name in the file is unknown or has a value of the wrong kind, or the file cannot be
            read.
    """
    example = next(iter(presets.values()))
    kinds = {name: Kind.of(hint) for name, hint in typing.get_type_hints(type(example)).items()}
    kinds["preset"] = Kind(choices=tuple(presets))
    flags = _parse(example, kinds, description, argv)
    path, printing = flags.pop("config", None), flags.pop("print_config", False)
    file = {} if path is None else read_config(path, kinds)
    given = file | flags
    preset = given.pop("preset", None) or choose(given)
    settings = dataclasses.replace(presets[preset], **given)  # type: ignore[type-var]
    if printing:
        sources = {name: "flag" if name in flags else f"file {path}" if name in file else "preset" for name in kinds}
        values = {"preset": preset} | dataclasses.asdict(settings)  # type: ignore[call-overload]
        chosen = {} if "preset" in file | flags else {"preset": "chosen"}
        print(format_config(values, sources | chosen), end="")
        sys.exit(0)
    return settings


def _parse(
    example: Any, kinds: Mapping[str, Kind], description: str | None, argv: Sequence[str] | None
) -> dict[str, Any]:
    """The values of the flags that were given, and no others."""
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, which the flags change")
    parser.add_argument("--print-config", action="store_true", help="print all settings as such a file, and end")
    texts = {field.name: field.metadata["help"] for field in dataclasses.fields(example) if field.name != "preset"}
    known = ["--config", "--print-config"]
    for name, text in ({"preset": "the settings that the file and the other flags change"} | texts).items():
        word = name.replace("_", "-")
        known += [f"--{word}", f"--no-{word}"] if bool in kinds[name].classes else [f"--{word}"]
        parser.add_argument(f"--{word}", help=text.replace("%", "%%"), **_how(kinds[name]))
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], known)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}


def _how(kind: Kind) -> dict[str, Any]:
    """What argparse has to know of a setting."""
    if bool in kind.classes:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind.from_word, "metavar": kind.metavar} | ({"nargs": "*"} if kind.many else {})
