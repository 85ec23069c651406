"""Scale: strengths by block, pattern and component, written into the adapter for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adapter import Adapter
from .dtypes import loadable, rounded
from .edit import Edited, Progress, check_not_empty, collect, edited, finite, skipped
from .errors import NonFiniteError, UnsupportedLayerError
from .formats import format_named
from .layers import FullLayer, Layer, LoraLayer
from .linalg import inner
from .parallel import ordered_map
from .report import Report
from .rules import strengths

STRENGTH_ZERO = "strength 0"
_WORKERS = 2


def scale(
    adapter: Adapter,
    strength: float = 1.0,
    *,
    blocks: str | None = None,
    where: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Adapter, Report]:
    """Return the adapter with its changes multiplied, and its report.

    The strength goes into alpha, so factors keep their bits; where the file's format has no alpha,
    into up, rounded to a dtype that every loader reads. Layers of strength 0 are left out.

    Args:
        adapter: Its layers are read one after another.
        strength: Of all layers; may be negative.
        blocks: Block weights or a preset; see `rules`.
        where: `PATTERN=S`, in order; see `rules`.
        progress: Called after each layer.

    Raises:
        ArgumentError: A rule that fits nothing.
        UnsupportedLayerError: A DoRA layer: its change is not proportional to its factors.
        NonFiniteError: NaN or infinity in a layer, or a value that is then out of range.
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
    has_alpha = format_named(adapter.format).keeps_alpha

    def job(target: str) -> Edited:
        return _scaled(target, adapter.layers[target], factors[target], has_alpha)

    results = ordered_map(job, adapter.layers, _WORKERS)
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, len(adapter.layers), result.target)
        yield result


def _scaled(target: str, layer: Layer, strength: float, has_alpha: bool) -> Edited:
    norm = abs(strength) * finite(_norm(target, layer), target, layer)
    if strength == 0:
        return skipped(target, layer, STRENGTH_ZERO, norm)
    result = layer
    if isinstance(layer, LoraLayer):
        result = _multiplied(target, layer, strength, has_alpha)
    elif strength != 1:
        diff = rounded(layer.diff.double() * strength, loadable(layer.dtype), target)
        result = FullLayer(diff)
    return edited(
        target,
        result,
        norm=norm,
        residual=_missed(layer, result, strength),
        was=(layer.rank,),
        coefficients=(strength,),
    )


def _multiplied(target: str, layer: LoraLayer, strength: float, has_alpha: bool) -> LoraLayer:
    """The layer with the strength in its alpha, or, where its file has none, in up."""
    if has_alpha:
        if strength == 1:
            return layer
        alpha = (layer.rank if layer.alpha is None else layer.alpha) * strength
        if abs(alpha) > torch.finfo(torch.float32).max:
            raise NonFiniteError(
                f"layer `{target}`: an alpha of {alpha:.3g} does not fit float32, in which files "
                "hold it; give a smaller strength",
                target=target,
            )
        return replace(layer, alpha=alpha)
    factor, dtype = layer.scale * strength, loadable(layer.dtype)
    if factor == 1:
        return replace(layer, alpha=None)
    up = rounded(layer.up.double() * factor, dtype, target)
    return replace(layer, up=up, down=layer.down.to(dtype), alpha=None)


def _norm(target: str, layer: Layer) -> Tensor:
    """Frobenius norm of a layer's change, float64, from its factors."""
    if isinstance(layer, FullLayer):
        return torch.linalg.vector_norm(layer.diff.double())
    if not layer.is_linear:
        raise UnsupportedLayerError(
            f"layer `{target}` has DoRA magnitudes: its change is not proportional to its factors, "
            "so no strength can be written into them; set the strength where the file is used",
            target=target,
        )
    up, down = layer.factors()
    return inner(up, down, up, down).clamp(min=0).sqrt()


def _missed(layer: Layer, result: Layer, strength: float) -> float:
    """Frobenius norm of what rounding took; alpha, which is not rounded, takes nothing."""
    if isinstance(layer, FullLayer) or isinstance(result, FullLayer):
        wide = torch.float64
        return float(torch.linalg.vector_norm(layer.delta(wide) * strength - result.delta(wide)))
    if result.up is layer.up:
        return 0.0
    up, down = layer.factors(strength)
    lost = up - result.factors()[0]
    return float(inner(lost, down, lost, down).clamp(min=0).sqrt())
