"""Rows of a layer: some of them as a layer of their own, and layers of some rows each as one.

`[up; up'] @ down` has the rows of both products. Cutting it apart is exact, with no arithmetic: each
part keeps down, rank and alpha. Putting parts with different downs together makes up block-diagonal
and the rank that of all parts together, so alpha must grow with it for the scale to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...elements import Element, Shaped, element_of, loadable_by_all, shaped
from ...errors import UnsupportedLayerError
from ...linalg.storage import rounded
from ..layers import DoraLayer, FullLayer, Layer, LoraLayer


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A layer that changes some rows of a weight.

    Attributes:
        target: What the file calls it, for messages.
        layer: The layer, of these rows alone.
        start: The first of these rows.
    """

    target: str
    layer: Layer
    start: int

    @property
    def stop(self) -> int:
        """The row behind the last one."""
        return self.start + self.layer.shape[0]


def rows_of(layer: Layer, start: int, stop: int, target: str) -> Layer:
    """Return the part of a layer that changes these rows; alpha and down are its own.

    Raises:
        UnsupportedLayerError: The rows of this kind depend on each other, or are not stored apart.
    """
    if (start, stop) == (0, layer.shape[0]):
        return layer
    return _rearranged(layer, lambda rows: rows[start:stop].contiguous(), target)


def halves_swapped(layer: Layer, target: str) -> Layer:
    """Return the layer with the second half of its rows before the first.

    Raises:
        UnsupportedLayerError: As `rows_of`.
    """
    return _rearranged(layer, lambda rows: torch.cat(rows.chunk(2)[::-1]), target)


def stacked(
    blocks: Sequence[Block], rows: int, target: str, dtype: torch.dtype | None = None
) -> Layer:
    """Return blocks that change different rows of one weight as one layer; other rows stay.

    The strongest block keeps the bits of its up, the others take the ratio of scales into theirs.
    Blocks with one down share it, as those do that were cut from one layer.

    Args:
        blocks: One or more, in the order of their rows, which do not overlap.
        rows: Of the weight.
        target: The weight, for messages.
        dtype: Of the factors; None: what holds all that the blocks hold.

    Raises:
        UnsupportedLayerError: The blocks are of several kinds, or of one that cannot be joined.
        NonFiniteError: A number is beyond the range of the dtype.
    """
    layers = [block.layer for block in blocks]
    known = element_of(dtype) if dtype else loadable_by_all(layer.element for layer in layers)
    whole = [layer for layer in layers if isinstance(layer, FullLayer)]
    if len(whole) == len(blocks):
        parts = [
            (slice(block.start, block.stop), layer.diff, 1.0)
            for block, layer in zip(blocks, whole, strict=True)
        ]
        return FullLayer(_filled((rows, *whole[0].shape[1:]), parts, known, target))
    doras = [layer for layer in layers if isinstance(layer, DoraLayer) and layer.axis == 0]
    if len(doras) == len(blocks) and blocks[-1].stop == rows == sum(one.shape[0] for one in doras):
        inner = [replace(b, layer=one.inner) for b, one in zip(blocks, doras, strict=True)]
        axes = max(one.dora_scale.ndim for one in doras)
        magnitudes = torch.cat([one.magnitudes(axes) for one in doras])
        return DoraLayer(stacked(inner, rows, target, dtype), magnitudes)
    thin = [layer for layer in layers if isinstance(layer, LoraLayer) and layer.is_pair]
    if len(thin) < len(blocks):
        raise _mixed(blocks, target)
    downs, places = _distinct([layer.down for layer in thin])
    ranks = [len(down) for down in downs]
    scale = max((layer.scale for layer in thin), key=abs) or 1.0
    columns = [slice(sum(ranks[:n]), sum(ranks[: n + 1])) for n in range(len(ranks))]
    ups = [
        ((slice(block.start, block.stop), columns[place]), layer.up, layer.scale / scale)
        for block, layer, place in zip(blocks, thin, places, strict=True)
    ]
    parts = [(place, down, 1.0) for place, down in zip(columns, downs, strict=True)]
    return LoraLayer(
        up=_filled((rows, sum(ranks), *thin[0].up.shape[2:]), ups, known, target),
        down=_filled((sum(ranks), *downs[0].shape[1:]), parts, known, target),
        alpha=scale * sum(ranks) if any(layer.alpha is not None for layer in thin) else None,
    )


def _filled(
    size: Sequence[int], parts: Sequence[tuple[Any, Tensor, float]], element: Element, target: str
) -> Tensor:
    """Zeros with tensors in their places, each times a factor; without data where these have none."""
    tensors = [one for _, one, _ in parts]
    if all(isinstance(one, Shaped) for one in tensors):
        return shaped(size, element)
    result = torch.zeros(size, dtype=element.dtype, device=tensors[0].device)
    for place, one, factor in parts:
        exact = one if factor == 1 else one.double() * factor
        result[place] = rounded(exact, element.dtype, target)
    return result


def _rearranged(layer: Layer, take: Callable[[Tensor], Tensor], target: str) -> Layer:
    """The layer with other rows; `take` gives them from a tensor that has them on its first axis.

    Raises:
        UnsupportedLayerError: The rows of this kind are not stored apart.
    """
    if isinstance(layer, DoraLayer) and layer.axis == 0:
        magnitudes = take(layer.dora_scale)
        return DoraLayer(_rearranged(layer.inner, take, target), magnitudes)
    found = layer.with_rows(take)
    if found is not None:
        return found
    raise UnsupportedLayerError(
        f"layer `{target}` is {_kind(layer)}, whose rows cannot be written apart, and the other "
        'naming has them in several modules or in another order; convert it `to="lora"` first',
        target=target,
    )


def _distinct(downs: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The different downs, and for each of the given ones its index among them."""
    found: list[Tensor] = []
    places: list[int] = []
    for down in downs:
        alike = (
            at
            for at, one in enumerate(found)
            if not down.is_meta
            and one.shape == down.shape
            and one.dtype == down.dtype
            and torch.equal(one, down)
        )
        place = next(alike, len(found))
        if place == len(found):
            found.append(down)
        places.append(place)
    return found, places


def _mixed(blocks: Sequence[Block], target: str) -> UnsupportedLayerError:
    kinds = ", ".join(f"`{block.target}` ({_kind(block.layer)})" for block in blocks)
    return UnsupportedLayerError(
        f"{kinds} are rows of `{target}` and cannot be written as one layer: only plain LoRA, or "
        'full differences, or DoRA of all rows can; convert them `to="lora"` first',
        target=target,
    )


def _kind(layer: Layer) -> str:
    if isinstance(layer, LoraLayer) and not layer.is_pair:
        return "LoRA in Tucker's form"
    if isinstance(layer, DoraLayer) and layer.axis == 1:
        return "DoRA with a magnitude for each input"
    return layer.title
