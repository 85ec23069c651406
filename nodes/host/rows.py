"""Rows of LoRAs: files with strengths, as text that is typed, as objects of a script, as a `LORA_STACK`."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from . import host

#: Sockets for strengths: a row that says the letter takes the number that arrives there.
LETTERS = "ABCDEFGH"
OFF = "#"
_TAG = re.compile(r"<lora:([^>]*)>")
_BLOCKS = "lbw="


class Row(tuple[str, float, float]):
    """(file name in models/loras, strength on the model, on the text encoders): of a `LORA_STACK`.

    Other packs' nodes see the three that they expect; `blocks` travels along.

    Attributes:
        blocks: Strengths by block, times the strengths; see `lora_ops.rules`.
    """

    blocks: str

    def __new__(cls, name: str, model: float, clip: float, blocks: str = "") -> Row:
        """Make a row."""
        made = super().__new__(cls, (name, model, clip))
        made.blocks = blocks
        return made


def of_stack(lora_stack: Sequence[Any]) -> list[Row]:
    """The rows of a stack of any pack's nodes; what is not there has strength 0."""
    return [one if isinstance(one, Row) else Row(*one[:3]) for one in lora_stack]


def rows_of(
    text: str, given: Mapping[str, Any], arriving: Mapping[str, float | None]
) -> tuple[list[Row], list[str]]:
    """Return the rows that are on, and lines that say what is odd.

    Args:
        text: One row a line: `name | strength | strength on CLIP | blocks`; all but the name may be
            left out, and `#` in front turns a row off. A line of `<lora:name:strength:clip>` is read
            too, with `lbw=…` for blocks.
        given: Rows as objects, after those of the text: `on`, `lora`, `strength`, `strengthTwo` (or
            `clip`), `blocks`; by inputs `lora_1`, `lora_2`, … .
        arriving: The number at each socket for strengths, by its letter.

    Raises:
        ArgumentError: A row without a file of that name, or with a strength that is no number.
    """
    used: set[str] = set()
    rows = [
        Row(_named(name), *_strengths(name, strength, clip, arriving, used), blocks)
        for name, strength, clip, blocks in (*_typed(text), *_given(given))
    ]
    unused = [letter for letter in arriving if letter not in used]
    return rows, [
        f"strength_{letter} is connected and no row takes it: type {letter} as a row's strength"
        for letter in unused
    ]


def files_in(text: str, given: Mapping[str, Any]) -> list[str]:
    """The files of the rows that are on, as far as there are such files; see `rows_of`."""
    from ...lora_ops import ArgumentError

    found: list[str] = []
    with contextlib.suppress(ArgumentError):
        found += [_named(name) for name, *_ in (*_typed(text), *_given(given))]
    return found


_Fields = tuple[str, Any, Any, str]


def _typed(text: str) -> Iterator[_Fields]:
    for line in text.splitlines():
        if line.strip().startswith(OFF):
            continue
        if tags := _TAG.findall(line):
            for tag in tags:
                parts = [part.strip() for part in tag.split(":")]
                blocks = next((one for one in parts if one.lower().startswith(_BLOCKS)), "")
                numbers = [one for one in parts if one != blocks]
                yield _fields([*numbers[:3], *[""] * (3 - len(numbers)), blocks[len(_BLOCKS) :]])
        elif line.strip():
            yield _fields([part.strip() for part in line.split("|")])


def _fields(parts: list[str]) -> _Fields:
    from ...lora_ops import ArgumentError

    if len(parts) > 4:
        raise ArgumentError(
            f"the row of `{parts[0]}` has {len(parts)} parts; write `name | strength | strength on CLIP "
            "| blocks`"
        )
    name, strength, clip, blocks = [*parts, "", "", ""][:4]
    return name, strength, clip, blocks


def _given(given: Mapping[str, Any]) -> Iterator[_Fields]:
    from ...lora_ops import ArgumentError

    for name, value in given.items():
        if not value or (isinstance(value, Mapping) and "lora" not in value):
            continue  # the header and the button of rgthree's loader, which its graphs send too
        if not isinstance(value, Mapping):
            raise ArgumentError(f"there is no input `{name}`; give rows as `rows`, or as objects")
        if value.get("on", True) and value["lora"] not in (None, "", "None"):
            clip = value.get("strengthTwo", value.get("clip"))
            strength = value.get("strength", 1.0)
            yield str(value["lora"]), strength, clip, str(value.get("blocks") or "")


def _strengths(
    name: str, model: Any, clip: Any, arriving: Mapping[str, float | None], used: set[str]
) -> tuple[float, float]:
    """The two strengths of a row; that on CLIP is the model's where it is left out."""
    first = _number(name, 1.0 if model in (None, "") else model, arriving, used)
    return first, first if clip in (None, "") else _number(name, clip, arriving, used)


def _number(name: str, told: Any, arriving: Mapping[str, float | None], used: set[str]) -> float:
    from ...lora_ops import ArgumentError

    letter = str(told).strip().upper()
    if letter in tuple(LETTERS):
        if (number := arriving.get(letter)) is None:
            raise ArgumentError(
                f"the row of `{name}` takes strength {letter}, and nothing arrives at `strength_{letter}`; "
                "connect a number to it, or type one"
            )
        used.add(letter)
        told = number
    try:
        number = float(told)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(
            f"the row of `{name}`: strength `{told}` is no finite number, nor the letter of a socket "
            f"({LETTERS[0]} to {LETTERS[-1]})"
        )
    return number


def _named(name: str) -> str:
    """The host's name for a file that may be typed without its folder or ending.

    Raises:
        ArgumentError: There is none, or there are several.
    """
    from ...lora_ops import ArgumentError
    from ...lora_ops.models.pairing import nearest

    names = host.file_names(host.LORAS)
    if name in names:
        return name
    wanted = name.replace("\\", "/")
    spelled = {one: PurePosixPath(one.replace("\\", "/")) for one in names}
    for fits in (
        [one for one, path in spelled.items() if wanted in (str(path), str(path.with_suffix("")))],
        [one for one, path in spelled.items() if wanted in (path.name, path.stem)],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise ArgumentError(
                f"the row of `{name}` fits {len(fits)} files, `{fits[0]}` and `{fits[1]}` among them; "
                "give its folder"
            )
    near = nearest(name, [*names, *(path.name for path in spelled.values())])
    raise ArgumentError(
        f"the row of `{name}`: no such file in models/loras; nearest: {near}; choose another, or "
        "turn the row off"
    )
