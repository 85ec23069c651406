"""Scale: strengths by block, pattern and component, written into the adapter for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adapter import Adapter
from .dtypes import rounded
from .edit import Edited, Progress, check_not_empty, collect, edited, finite, skipped
from .errors import UnsupportedLayerError
from .formats import format_named
from .layers import FullLayer, Layer, LoraLayer
from .linalg import inner
from .parallel import ordered_map
from .report import Report
from .rules import strengths

STRENGTH_ZERO = "strength 0"
_WORKERS = 2
_WIDE = torch.float64


def scale(
    adapter: Adapter,
    strength: float = 1.0,
    *,
    blocks: str | None = None,
    where: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the adapter with its changes multiplied, and its report.

    The strength goes into alpha, so factors keep their bits; into up where the file's format has no
    alpha. Layers of strength 0 are left out.

    Args:
        adapter: Its layers are read one after another.
        strength: Of all layers; may be negative.
        blocks: Block weights or a preset; see `rules`.
        where: `PATTERN=S`, in order; see `rules`.
        progress: Called after each layer.

    Raises:
        ArgumentError: A rule that fits nothing.
        UnsupportedLayerError: A DoRA layer: its change is not proportional to its factors.
        MismatchError: No layer is left.
    """
    factors = strengths(adapter.layers, strength=strength, blocks=blocks, where=where)
    return collect(adapter, run(adapter, factors, progress=progress))


def run(
    adapter: Adapter, factors: Mapping[str, float], *, progress: Progress | None = None
) -> Iterator[Edited]:
    """Yield what becomes of each layer, in the order of the file.

    Args:
        adapter: Read layer by layer.
        factors: The strength of each target.
        progress: Called after each layer.
    """
    check_not_empty(adapter)
    foldable = format_named(adapter.format).keeps_alpha

    def job(target: str) -> Edited:
        return _scaled(target, adapter.layers[target], factors[target], foldable)

    results = ordered_map(job, adapter.layers, _WORKERS)
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, len(adapter.layers), result.target)
        yield result


def scaled(target: str, layer: Layer, strength: float, *, has_alpha: bool = True) -> Layer:
    """Return the layer with its change multiplied.

    Args:
        target: Its name, for messages.
        layer: What to multiply.
        strength: By what; any finite number.
        has_alpha: Whether its file can hold an alpha; else the strength goes into up.

    Raises:
        UnsupportedLayerError: A DoRA layer.
        NonFiniteError: A value is then beyond the range of its dtype.
    """
    if isinstance(layer, FullLayer):
        if strength == 1:
            return layer
        return FullLayer(rounded(layer.diff.double() * strength, layer.dtype, target))
    if not layer.is_linear:
        raise UnsupportedLayerError(
            f"layer `{target}` has DoRA magnitudes: its change is not proportional to its factors, "
            "so no strength can be written into them; set the strength where the file is used",
            target=target,
        )
    factor = layer.scale * strength
    if has_alpha:
        return layer if strength == 1 else replace(layer, alpha=factor * layer.rank)
    if factor == 1:
        return replace(layer, alpha=None)
    up = rounded(layer.up.float() * factor, layer.dtype, target)
    return replace(layer, up=up, alpha=None)


def change_norm(layer: Layer) -> Tensor:
    """Return the Frobenius norm of a layer's change, float64, from its factors."""
    if isinstance(layer, FullLayer):
        return torch.linalg.vector_norm(layer.diff.double())
    up, down = layer.factors()
    return inner(up, down, up, down).clamp(min=0).sqrt()


def _scaled(target: str, layer: Layer, strength: float, has_alpha: bool) -> Edited:
    norm = abs(strength) * finite(change_norm(layer), target, layer)
    if strength == 0:
        return skipped(target, layer, STRENGTH_ZERO, norm)
    result = scaled(target, layer, strength, has_alpha=has_alpha)
    return edited(
        target,
        result,
        norm=norm,
        residual=_missed(layer, result, strength),
        was=(layer.rank,),
        coefficients=(strength,),
    )


def _missed(layer: Layer, result: Layer, strength: float) -> float:
    """Frobenius norm of what rounding took; alpha, which is not rounded, takes nothing."""
    if isinstance(layer, LoraLayer) and isinstance(result, LoraLayer):
        if result.up is layer.up:
            return 0.0
        up, down = layer.factors(strength)
        lost = up - result.factors()[0]
        return float(inner(lost, down, lost, down).clamp(min=0).sqrt())
    return float(torch.linalg.vector_norm(layer.delta(_WIDE) * strength - result.delta(_WIDE)))
