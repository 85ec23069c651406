"""What stands for a strength in a text: a number, a letter, or one for each layer of a block.

The letters are those of sd-webui-lora-block-weight (R, U, X) and of the Inspire Pack (A, B, a, b).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from ...errors import ArgumentError

#: What of a text is no strength: the name in front of it (`ROUT:1,1,R`), and what letters are behind.
_NAME, _BEHIND = re.compile(r"\s*[^:;,=%]*:"), ";"
_SEED = "seed"
_LETTER = re.compile(r"([ABX])([+-](?:\d+\.?\d*|\.\d+))?")
# Lowest and highest of what is drawn; three decimals of it are kept, so that a report can say it.
_DRAWN = {"R": (0.0, 1.0), "U": (-1.5, 1.5)}
_DECIMALS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Reads strengths, each letter as what it is given.

    Attributes:
        given: The number for A, B and X.
        random: Draws what R and U are, in the order in which they are read; None: they are unknown.
    """

    given: Mapping[str, float]
    random: Random | None

    def one(self, text: str, where: str) -> float:
        """Return the one strength that a text is.

        Args:
            text: A number or a letter.
            where: What it stands in, for messages.

        Raises:
            ArgumentError: It is neither, or a letter that was given no number.
        """
        word = text.strip()
        if word.upper() in _DRAWN:
            if self.random is None:
                raise ArgumentError(
                    f"`{word}` in `{where}` is not a finite number; to draw one, write a seed behind a "
                    "semicolon, as in `1,R,U; seed=3`"
                )
            low, high = _DRAWN[word.upper()]
            return round(low + (high - low) * self.random.random(), _DECIMALS)
        if word in ("a", "b"):  # half of the letter
            return self._letter(word.upper(), where) / 2
        if match := _LETTER.fullmatch(word):
            return self._letter(match[1], where) + float(match[2] or 0)
        return number(word, where)

    def some(self, text: str, where: str) -> tuple[float, ...]:
        """Return the strengths of the layers of a block: one, or several with spaces between them.

        Args:
            text: As for `one`, and several of them.
            where: What it stands in, for messages.

        Raises:
            ArgumentError: As for `one`.
        """
        return tuple(self.one(word, where) for word in text.split() or [""])

    def is_list(self, text: str) -> bool:
        """Whether a text without commas can be a strength, and is no name."""
        words = text.split()
        return bool(words) and all(
            is_number(word) or word.upper() in (*_DRAWN, "A", "B") or _LETTER.fullmatch(word)
            for word in words
        )

    def _letter(self, letter: str, where: str) -> float:
        if letter not in self.given:
            raise ArgumentError(
                f"`{letter}` in `{where}` is not a finite number; to make it one, write it behind a "
                f"semicolon, as in `{letter},1,1; {letter}=0.5`"
            )
        return self.given[letter]


def split(text: str) -> tuple[str, Values]:
    """Return a text of strengths without its name and without what its letters are, and those.

    Args:
        text: `1,A,R`, `NAME:1,A,R` or `1,A,R; A=0.5, seed=3`.

    Raises:
        ArgumentError: What stands behind the semicolon gives no letter a finite number.
    """
    body, _, behind = text.partition(_BEHIND)
    if match := _NAME.match(body):
        body = body[match.end() :]
    given = {"X": 1.0}
    random: Random | None = None
    for part in filter(None, (one.strip() for one in behind.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        if name == _SEED and number.isdecimal():
            random = Random(int(number))  # noqa: S311 - a draw that can be repeated, no secret
        elif name in ("A", "B", "X") and is_number(number):
            given[name] = float(number)
        else:
            raise ArgumentError(
                f"`{part}` in `{text}` gives no letter a number; write A, B or X and a number, or for R "
                "and U a seed, which is a whole number, as in `1,A,R; A=0.5, seed=3`"
            )
    return body.strip(), Values(given, random)


def number(text: str, where: str) -> float:
    """Return the number that a text is.

    Args:
        text: A number, and no letter.
        where: What it stands in, for messages.

    Raises:
        ArgumentError: It is no finite number.
    """
    if not is_number(text):
        raise ArgumentError(f"`{text.strip()}` in `{where}` is not a finite number")
    return float(text)


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
