"""What a conversion will do to the layers, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...adapters.adapter import Adapter
from ...adapters.edited import check_not_empty
from ...adapters.layers import Layer
from ...adapters.outline import outline, outlined
from ...adapters.repacking.assemble import assembled, blocks_of
from ...adapters.repacking.plan import RenamedLayer
from ...elements import element_in
from ...files.header import header_room
from ...report import Skip
from ..edit import Foreseen
from ..preview import PlannedLayer, planned_layer, planned_skip, stored_size
from ..resize.plan import foresee_resize
from .layer import NO_PLACE, Converting, written_as
from .to_lora import Lowering

Row = tuple[str, str, "tuple[int, ...]"]
_ROLES = ("up", "down", "alpha")


def foresee_renaming(
    adapter: Adapter,
    pieces: Sequence[RenamedLayer],
    left: Sequence[str],
    converting: Converting,
    notes: Sequence[str],
) -> Foreseen:
    """Say what will become of the layers whose names change.

    Args:
        adapter: Whose.
        pieces: See `convert_work`.
        left: Layers that the format has no place for.
        converting: See `convert_work`.
        notes: What is worth saying.

    Raises:
        UnsupportedLayerError: As `convert`.
        WeightShapeError: The same.
    """
    check_not_empty(adapter)
    known = outlined(adapter)
    # Rules look at numbers; what they are stored as is counted.
    whole = replace(converting, rule=None, element=None)
    planned: list[PlannedLayer] = []
    size, rows = 0, list[Row]()
    for piece in pieces:
        layer = assembled(blocks_of(known, piece, converting.names), piece)
        layer = written_as(layer, piece, whole)
        rank = layer.rank
        if piece.is_joined and converting.rule is not None:
            own = converting.rule.for_kernel(layer.shape[2:])
            rank = min(rank, own.most or rank)
            rank = own.first_guess(rank) if own.kind == "rank" else rank
        done = "joined" if piece.is_joined else "cut" if piece.is_cut else "renamed"
        planned.append(planned_layer(piece.module, layer, done, rank))
        size += stored_size(layer, converting.element)
        rows += _rows(layer, piece)
    return Foreseen(planned, size + header_room(rows), _skips(adapter, left), notes)


def foresee_lowering(lowering: Lowering, *, overhead: int) -> Foreseen:
    """Say what will become of the layers of which all become LoRA.

    Args:
        lowering: From `plan_to_lora`.
        overhead: See `Lowering.work`.

    Raises:
        LoraOpsError: As `convert`.
    """
    found = foresee_resize(lowering.changes, replace(lowering.resizing, overhead=overhead))
    return replace(found, skips=(*found.skips, *_skips(lowering.adapter, lowering.left)))


def _rows(layer: Layer, piece: RenamedLayer) -> list[Row]:
    """What a layer has in the header beyond what a LoRA has, which the draft counts for each."""
    named = ((role, tensor) for role, tensor in layer.tensors().items() if role not in _ROLES)
    return [(piece.keys[role], element_in(one).name, tuple(one.shape)) for role, one in named]


def _skips(adapter: Adapter, left: Sequence[str]) -> list[Skip]:
    layers = outline(adapter.layers)
    return [planned_skip(target, layers[target], NO_PLACE) for target in left]
