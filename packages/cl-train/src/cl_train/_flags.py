"""Command lines of scripts: the fields of a small dataclass are the flags."""

import argparse
import contextlib
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from cl_train._errors import InputError

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
    """The settings that a command line asks for: a preset, and what its flags change.

    Every field of the dataclass is a flag: `weight_decay` is `--weight-decay`; a bool also has a `--no-` form.

    Args:
        presets: Settings by name, instances of one dataclass whose fields are made by `flag`. The name is chosen by
            `--preset`.
        choose: Name of the preset when `--preset` is not given, from the flags that are.
        description: First text of `--help`.
        argv: The words of the command line; by default the script's.

    Returns:
        The settings.

    Raises:
        InputError: A flag is unknown or has a value of the wrong kind.
    """
    example = next(iter(presets.values()))
    hints = typing.get_type_hints(type(example))
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--preset", choices=list(presets), help="the settings that the other flags change")
    for field in dataclasses.fields(example):  # type: ignore[arg-type]
        if field.name != "preset":
            name = "--" + field.name.replace("_", "-")
            text = field.metadata["help"].replace("%", "%%")
            parser.add_argument(name, default=argparse.SUPPRESS, help=text, **_how(hints[field.name]))
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset") or choose(given)
    return dataclasses.replace(presets[preset], **given)  # type: ignore[type-var]


def _how(hint: Any) -> dict[str, Any]:
    """What argparse has to know of a field's type: bool, a Literal, a class, or one of these or None."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # the second where a Literal is a part
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    return {"type": hint, "metavar": hint.__name__.upper()}


@contextlib.contextmanager
def values_from_flags() -> Iterator[None]:
    """Within it a ValueError is an InputError: what is built there is built from a user's flags."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process: code 0, or 2 after one line when the input cannot be used.

    Any other error keeps its traceback.

    Args:
        main: Called without arguments.
    """
    try:
        main()
    except InputError as error:
        rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        print(f"{rank}{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
