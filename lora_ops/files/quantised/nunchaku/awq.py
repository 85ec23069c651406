"""AWQ as Nunchaku has modulations in it: integers of 4 bits, with a scale and an offset for every 64 of a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ....source import storage_name
from ....spacing import spacing
from ...base import quote
from ..headers import Headers
from ..memory import PIECE
from ..weight import Parts
from .tiles import one_by_one, words_of_four
from .weight import Nunchaku, halves

_GROUP = 64


@dataclass(frozen=True)
class Modulation(Nunchaku):
    """A weight that makes several vectors, whose rows lie interleaved.

    Attributes:
        vectors: How many.
    """

    vectors: int

    def decode(self, parts: Parts) -> Tensor:
        """The numbers, one vector after the other."""
        rows, columns = self.shape
        words = one_by_one(words_of_four(parts["codes"]), self.vectors).view(rows, -1, 8)
        scales, offsets = (self._by_rows(parts[role]) for role in ("scales", "offsets"))
        found = torch.empty(rows, columns // 32, 4, 8)
        some = max(1, PIECE // columns)
        for piece, four, scale, offset in zip(
            *(one.split(some) for one in (found, words, scales, offsets)), strict=True
        ):
            for nibble in range(4):
                piece[:, :, nibble].copy_((four >> 4 * nibble) & 15)
            groups = piece.view(*scale.shape, _GROUP)
            groups.mul_(scale.unsqueeze(-1)).add_(offset.unsqueeze(-1))
        return found.view(self.shape)

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """The scales."""
        found = self._by_rows(parts["scales"])[first:last].double().abs()
        return found.repeat_interleave(_GROUP, dim=1)

    def _by_rows(self, stored: Tensor) -> Tensor:
        """Scales or offsets, (groups, rows), as float32 (rows, groups)."""
        groups = stored[: self.shape[1] // _GROUP]  # more where they are padded
        return one_by_one(groups.t().float().contiguous(), self.vectors)


@dataclass(frozen=True)
class ModulationBias(Nunchaku):
    """A bias, to which 1 is added where its vector multiplies.

    Attributes:
        vectors: How many there are.
        dtype: In which it is stored.
    """

    vectors: int
    dtype: torch.dtype

    @property
    def roles_of_steps(self) -> tuple[str, ...]:
        """The numbers themselves."""
        return ("codes",)

    def decode(self, parts: Parts) -> Tensor:
        """The numbers, one vector after the other, without the 1."""
        found = self._stored(parts).view(self.vectors, -1)
        found[[1, -2]] -= 1  # shift, scale and gate, once or twice
        return found.view(self.shape)

    def widths(self, parts: Parts, first: int, last: int) -> Tensor:
        """Those of the dtype, with the 1."""
        return spacing(self._stored(parts), self.dtype).expand(last - first, -1)

    def _stored(self, parts: Parts) -> Tensor:
        return one_by_one(parts["codes"].float(), self.vectors)


def modulation(headers: Headers, layer: str, vectors: int) -> Iterator[Modulation | ModulationBias]:
    """The weight and the bias of a layer.

    Args:
        headers: Of the file.
        layer: Which, by Nunchaku's name and the model's.
        vectors: How many it makes.

    Raises:
        QuantisedError: Its tensors are missing, of other dtypes or of shapes that do not fit.
    """
    codes, scales, offsets = headers.needed(layer, "qweight", "wscales", "wzeros").values()
    headers.check_dtype(layer, codes, torch.int32)
    stored = headers.shape(codes)
    rows, columns = (4 * stored[0], 2 * stored[1]) if len(stored) == 2 else (0, 0)
    if not rows or not columns or rows % vectors or columns % _GROUP:
        raise headers.damaged(
            layer, f"{quote(codes)} has the shape {list(stored)}: no {vectors} vectors in groups"
        )
    groups = columns // _GROUP
    for key in (scales, offsets):
        headers.check_dtype(layer, key, *halves())
        headers.check(layer, key, (groups, rows), (-(-groups // 16) * 16, rows))
    for key in headers.held(layer, "lora_down", "lora_up"):
        raise headers.damaged(layer, f"{quote(key)} is of a LoRA that was put in")
    held = {"codes": codes, "scales": scales, "offsets": offsets}
    yield Modulation(f"{layer}.weight", (rows, columns), "AWQ int4", held, vectors=vectors)
    for key in headers.held(layer, "bias"):
        headers.check_floats(layer, key)
        headers.check(layer, key, (rows,))
        dtype = headers.dtype(key)
        storage = f"{storage_name(dtype)}, 1 added"
        yield ModulationBias(key, (rows,), storage, {"codes": key}, vectors=vectors, dtype=dtype)
