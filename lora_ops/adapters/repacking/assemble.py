"""One layer of a conversion, from the rows of the input's layers that it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from ...errors import UnsupportedLayerError, WeightShapeError
from ..adapter import Adapter
from ..formats import ModelNames
from ..layers import Layer
from ..outline import outlined
from .plan import RenamedLayer, is_packed
from .rows import Block, halves_swapped, rows_of, stacked


def blocks_of(adapter: Adapter, piece: RenamedLayer, names: ModelNames) -> list[Block]:
    """Return the rows of the piece that each layer of the input changes, from its first row on.

    Args:
        adapter: The input.
        piece: From `planned`, of this adapter.
        names: Of the model.

    Raises:
        WeightShapeError: They are not packed as the model's rows are.
        UnsupportedLayerError: A layer is of a kind whose rows cannot be had apart.
    """
    known = [(module, at, adapter.layers[module]) for module, at in piece.members]
    if not piece.is_cut and not piece.is_joined:
        return [Block(module, layer, 0) for module, _, layer in known]
    heights = {Fraction(layer.shape[0]) / (at.stop - at.start) for _, at, layer in known}
    if len(heights) > 1:
        told = ", ".join(f"`{module}` {layer.shape}" for module, _, layer in known)
        raise WeightShapeError(
            f"{told} are not the rows of one `{piece.place.native}`; give the right model as "
            "`architecture=`",
            target=piece.module,
        )
    (height,) = heights
    found: list[Block] = []
    for module, at, layer in known:
        if not is_packed(names, layer.shape, at):
            title = names.architecture.title if names.architecture is not None else "the model"
            raise WeightShapeError(
                f"layer `{module}` changes a weight of shape {layer.shape}, which is not packed as "
                f"`{at.native}` of {title} is; give the right model as `architecture=`",
                target=module,
            )
        start, stop = max(at.start, piece.place.start), min(at.stop, piece.place.stop)
        edges = [(edge - at.start) * height for edge in (start, stop)]
        offset = (start - piece.place.start) * height
        if any(edge.denominator > 1 for edge in (*edges, offset)):
            raise WeightShapeError(
                f"layer `{module}` of shape {layer.shape} cannot be divided where "
                f"`{piece.place.native}` is; give the right model as `architecture=`",
                target=module,
            )
        first, last = map(int, edges)
        found.append(Block(module, rows_of(layer, first, last, module), int(offset)))
    return found


def assembled(
    blocks: Sequence[Block], piece: RenamedLayer, dtype: torch.dtype | None = None
) -> Layer:
    """Return the blocks as one layer, with its own alpha; one that is all of it stays as it is.

    Args:
        blocks: From `blocks_of`, of this piece.
        piece: Which rows the layer is to change.
        dtype: Of what is joined; None: what holds all that the blocks hold.

    Raises:
        UnsupportedLayerError: The blocks cannot be joined, or their halves not swapped.
        NonFiniteError: A number is beyond the range of the dtype.
    """
    layer = blocks[0].layer
    if piece.is_joined:
        rows = sum(block.layer.shape[0] for block in blocks) / piece.covered
        layer = stacked(blocks, int(rows), piece.module, dtype)
    if {at.swapped for _, at in piece.members} == {piece.place.swapped}:
        return layer
    if len(layer.shape) < 2:
        raise UnsupportedLayerError(
            f"layer `{piece.members[0][0]}` is the bias of a modulation, and its shape does not say "
            "whether its halves are in the other order there; leave it out",
            target=piece.members[0][0],
        )
    halves = layer.shape[0] == 2 * layer.shape[1]
    return halves_swapped(layer, piece.module) if halves else layer


@dataclass(frozen=True, slots=True, eq=False)
class RepackedLayers(Mapping[str, Layer]):
    """Layers renamed, cut or joined as pieces say, made when they are asked for.

    Attributes:
        adapter: The input.
        pieces: By name in the result; from `planned`, of this adapter.
        names: Of the model.
    """

    adapter: Adapter
    pieces: Mapping[str, RenamedLayer]
    names: ModelNames

    def __getitem__(self, module: str) -> Layer:
        piece = self.pieces[module]
        return assembled(blocks_of(self.adapter, piece, self.names), piece)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def outline(self) -> Mapping[str, Layer]:
        """The same without data."""
        return replace(self, adapter=outlined(self.adapter))
