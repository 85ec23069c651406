"""A layer of SVDQuant as Nunchaku has it: its weight, and its bias; of two of them, what is one in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ....source import storage_name
from ....spacing import spacing
from ...base import quote
from ..headers import Headers
from ..weight import Parts
from . import tiles
from .low_rank import LowRank, moved_smoothing
from .weight import Nunchaku, halves

#: What is added behind GELU, so that int4 without a sign holds it. The bias makes up for it.
SHIFT = 0.171875
# A sum of many roundings is bell-shaped: two widths of its variance are 6.9 of its standard deviations.
_MIXED = 2.0
# What a layer's other tensors are for, and what first and later files call them.
_NAMES = {
    "smooth": ("smooth", "smooth_factor"),
    "moved": ("smooth_orig", "smooth_factor_orig"),
    "down": ("lora_down", "proj_down"),
    "up": ("lora_up", "proj_up"),
    "rows": ("wcscales",),
    "whole": ("wtscale",),
}
_CODES, _OF_SECOND = "codes of the weight", " of the second"


@dataclass(frozen=True)
class Columns(Nunchaku):
    """A weight whose first columns are one layer's, and whose last are another's.

    Attributes:
        layers: Both.
    """

    layers: tuple[LowRank, LowRank]

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """Those of both."""
        first, second = (dict.fromkeys(one.roles_of_steps, "") for one in self.layers)
        return tuple(joined(first, second))

    def decode(self, parts: Parts) -> Tensor:
        """Both, side by side."""
        both = zip(self.layers, _taken_apart(parts), strict=True)
        return torch.cat([one.decode(own) for one, own in both], dim=1)

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of both."""
        both = zip(self.layers, _taken_apart(parts), strict=True)
        return torch.cat([one.widths(own, first, last) for one, own in both], dim=1)


@dataclass(frozen=True)
class Bias(Nunchaku):
    """Rows of a layer's bias, and what it lacks for the shift of the layer's input.

    It lacks what the codes make of the shift, which the program adds to their input alone.

    Attributes:
        first: The first of the layer's rows that are the bias's.
        dtype: In which it is stored.
        shifted: The weight, where its input is shifted.
        added: A bias of another layer, for the same output.
    """

    first: int
    dtype: torch.dtype
    shifted: LowRank | None = None
    added: Bias | None = None

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """All but the codes of the weight."""
        return tuple(role for role in self.parts if _CODES not in role)

    def stored_size(self, size_of: Callable[[str], int]) -> int:
        """Of its own numbers: the others are the weight's."""
        return self.shape[0] * self.dtype.itemsize * (1 if self.added is None else 2)

    def decode(self, parts: Parts) -> Tensor:
        """The sum."""
        own, other = _taken_apart(parts)
        found = self._stored(own)
        if self.shifted is not None:
            found.add_(self.shifted.of_codes(_of_weight(own)).sum(dim=1), alpha=SHIFT)
        rows = moved_smoothing(own, "moved here", "smooth behind")
        if rows is not None:
            found.mul_(rows)
        return found if self.added is None else found.add_(self.added.decode(other))

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of the dtype, and what the shift makes of the weight's."""
        own, other = _taken_apart(parts)
        found = spacing(self._stored(own), self.dtype)
        if self.shifted is not None:
            found += self.shifted.width_of_sums(own) * SHIFT * _MIXED
        rows = moved_smoothing(own, "moved here", "smooth behind")
        if rows is not None:
            found *= rows.abs()
        if self.added is not None:
            found += self.added.widths(other, 0, 1)[0]
        return found.expand(last - first, -1)

    def _stored(self, parts: Parts) -> Tensor:
        return tiles.vector(parts["codes"])[self.first :][: self.shape[0]].clone()


def joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The parts of two layers, as those of one weight."""
    return {**first, **{role + _OF_SECOND: key for role, key in second.items()}}


def _taken_apart(parts: Parts) -> tuple[Parts, Parts]:
    """Those of the first and of the second layer."""
    first = {role: t for role, t in parts.items() if not role.endswith(_OF_SECOND)}
    second = {role.removesuffix(_OF_SECOND): t for role, t in parts.items() if role not in first}
    return first, second


def _of_weight(parts: Parts) -> Parts:
    """Those of the weight, of a bias that needs it."""
    return {**parts, "codes": parts[_CODES]}


def low_rank(
    headers: Headers,
    layer: str,
    name: str = "",
    *,
    shifted: bool = False,
    moved: bool = False,
    biased: bool = True,
) -> tuple[LowRank, Bias | None]:
    """The weight and the bias of a whole layer.

    Args:
        headers: Of the file.
        layer: Of Nunchaku's.
        name: Of the model's layer.
        shifted: Whether it is behind GELU.
        moved: Whether its smoothing may be in the layer before.
        biased: Whether the model's has a bias. Where not, one of zeros is none.

    Raises:
        QuantisedError: Its tensors are missing, of other dtypes or of shapes that do not fit.
    """
    codes, scales = headers.needed(layer, "qweight", "wscales").values()
    headers.check_dtype(layer, codes, torch.int8, torch.uint8)
    stored = headers.shape(codes)
    rows, columns = (stored[0], 2 * stored[1]) if len(stored) == 2 else (0, 0)
    if not rows or not columns or rows % tiles.TILE or columns % tiles.TILE:
        raise headers.damaged(
            layer, f"{quote(codes)} has the shape {list(stored)}: no tiles of {tiles.TILE}"
        )
    headers.check_dtype(layer, scales, torch.float8_e4m3fn, *halves())
    floats = headers.dtype(scales) == torch.float8_e4m3fn
    headers.check(layer, scales, (columns // (16 if floats else 64), rows))
    held = {role: key for role, names in _NAMES.items() for key in headers.held(layer, *names)}
    headers.check_floats(layer, *held.values())
    if "smooth" not in held:
        raise headers.damaged(layer, f"the file has no {quote(f'{layer}.smooth')}")
    if ("up" in held) != ("down" in held):
        raise headers.damaged(layer, "the file has only one of its factors of low rank")
    rank = max(1, (0, *headers.shape(held["up"]))[-1] // 16) * 16 if "up" in held else 0
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = {
        **dict.fromkeys(("smooth", "moved"), ((columns,),)),
        "down": ((columns, rank),),
        "up": ((rows, rank),),
        "rows": ((rows,),),
        "whole": ((), (1,)),
    }
    for role, key in held.items():
        headers.check(layer, key, *shapes[role])
    beside = [] if moved or "moved" not in held else [held.pop("moved")]
    if not biased:
        biases = headers.held(layer, "bias")
        beside += [key for key in biases if not bool(headers.source.tensor(key).any())]
    weight = LowRank(
        *(f"{name}.weight", (rows, columns), f"SVDQuant {'nvfp4' if floats else 'int4'}"),
        {"codes": codes, "scales": scales, **held},
        first=0,
        among=rows,
        floats=floats,
        beside=tuple(beside),
    )
    return weight, _bias(headers, layer, name, weight, shifted and not floats)


# The parts of a weight that the codes of it do without.
_UNUSED = ("codes", "up", "down")


def _bias(headers: Headers, layer: str, name: str, weight: LowRank, shifted: bool) -> Bias | None:
    for key in headers.held(layer, "bias"):
        rows = weight.shape[0]
        headers.check_floats(layer, key)
        headers.check(layer, key, (rows,))
        if key in weight.beside:
            continue
        parts = {"codes": key}
        if shifted:
            parts |= {_CODES: weight.parts["codes"]}
            parts |= {role: weight.parts[role] for role in weight.parts if role not in _UNUSED}
        dtype = headers.dtype(key)
        return Bias(
            *(
                f"{name}.bias",
                (rows,),
                f"{storage_name(dtype)}, {'shifted' if shifted else 'packed'}",
            ),
            parts,
            first=0,
            dtype=dtype,
            shifted=weight if shifted else None,
        )
    return None
