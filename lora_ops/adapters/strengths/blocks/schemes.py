"""Lists of strengths by block that users have: which number means which block, and named lists. Data.

Facts about the lists, not code, are from hako-mikan's sd-webui-lora-block-weight (LBW) and
sd-webui-supermerger, and from bbc-mc's sdweb-merge-block-weighted-gui (MBW).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the numbers of a list stand for.

    Attributes:
        title: What it is made for.
        labels: The block of each number.
        spares: Blocks that may be in the file without a number: they keep their strength.
    """

    title: str
    labels: tuple[str, ...]
    spares: tuple[str, ...] = ()


def _labels(label: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{label}{number:02}" for number in numbers)


_FULL = ("BASE", *_labels("IN", *range(12)), "M00", *_labels("OUT", *range(12)))

#: Schemes by how many numbers a list has.
SCHEMES = {
    12: Scheme(
        "Stable Diffusion XL, attention only",
        ("BASE", *_labels("IN", 4, 5, 7, 8), "M00", *_labels("OUT", *range(6))),
    ),
    17: Scheme(
        "Stable Diffusion 1 and 2, attention only",
        ("BASE", *_labels("IN", 1, 2, 4, 5, 7, 8), "M00", *_labels("OUT", *range(3, 12))),
    ),
    20: Scheme(
        "Stable Diffusion XL, all blocks",
        ("BASE", *_labels("IN", *range(9)), "M00", *_labels("OUT", *range(9))),
    ),
    25: Scheme("Stable Diffusion 1 and 2, all blocks without BASE", _FULL[1:], ("BASE",)),
    26: Scheme("Stable Diffusion 1 and 2, all blocks", _FULL),
    61: Scheme(
        "Flux.1",
        ("CLIP", "T5", "IN", *_labels("D", *range(19)), *_labels("S", *range(38)), "OUT"),
    ),
}
ALL_BLOCKS = SCHEMES[26]


def _smoothstep(x: float) -> float:
    return x * x * (3 - 2 * x)


def _fold(x: float) -> float:
    """Up and down between 0 and 1, with period 2."""
    return 1 - abs(x % 2 - 1)


def _tent(x: float) -> float:
    return _fold(2 * x)


def _cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2


def _true_hermite(x: float) -> float:
    return ((308 * x - 462) * x + 200) * x / 48 + 2 / 48 if x else 0.0  # as published


def _fake_hermite(x: float) -> float:
    return ((38 * x - 57) * x + 25) * x / 6


_Curve = Callable[[float], float]


def _reversed(curve: _Curve) -> _Curve:
    return lambda x: 1 - curve(x)


def _folded_after(times: int) -> _Curve:
    return lambda x: _fold(times * _smoothstep(x))


def _folded_before(times: int) -> _Curve:
    return lambda x: _smoothstep(_fold(times * x))


_STEEPER = {f"SMOOTHSTEP*{times}": _folded_after(times) for times in (2, 3, 4)} | {
    f"SMOOTHSTEP/{times}": _folded_before(times) for times in (2, 3, 4)
}

# Curves of the strength over x, from 0 at IN00 to 1 at OUT11.
_CURVES: dict[str, _Curve] = {
    "GRAD_A": _tent,
    "GRAD_V": _reversed(_tent),
    "SMOOTHSTEP": _smoothstep,
    "REVERSE-SMOOTHSTEP": _reversed(_smoothstep),
    **_STEEPER,
    **{f"R_{name}": _reversed(curve) for name, curve in _STEEPER.items()},
    "COSINE": _cosine,
    "REVERSE_COSINE": _reversed(_cosine),
    "TRUE_CUBIC_HERMITE": _true_hermite,
    "TRUE_REVERSE_CUBIC_HERMITE": _reversed(_true_hermite),
    "FAKE_CUBIC_HERMITE": _fake_hermite,
    "FAKE_REVERSE_CUBIC_HERMITE": _reversed(_fake_hermite),
}

# How many blocks, from BASE on, have which strength. LBW lists 17 of the 26: the others, which it
# sets to 0, have their neighbours' here, as the names say.
_STEPS: dict[str, tuple[tuple[int, float], ...]] = {
    "NONE": ((26, 0),),
    "ALL": ((26, 1),),
    "ALL0.5": ((26, 0.5),),
    "INS": ((6, 1), (20, 0)),
    "IND": ((1, 1), (5, 0), (7, 1), (13, 0)),
    "INALL": ((13, 1), (13, 0)),
    "MIDD": ((1, 1), (5, 0), (15, 1), (5, 0)),
    "OUTD": ((1, 1), (13, 0), (7, 1), (5, 0)),
    "OUTS": ((1, 1), (20, 0), (5, 1)),
    "OUTALL": ((1, 1), (13, 0), (12, 1)),
    "ALL_A": ((26, 0),),
    "ALL_B": ((26, 1),),
    "FLAT_25": ((1, 0), (25, 0.25)),
    "FLAT_75": ((1, 0), (25, 0.75)),
    "WRAP08": ((1, 0), (4, 1), (17, 0), (4, 1)),
    "WRAP12": ((1, 0), (6, 1), (13, 0), (6, 1)),
    "WRAP14": ((1, 0), (7, 1), (11, 0), (7, 1)),
    "WRAP16": ((1, 0), (8, 1), (9, 0), (8, 1)),
    "MID12_50": ((6, 0), (14, 0.5), (6, 0)),
    "OUT07": ((19, 0), (7, 1)),
    "OUT12": ((14, 0), (12, 1)),
    "OUT12_5": ((13, 0), (1, 0.5), (12, 1)),
    "RING08_5": ((7, 0), (4, 1), (5, 0), (4, 1), (6, 0)),
    "RING08_SOFT": (
        *((6, 0), (1, 0.5), (3, 1), (1, 0.5)),
        *((5, 0), (1, 0.5), (3, 1), (1, 0.5), (5, 0)),
    ),
    "RING10_3": ((7, 0), (5, 1), (3, 0), (5, 1), (6, 0)),
    "RING10_5": ((6, 0), (5, 1), (5, 0), (5, 1), (5, 0)),
}

#: Presets by name: the strengths of `ALL_BLOCKS`, in order.
PRESETS: dict[str, tuple[float, ...]] = {
    name: tuple(float(value) for count, value in steps for _ in range(count))
    for name, steps in _STEPS.items()
} | {name: (0.0, *(curve(index / 24) for index in range(25))) for name, curve in _CURVES.items()}
