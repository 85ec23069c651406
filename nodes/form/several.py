"""Any number of LoRAs, with a strength each where they go together: sockets, and what is typed about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..host.api import io
from ..host.lora_model import LoraModel, as_file
from .schema import lora_input, reported

if TYPE_CHECKING:
    from ...lora_ops import Ingredient

MOST = 16
_SOCKET = "lora"  # with its number after it, from 0


def several_inputs(least: int, example: str, more: str = "") -> list[io.Input]:
    """Sockets for LoRAs, and their strengths as text.

    Args:
        least: How many there are at first.
        example: An example of strengths, for the tooltip.
        more: What else the tooltip says of them.
    """
    return [
        lora_sockets(least),
        io.String.Input(
            "strengths",
            default="",
            optional=True,
            placeholder=example,
            tooltip="A strength for each socket, in order, separated by commas; 1 for those that are not "
            f"given. A socket that nothing is connected to keeps its place.{more}",
        ),
    ]


def lora_sockets(
    least: int, most: int = MOST, tooltip: str = "The LoRAs; a new socket appears for the next."
) -> io.Input:
    """Sockets for LoRAs.

    Args:
        least: How many there are at first.
        most: How many there may be.
        tooltip: What they are.
    """
    return io.Autogrow.Input(
        "loras",
        template=io.Autogrow.TemplatePrefix(
            # Optional, so that a graph runs on where a node before it is bypassed or muted.
            lora_input(tooltip="One of the LoRAs.", optional=True),
            prefix=_SOCKET,
            min=least,
            max=most,
        ),
        tooltip=tooltip,
    )


def connected(loras: Mapping[str, Mapping[str, Tensor] | None]) -> dict[int, Mapping[str, Tensor]]:
    """The LoRAs that are connected, empty ones too, by the number of their socket, from 0."""
    held = {
        int(name.removeprefix(_SOCKET)): lora for name, lora in loras.items() if lora is not None
    }
    return dict(sorted(held.items()))


def socket_name(at: int) -> str:
    """What the socket of a number, from 0, is called on the node."""
    return f"{_SOCKET}{at}"


def ingredients_of(
    loras: Mapping[str, Mapping[str, Tensor] | None], strengths: str
) -> list[Ingredient]:
    """Return the LoRAs that are connected and not empty, each with the strength of its socket.

    Raises:
        ArgumentError: A strength is no finite number, or there are more of them than sockets.
    """
    from ...lora_ops import Ingredient

    held = connected(loras)
    factors = parse_strengths(strengths, max(held, default=-1) + 1)
    return [Ingredient(as_file(lora), factors[at]) for at, lora in held.items() if lora]


def keep_whole_input(methods: str) -> io.String.Input:
    """Which LoRAs `methods` do not see."""
    return io.String.Input(
        "keep_whole",
        default="",
        optional=True,
        placeholder="lora1, or none",
        tooltip=f"Sockets, separated by commas, whose LoRAs {methods} does not see: they are added to its result as "
        "they are. Empty: LCM, Lightning, DMD, Turbo and Hyper LoRAs, known by name; none: no LoRA.",
    )


def kept_of(loras: Mapping[str, Mapping[str, Tensor] | None], text: str) -> list[int] | None:
    """Return the places, among what `ingredients_of` returns, of LoRAs that are named by their sockets.

    Args:
        loras: All sockets.
        text: Names of sockets, or their numbers, with commas between; `none`; empty for no answer.

    Raises:
        ArgumentError: Nothing is connected to such a socket.
    """
    from ...lora_ops import ArgumentError

    names = [socket_name(at) for at, lora in connected(loras).items() if lora]
    if not text.strip():
        return None
    if text.strip() == "none":
        return []
    places: list[int] = []
    for part in text.split(","):
        word = part.strip()
        name = word if word.startswith(_SOCKET) else f"{_SOCKET}{word}"
        if name not in names:
            raise ArgumentError(
                f"`keep_whole` {word}: no LoRA is connected there; write {', '.join([*names, 'none'])}, or nothing"
            )
        places.append(names.index(name))
    return places


def parse_strengths(
    text: str, count: int, word: str = "strength", of: str = "LoRAs", default: float = 1.0
) -> list[float]:
    """Return a strength for each of so many sockets, from text with commas between them.

    Args:
        text: As it was typed.
        count: How many sockets there are.
        word: What a number is called.
        of: What the sockets are for.
        default: The number where none is given.

    Raises:
        ArgumentError: One is no finite number, or there are more than sockets.
    """
    from ...lora_ops import ArgumentError

    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > count:
        raise ArgumentError(f"{len(parts)} {word}s for {count} {of}: give one each, in order")
    found: list[float] = []
    for part in parts:
        try:
            found.append(float(part or default))
        except ValueError:
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise ArgumentError(f"{word} `{part}` is no finite number; write them as `1, 0.7`")
    return found + [default] * (count - len(found))


def nothing_in_it() -> io.NodeOutput:
    """The outputs of a node whose input has no layers, as of an empty stack: the same again."""
    return reported("the LoRA is empty: nothing to do", LoraModel({}, "nothing"))
