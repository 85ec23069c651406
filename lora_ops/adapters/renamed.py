"""Layers, and changes that are made of them, under the names of another format: moved, cut or joined, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch

from ..elements import element_of
from .adapter import Adapter
from .formats import Format, ModelNames
from .layers import FullLayer, Layer, LoraLayer, MadeLayer, low_rank
from .repacking.assemble import RepackedLayers, assembled, blocks_of
from .repacking.plan import RenamedLayer


def renamed(
    adapter: Adapter, pieces: Sequence[RenamedLayer], names: ModelNames, format: Format
) -> Adapter:
    """Return an adapter as another format has it, its layers made when read.

    Args:
        adapter: Its layers may be made when they are read, too: see `as_changes`.
        pieces: From `planned`, of this adapter.
        names: Of the model.
        format: The format of the result.
    """
    by_module = {piece.module: piece for piece in pieces}
    return replace(
        adapter,
        layers=_Renamed(adapter, by_module, names),
        format=format.name,
        keys={module: piece.keys for module, piece in by_module.items()},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Renamed(RepackedLayers):
    """Changes under other names, each made when it is asked for."""

    def __getitem__(self, module: str) -> Layer:
        return _piece(self.adapter, self.pieces[module], self.names)


def _piece(adapter: Adapter, piece: RenamedLayer, names: ModelNames) -> Layer:
    """One layer under its new name: moved, or put together from exact changes."""
    layers = {name: adapter.layers[name] for name, _ in piece.members}
    made = [layer for layer in layers.values() if isinstance(layer, MadeLayer)]
    if not made:
        exact = layers
    elif not (
        piece.is_cut or piece.is_joined or piece.members[0][1].swapped != piece.place.swapped
    ):
        return made[0]
    else:
        exact = _exact(layers)
    whole = assembled(blocks_of(replace(adapter, layers=exact), piece, names), piece)
    if not made or not isinstance(whole, LoraLayer | FullLayer):
        return whole
    element = element_of(reduce(torch.promote_types, (one.dtype for one in layers.values())))
    dense = whole.is_full
    rank = max(one.rank for one in layers.values()) if dense else whole.rank
    return MadeLayer(made[0].title, whole.shape, rank, element, dense, lambda: whole)


def _exact(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The changes themselves; if one is multiplied out all are: only equal kinds can be joined."""
    found = {
        name: _multiplied(layer) if isinstance(layer, MadeLayer) else layer
        for name, layer in layers.items()
    }
    if not any(layer.is_full for layer in found.values()):
        return found
    return {name: FullLayer(layer.delta()) for name, layer in found.items()}


def _multiplied(made: MadeLayer) -> Layer:
    """The change of a layer in factors, or whole where these would be larger."""
    product = made.kronecker()
    if product is None:
        return made.make()
    if not product.is_thin:
        return FullLayer(product.delta().reshape(made.size))
    return low_rank(*product.factors(), made.size)
