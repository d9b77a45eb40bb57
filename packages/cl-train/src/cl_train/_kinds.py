"""What a setting takes, by the type of its field: from a word of a command line or a value of a TOML file."""

import argparse
import types
import typing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """Values of a setting. None is one where the type says so, and cannot be written: it is what is left out.

    Args:
        classes: bool, int, float, str: those that a value may be of.
        choices: Values that a Literal allows, beside those of the classes.
        many: Whether a setting is a tuple of such values.
    """

    classes: tuple[type, ...] = ()
    choices: tuple[Any, ...] = ()
    many: bool = False

    @classmethod
    def of(cls, hint: Any) -> "Kind":
        """That of a type: a class, a Literal, a union of these and None, or a tuple of any number of one of them."""
        if typing.get_origin(hint) is tuple:
            item = cls.of(typing.get_args(hint)[0])
            return cls(item.classes, item.choices, many=True)
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second where a Literal is a part
        parts = [part for part in typing.get_args(hint) if part is not type(None)] if union else [hint]
        classes = [part for part in parts if isinstance(part, type)]
        choices = [choice for part in parts if typing.get_origin(part) is typing.Literal for choice in part.__args__]
        return cls(tuple(classes), tuple(choices))

    def from_word(self, word: str) -> Any:
        """The value of a word, one of several where there are many.

        Raises:
            argparse.ArgumentTypeError: The word is no such value.
        """
        for choice in self.choices:
            if word == str(choice):
                return choice
        for kind in self.classes:
            try:
                return kind(word)
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"must be {self._one()}, got {word!r}")

    def from_toml(self, value: Any) -> Any:
        """The value of what a TOML file holds: a whole number will do for a float, a list makes a tuple.

        Raises:
            argparse.ArgumentTypeError: It is no such value.
        """
        items = value if self.many else [value]
        if not isinstance(items, list) or not all(self._takes(item) for item in items):
            raise argparse.ArgumentTypeError(f"must be {self}, got {value!r}")
        items = [float(item) if type(item) is int and int not in self.classes else item for item in items]
        return tuple(items) if self.many else items[0]

    def _takes(self, value: Any) -> bool:
        # by exact type: True is an int for isinstance
        return value in self.choices or type(value) in self.classes or (type(value) is int and float in self.classes)

    def __str__(self) -> str:
        return f"a list of {self._one()}" if self.many else self._one()

    def _one(self) -> str:
        *first, last = [kind.__name__ for kind in self.classes] + [repr(choice) for choice in self.choices]
        return f"{', '.join(first)} or {last}" if first else last

    @property
    def metavar(self) -> str:
        """How `--help` writes a value: INT, INT|auto, {small,large}."""
        choices = [str(choice) for choice in self.choices]
        if not self.classes:
            return "{" + ",".join(choices) + "}"
        return "|".join([kind.__name__.upper() for kind in self.classes] + choices)
