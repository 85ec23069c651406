"""Rank rules: from the singular values of a change to the rank that it gets.

One text form, for the command line and the nodes, with one meaning each:

    32, rank=32       that many
    energy=0.95       smallest rank that keeps this share of the sum of squares
    fro=0.95          ... of the norm: the square root of the energy
    error=0.05        ... whose relative Frobenius error is at most this
    cumulative=0.9    smallest rank that keeps this share of the plain sum
    ratio=20          all singular values above the largest divided by this
    threshold=1e-3    all singular values above this, in absolute terms
    knee              up to the bend of the curve (Kneedle)
    noise             what stands above the rounding of storage (`standing`), for extraction alone

joined by commas with `min=`, `max=` and `conv=`, a rule of its own for kernels larger than 1x1.

kohya's sv_fro, sv_cumulative and sv_ratio find the same number and keep one more, up to all
(`networks/resize_lora.py` of sd-scripts, `rank_resize`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ArgumentError

NOISE_ALONE = (
    "rank rule `noise` asks how two checkpoints are stored: only an extraction from their files can follow it; "
    "give another rule"
)

# Given singular values (k,) descending, float64, and the sum of all squares: the wanted count, or
# None where the values known so far do not settle it.
Chooser = Callable[[Tensor, float, float], "int | None"]


def _fixed(s: Tensor, _total: float, value: float) -> int | None:
    return int(value) if len(s) >= value else None


def _energy(s: Tensor, total: float, value: float) -> int | None:
    return _reach(s.square(), value * total)


def _fro(s: Tensor, total: float, value: float) -> int | None:
    return _reach(s.square(), value * value * total)


def _error(s: Tensor, total: float, value: float) -> int | None:
    return _reach(s.square(), (1 - value * value) * total)


def _cumulative(s: Tensor, _total: float, value: float) -> int | None:
    return _reach(s, value * float(s.sum()))


def _ratio(s: Tensor, _total: float, value: float) -> int | None:
    return _above(s, float(s[0]) / value)


def _threshold(s: Tensor, _total: float, value: float) -> int | None:
    return _above(s, value)


def _knee(s: Tensor, _total: float, _value: float) -> int | None:
    """The point of the curve that is furthest below the chord from its first to its last value."""
    fall = float(s[0] - s[-1])
    if len(s) < 3 or fall <= 0:
        return len(s)
    along = torch.linspace(0, 1, len(s), dtype=s.dtype, device=s.device)
    return int((1 - along - (s - s[-1]) / fall).argmax()) + 1


def _noise(_s: Tensor, _total: float, _value: float) -> int | None:
    raise ArgumentError(NOISE_ALONE)


def _reach(terms: Tensor, goal: float) -> int | None:
    """Smallest count of leading terms whose sum reaches the goal, within rounding."""
    reached = terms.cumsum(0) >= goal * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else None


def _above(s: Tensor, floor: float) -> int | None:
    count = int((s > floor).sum())
    return count if count < len(s) else None


@dataclass(frozen=True, slots=True)
class _Kind:
    choose: Chooser
    low: float
    high: float
    meaning: str
    whole: bool = False  # the value is an integer
    spectrum: bool = False  # needs all singular values, not only the leading ones

    @property
    def is_bare(self) -> bool:
        """Whether it has no number."""
        return self.low == self.high


_KINDS = {
    "rank": _Kind(
        _fixed, 0, 65536, "a whole number from 1 to 65536 (0 leaves the layers out)", whole=True
    ),
    "energy": _Kind(_energy, 0, 1, "a share between 0 and 1"),
    "fro": _Kind(_fro, 0, 1, "a share between 0 and 1"),
    "error": _Kind(_error, 0, 1, "a share between 0 and 1"),
    "cumulative": _Kind(_cumulative, 0, 1, "a share between 0 and 1", spectrum=True),
    "ratio": _Kind(_ratio, 1, math.inf, "a number above 1"),
    "threshold": _Kind(_threshold, 0, math.inf, "a singular value, above 0"),
    "knee": _Kind(_knee, 0, 0, "no value", spectrum=True),
    "noise": _Kind(_noise, 0, 0, "no value"),
}

#: The names of the rules here, and of those that share ranks out across layers (`budgets`).
RULES = tuple(_KINDS)
BUDGETS = ("size", "mean", "total_error")


@dataclass(frozen=True, slots=True)
class RankRule:
    """How many singular directions a layer keeps.

    Attributes:
        kind: One of `rank energy fro error cumulative ratio threshold knee noise`.
        value: Its number; for `rank` a count (0: leave such layers out), for `knee` and `noise` unused.
        least: Never fewer than this, where the layer has so many.
        most: Never more than this; None for no limit.
        conv: The rule for kernels larger than 1x1; None: this one.
    """

    kind: str
    value: float = 0
    least: int = 1
    most: int | None = None
    conv: RankRule | None = None

    @property
    def needs_spectrum(self) -> bool:
        """Whether all singular values are needed, not only the leading ones."""
        return _KINDS[self.kind].spectrum

    @property
    def is_noise(self) -> bool:
        """Whether it keeps what stands above the rounding of storage."""
        return self.kind == "noise"

    @property
    def leaves_out(self) -> bool:
        """Whether it gives no rank at all: rank 0."""
        return self.kind == "rank" and self.value == 0

    def for_kernel(self, kernel: tuple[int, ...]) -> RankRule:
        """The rule for a layer with this kernel; `()` for a linear."""
        return self.conv if self.conv is not None and math.prod(kernel) > 1 else self

    def first_guess(self, full: int) -> int:
        """How many leading singular values to look at first; at most `full`."""
        guess = int(self.value) if self.kind == "rank" else 64
        return min(full, max(guess, self.least), self.most or full)

    def choose(self, s: Tensor, total: float, full: int) -> int | None:
        """Return the rank, or None where more singular values are needed to tell.

        Args:
            s: (k,) leading singular values, descending, float64; all of them if k == full.
            total: Sum of the squares of all singular values.
            full: min(out, in): no rank exceeds it.

        Raises:
            ArgumentError: The rule is `noise`, which singular values alone do not settle.
        """
        most = full if self.most is None else min(self.most, full)
        least = min(self.least, most)
        if self.needs_spectrum and len(s) < full:
            return None
        chosen = _KINDS[self.kind].choose(s, total, self.value)
        if chosen is None:
            if len(s) < most:
                return None
            chosen = most  # more is wanted than the layer has, or than `max` allows
        rank = max(least, min(chosen, most))
        return rank if rank <= len(s) else None

    def __str__(self) -> str:
        """The text form that `parse_rank` reads."""
        text = "" if self.kind == "rank" else f"{self.kind}="
        value = int(self.value) if self.value == int(self.value) else self.value
        text = self.kind if _KINDS[self.kind].is_bare else f"{text}{value!r}"
        text += f",min={self.least}" if self.least > 1 else ""
        text += f",max={self.most}" if self.most is not None else ""
        return text + (f",conv={self.conv}" if self.conv is not None else "")


@dataclass(frozen=True, slots=True)
class RuleParts:
    """A rule's text taken apart: its name, the text of its number, and its limits where given."""

    kind: str
    number: str
    least: int | None
    most: int | None
    conv: RankRule | None


