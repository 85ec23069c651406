"""Scale: strengths by block, pattern and component, written into the adapter for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import (
    Edited,
    check_not_empty,
    collect,
    described,
    edited,
    finite,
    has_numbers_of,
    skipped,
)
from ...adapters.formats import format_named
from ...adapters.layers import Layer, innermost, unpadded
from ...adapters.strengths.rules import strengths
from ...errors import UnsupportedLayerError
from ...report import Report
from ...run.workers import Progress, counted_off, ordered_map

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
    into up, rounded to a dtype that every loader reads. Kinds without an alpha are multiplied. Of
    kinds that are made from the base weight, the report has the norm of the stored numbers: that of
    the change is not known. Layers of strength 0 are left out.

    Args:
        adapter: Its layers are read one after another.
        strength: Of all layers; may be negative.
        blocks: Block weights or a preset; see `rules`.
        where: `PATTERN=S`, in order; see `rules`.
        progress: Called after each layer.

    Raises:
        ArgumentError: A rule that fits nothing.
        UnsupportedLayerError: A layer of DoRA, OFT, BOFT or a replacement: no number in it is what
            its change is proportional to.
        NonFiniteError: NaN or infinity in a layer, or a value that is then out of range.
        MismatchError: No layer is left.
    """
    factors = strengths(adapter.layers, strength=strength, blocks=blocks, where=where)
    return collect(adapter, run_scale(adapter, factors, progress=progress))


def run_scale(
    adapter: Adapter,
    factors: Mapping[str, float],
    *,
    has_alpha: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[Edited]:
    """Yield what becomes of each layer, in the order of the file.

    Args:
        adapter: Read layer by layer.
        factors: The strength of each target.
        has_alpha: Whether the result has a place for alphas; None: if the adapter's format has.
        progress: Called after each layer.
    """
    check_not_empty(adapter)
    keeps = format_named(adapter.format).keeps_alpha if has_alpha is None else has_alpha

    def job(target: str) -> Edited:
        return _scaled(target, adapter.layers[target], factors[target], keeps)

    results = ordered_map(job, adapter.layers, _WORKERS)
    yield from counted_off(results, len(adapter.layers), progress)


def _scaled(target: str, layer: Layer, strength: float, has_alpha: bool) -> Edited:
    _check_proportional(target, layer)
    norm = abs(strength) * finite(innermost(layer).norm(torch.float32), target, layer)
    if strength == 0:
        return skipped(target, layer, STRENGTH_ZERO, norm)
    result = layer.times(target, strength, has_alpha=has_alpha)
    return edited(
        target,
        result,
        norm=norm,
        residual=_missed(layer, result, strength),
        was=(layer.rank,),
        coefficients=(strength,),
    )


def _check_proportional(target: str, layer: Layer) -> None:
    if unpadded(layer).is_proportional:
        return
    raise UnsupportedLayerError(
        f"layer `{target}` {described(layer)}: its change is not proportional to its factors, "
        "so no strength can be written into them; set the strength where the file is used, or "
        "make it a plain LoRA first: `lorakit convert LORA --to lora --base CHECKPOINT`",
        target=target,
    )


def _missed(layer: Layer, result: Layer, strength: float) -> float:
    """Frobenius norm of what rounding took; alpha, which is not rounded, takes nothing."""
    before, after = innermost(layer), innermost(result)
    return 0.0 if has_numbers_of(after, before) else before.missed(after, strength, torch.float32)
