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
        rest: The label whose number all blocks have that are not in ``labels``; empty: none is.
    """

    title: str
    labels: tuple[str, ...]
    spares: tuple[str, ...] = ()
    rest: str = ""


def _labels(label: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{label}{number:02}" for number in numbers)


# The middle block of a UNet in three, as the Inspire Pack counts.
_MIDDLE = ("M00.0", "M00.1", "M00.2")
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
    21: Scheme(
        "Stable Diffusion XL, Inspire Pack",
        ("BASE", *_labels("IN", *range(1, 9)), *_MIDDLE, *_labels("OUT", *range(9))),
        spares=("IN00",),
    ),
    25: Scheme("Stable Diffusion 1 and 2, all blocks without BASE", _FULL[1:], ("BASE",)),
    26: Scheme("Stable Diffusion 1 and 2, all blocks", _FULL),
    27: Scheme(
        "Stable Diffusion 1 and 2, Inspire Pack",
        ("BASE", *_labels("IN", *range(1, 12)), *_MIDDLE, *_labels("OUT", *range(12))),
        spares=("IN00",),
    ),
    58: Scheme(
        "Flux.1, Inspire Pack",
        ("BASE", *_labels("D", *range(19)), *_labels("S", *range(38))),
        rest="BASE",
    ),
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

#: Presets for models with numbered blocks of any kind: from which share of the depth to which it is 1.
BANDS = {
    "FIRST-HALF": (0.0, 1 / 2),
    "LAST-HALF": (1 / 2, 1.0),
    "FIRST-THIRD": (0.0, 1 / 3),
    "MIDDLE-THIRD": (1 / 3, 2 / 3),
    "LAST-THIRD": (2 / 3, 1.0),
}

#: Presets in labels, the Inspire Pack's and LBW's; those with letters need their values.
LABELLED = {
    "MIDALL": "IN=0,OUT=0",
    "MIDD0.2": "IN=0,OUT=0,IN08-IN11=0.2,M00-OUT03=0.4,OUT04=0.2",
    "MIDD0.8": "IN=0,OUT=0,IN07=0.5,IN08-M00=0.8,OUT00-OUT03=0.4",
    "MOUT": "IN00-IN07=0,OUT09=0.5,OUT10-OUT11=0",
    "ROUT": "OUT=R",
    "AOUT": "BASE=A,OUT07-OUT11=A",
    "AB": "ALL=B,BASE=A,OUT07-OUT11=A",
    "FLUXALL": "ALL=1",
    "FLUX-ALL": "ALL=1",
    "FLUX-DBL-ALL": "S=0",
    "FLUX-DBL-FRONT7": "D=0,S=0,D00-D06=1",
    "FLUX-DBL-MID6": "D=0,S=0,D07-D12=1",
    "FLUX-DBL-TAIL6": "D=0,S=0,D13-D18=1",
    "FLUX-SINGLE-ALL": "D=0",
    "FLUX-SINGLE-1TO10": "D=0,S=0,S00-S09=1",
    "FLUX-SINGLE-11TO20": "D=0,S=0,S10-S19=1",
    "FLUX-SINGLE-21TO30": "D=0,S=0,S20-S29=1",
    "FLUX-SINGLE-31TO37": "D=0,S=0,S30-S37=1",
}