def parse_rank(text: str | int | RankRule, *, stored: bool = False) -> RankRule:
    """Read a rank rule from its text form; see the module's head for the forms.

    `noise` is one only if the rule is for a difference of weights as they are stored: with `stored=True`.

    Raises:
        ArgumentError: Unknown name or a value out of range; names the nearest rule.
    """
    if isinstance(text, RankRule):
        rule = text
    else:
        parts = split_rule(str(text), RULES)
        value = _value(parts.kind, parts.number)
        rule = RankRule(parts.kind, value, parts.least or 1, parts.most, parts.conv)
    if not stored and (rule.is_noise or (rule.conv is not None and rule.conv.is_noise)):
        raise ArgumentError(NOISE_ALONE)
    return rule


def split_rule(text: str, names: Collection[str]) -> RuleParts:
    """Take a rule's text apart; `names` are the rules that may stand in it.

    Raises:
        ArgumentError: Unknown name, no rule or two, or limits that are none.
    """
    kind, value = "", ""
    least, most, conv = None, None, None
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not equals and name.isascii() and name.isdecimal():
            name, number = "rank", name
        if name == "min":
            least = _count(part, number)
        elif name == "max":
            most = _count(part, number)
        elif name == "conv":
            conv = parse_rank(number, stored=True)
        elif not equals and _is_number(name):
            raise ArgumentError(f"`{name}`: a rank is a whole number from 1 to 65536, such as 32")
        elif name not in names:
            raise ArgumentError(_unknown(name, text, names))
        elif kind:
            raise ArgumentError(
                f"rank rule `{text}` holds two rules, `{kind}` and `{name}`; "
                "give one, with min= and max= as limits"
            )
        else:
            kind, value = name, number
    if not kind:
        raise ArgumentError(
            f"rank rule `{text}` has limits but no rule; start it with a rank: `32,{text}`"
        )
    if least is not None and most is not None and least > most:
        raise ArgumentError(f"rank rule `{text}`: min={least} is above max={most}")
    return RuleParts(kind, value, least, most, conv)


def _value(name: str, number: str) -> float:
    kind = _KINDS[name]
    if kind.is_bare and not number:
        return 0.0
    try:
        value = int(number) if kind.whole else float(number)
    except ValueError:
        value = math.nan
    inside = kind.low <= value <= kind.high if kind.whole else kind.low < value < kind.high
    if not inside and not (kind.high == 1 and value == 1):
        raise ArgumentError(f"`{name}={number}`: give {kind.meaning}")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _count(part: str, number: str) -> int:
    if not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise ArgumentError(f"`{part.strip()}`: give a whole number from 1")
    return int(number)


def _unknown(name: str, text: str, names: Collection[str]) -> str:
    known = ", ".join(names)
    if name in BUDGETS:
        return f"`{name}=` is a budget across layers, which this operation does not take; use one of {known}"
    near = difflib.get_close_matches(name, [*names, "min", "max", "conv"], n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; use a number or one of {known}"
    return f"unknown rank rule `{name}` in `{text}`{hint}"
