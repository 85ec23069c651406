"""Sums of models and of numbers, read from text: `A + $a*(B - C)`, `1 - $a`.

A value is a list of addends, each a coefficient times a model, or times the difference of two; a plain
number is a coefficient times nothing. A coefficient is a polynomial in the names that stand for
numbers (`$a`), so that `(1 - $a)*A + $a*B` is known to add up to one before `$a` has a value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ....errors import ArgumentError
from ....text import plain

#: A number, or arithmetic on names that will be numbers: 0.3, `$a`, `1 - $a`.
Amount = float | str

_LONGEST = 10_000  # characters of a text
_DEEPEST = 64  # levels of parentheses and signs
_MOST = 256  # monomials of a coefficient, addends of a value
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<value>\$[A-Za-z_]\w*)"
    r"|(?P<name>[^\W\d][\w.]*)|\"(?P<quoted>[^\"]*)\"|(?P<sign>[-+*/()]))"
)
_WRITTEN = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"}  # noqa: RUF001  as pages print them


class Polynomial(dict[tuple[str, ...], float]):
    """A polynomial: the factor of each product of names; that of no names is the constant."""

    @staticmethod
    def of(number: float) -> Polynomial:
        """A constant."""
        return Polynomial({(): number})

    def plus(self, other: Mapping[tuple[str, ...], float]) -> Polynomial:
        """The sum."""
        found = Polynomial(self)
        for names, factor in other.items():
            found[names] = found.get(names, 0.0) + factor
        return found._tidied()

    def times(self, other: Mapping[tuple[str, ...], float]) -> Polynomial:
        """The product."""
        found = Polynomial()
        for mine, factor in self.items():
            for theirs, other_factor in other.items():
                names = tuple(sorted((*mine, *theirs)))
                found[names] = found.get(names, 0.0) + factor * other_factor
        return found._tidied()

    def _tidied(self) -> Polynomial:
        if len(self) > _MOST or any(len(names) > _DEEPEST for names in self):
            raise ArgumentError("a weight has too many products of names; give some of them values")
        return Polynomial({names: factor for names, factor in self.items() if abs(factor) > 1e-12})

    @property
    def number(self) -> float | None:
        """Its value, where it has no names."""
        return self.get((), 0.0) if set(self) <= {()} else None

    @property
    def names(self) -> set[str]:
        """The names in it, without their `$`."""
        return {name.removeprefix("$") for names in self for name in names}

    def amount(self) -> Amount:
        """The number; or text that reads back as the same polynomial."""
        number = self.number
        return str(self) if number is None else number

    def bound(self, values: Mapping[str, float]) -> float:
        """Its value where the names are those numbers."""
        return math.fsum(
            factor * math.prod(values[name.removeprefix("$")] for name in names)
            for names, factor in self.items()
        )

    def __str__(self) -> str:
        text = ""
        for names, factor in sorted(self.items()):
            shown = [f"{abs(factor):.12g}", *names] if abs(factor) != 1 or not names else [*names]
            sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
            text += sign + "*".join(shown)
        return text or "0"


@dataclass(frozen=True, slots=True)
class Addend:
    """A coefficient times a model.

    Attributes:
        factor: The coefficient.
        of: The model; empty for a plain number.
        minus: The model that is taken from it; empty for none.
    """

    factor: Polynomial
    of: str = ""
    minus: str = ""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


def parse_amount(text: str) -> Polynomial:
    """Read arithmetic on numbers and names that stand for numbers.

    Raises:
        ArgumentError: It is none, or a model is in it.
    """
    found = parse_sum(text)
    if any(addend.of for addend in found):
        raise ArgumentError(f"`{plain(text)}` is not a number; names of numbers begin with `$`")
    return _scalar(found)


def parse_sum(text: str) -> tuple[Addend, ...]:
    """Read a sum of models times numbers: `+ - * /`, parentheses, signs, `$names`, quoted names.

    Raises:
        ArgumentError: With the place, if the text means nothing.
    """
    if len(text) > _LONGEST:
        raise ArgumentError(
            f"an expression of {len(text)} characters; {_LONGEST} is the most, write a recipe file"
        )
    return _Parser(text).value()


def fault(text: str, column: int, what: str) -> ArgumentError:
    """An error with the text and a mark below the place in it."""
    shown, before = plain(text), plain(text[:column])
    return ArgumentError(f"{what} at column {column + 1}\n  {shown}\n  {' ' * len(before)}^")


def _tokens(text: str) -> Iterator[_Token]:
    written = "".join(_WRITTEN.get(character, character) for character in text)
    at = 0
    while written[at:].strip():
        match = _TOKEN.match(written, at)
        start = at + len(written[at:]) - len(written[at:].lstrip())
        if match is None or match.lastgroup is None:
            quoted = "; names with other characters than letters, digits, `_` and `.` go in quotes"
            raise fault(
                text, start, f"`{plain(written[start : start + 12])}` means nothing{quoted}"
            )
        kind = "name" if match.lastgroup == "quoted" else match.lastgroup
        yield _Token(kind, match[match.lastgroup], start)
        at = match.end()
    yield _Token("end", "", len(text))


def _scalar(value: tuple[Addend, ...]) -> Polynomial:
    found = Polynomial()
    for addend in value:
        found = found.plus(addend.factor)
    return found


class _Parser:
    """Precedence climbing by two levels, with signs before a factor."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0
        self._level = 0

    def value(self) -> tuple[Addend, ...]:
        found = self._sum()
        if self._now.kind != "end":
            raise self._fault("nothing can stand here" if self._now.text == ")" else _NO_SIGN)
        return found

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _next(self, *signs: str) -> str:
        """The sign that stands here, which is passed; empty if it is none of these."""
        if self._now.kind == "sign" and self._now.text in signs:
            self._at += 1
            return self._tokens[self._at - 1].text
        return ""

    def _fault(self, what: str) -> ArgumentError:
        return fault(self._text, self._now.column, what)

    def _sum(self) -> tuple[Addend, ...]:
        found = self._product()
        while sign := self._next("+", "-"):
            other = self._product()
            if sign == "-" and (pair := _difference(found, other)):
                found = pair
            else:
                found = (*found, *(_times(other, Polynomial.of(-1)) if sign == "-" else other))
            if len(found) > _MOST:
                raise self._fault(f"more than {_MOST} addends")
        return found

    def _product(self) -> tuple[Addend, ...]:
        found = self._factor()
        while self._now.text in ("*", "/") and self._now.kind == "sign":
            place = self._now
            sign = self._next("*", "/")
            other = self._factor()
            scalars = [all(not one.of for one in side) for side in (found, other)]
            if sign == "/":
                divisor = _scalar(other).number if scalars[1] else None
                if not divisor:
                    raise fault(self._text, place.column, "only a number other than 0 divides")
                found = _times(found, Polynomial.of(1 / divisor))
            elif scalars[1]:
                found = _times(found, _scalar(other))
            elif scalars[0]:
                found = _times(other, _scalar(found))
            else:
                raise fault(self._text, place.column, "two models cannot be multiplied")
        return found

    def _factor(self) -> tuple[Addend, ...]:
        self._level += 1
        if self._level > _DEEPEST:
            raise self._fault(f"more than {_DEEPEST} levels of parentheses and signs")
        found = self._signed()
        self._level -= 1
        return found

    def _signed(self) -> tuple[Addend, ...]:
        if sign := self._next("+", "-"):
            return _times(self._factor(), Polynomial.of(-1.0 if sign == "-" else 1.0))
        if self._next("("):
            found = self._sum()
            if not self._next(")"):
                raise self._fault("a `)` is missing" if self._now.kind == "end" else _NO_SIGN)
            return found
        token = self._now
        if token.kind in ("end", "sign"):
            raise self._fault("a model or a number is missing")
        self._at += 1
        if token.kind == "number":
            number = float(token.text)
            if not math.isfinite(number):
                raise fault(self._text, token.column, f"`{token.text}` is too large")
            return (Addend(Polynomial.of(number)),)
        if token.kind == "value":
            return (Addend(Polynomial({(token.text,): 1.0})),)
        if not token.text.strip():
            raise fault(self._text, token.column, "an empty name")
        return (Addend(Polynomial.of(1.0), token.text),)


_NO_SIGN = "one of `+ - * /` is missing"


def _times(value: tuple[Addend, ...], factor: Polynomial) -> tuple[Addend, ...]:
    return tuple(replace(one, factor=one.factor.times(factor)) for one in value)


def _difference(left: tuple[Addend, ...], right: tuple[Addend, ...]) -> tuple[Addend, ...] | None:
    """`B - C` as one addend, which keeps it together; None for what is no difference of two models."""
    if len(left) != 1 or len(right) != 1 or not (left[0].of and right[0].of):
        return None
    one, other = left[0], right[0]
    if one.minus or other.minus or one.factor.number != 1 or other.factor.number != 1:
        return None
    return (Addend(one.factor, one.of, other.of),)
