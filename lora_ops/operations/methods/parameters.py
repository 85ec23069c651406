"""What methods take besides weights, as data: numbers as LoRAs have them, words, and yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ArgumentError
from .elements.work import Value
from .table import Parameter, check_names


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words.

    Attributes:
        options: All of them, the default first.
        help: What it decides, for people.
    """

    options: tuple[str, ...]
    help: str

    @property
    def default(self) -> str:
        """The word where none is given."""
        return self.options[0]


@dataclass(frozen=True, slots=True)
class PerTerm:
    """A number that may differ by term: one for all, or a tuple of one for each.

    Attributes:
        number: What each is.
    """

    number: Parameter

    @property
    def default(self) -> float:
        """The number where none is given."""
        return self.number.default

    @property
    def help(self) -> str:
        """What it is, for people."""
        return self.number.help


AnyParameter = Parameter | PerTerm | Choice


def settled(
    method: str, known: Mapping[str, AnyParameter], terms: int, given: Mapping[str, Value]
) -> dict[str, Value]:
    """All parameters of a method, with defaults.

    Args:
        method: Its name, for messages.
        known: What it takes.
        terms: How many inputs there are.
        given: What the user gave.

    Raises:
        ArgumentError: Unknown, of another type, out of range, or not one for each term.
    """
    check_names(method, known, given)
    return {
        name: _checked(f"method `{method}`: `{name}", known[name], terms, given[name])
        if name in given
        else parameter.default
        for name, parameter in known.items()
    }


def _checked(start: str, parameter: AnyParameter, terms: int, value: Value) -> Value:
    if isinstance(parameter, Choice):
        if value not in parameter.options:
            ways = ", ".join(parameter.options)
            raise ArgumentError(f"{start}={value}`: it is one of {ways}")
        return value
    if isinstance(value, tuple):
        if not isinstance(parameter, PerTerm) or len(value) != terms:
            count = terms if isinstance(parameter, PerTerm) else 1
            raise ArgumentError(f"{start}` has {len(value)} numbers, and takes {count}")
        return tuple(float(str(_checked(start, parameter.number, 1, one))) for one in value)
    number = parameter.number if isinstance(parameter, PerTerm) else parameter
    if isinstance(value, str | bool) or not number.low <= value <= number.high:
        raise ArgumentError(
            f"{start}={value}`: give a number from {number.low:g} to {number.high:g}"
        )
    if number.whole and value != int(value):
        raise ArgumentError(f"{start}={value:g}`: give a whole number")
    return value
