"""Scale: strengths by block, pattern and component, written into the adapter for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from ...adapters.adapter import Adapter
from ...adapters.edited import (
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
from ...run.devices import Placement
from ...run.job import Job, Outcome, Work
from ...run.stream import stream
from ...run.workers import Progress
from ..reasons import STRENGTH_ZERO


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
    return collect(adapter, stream(scale_work(adapter, factors), progress=progress))


def scale_work(
    adapter: Adapter, factors: Mapping[str, float], *, has_alpha: bool | None = None
) -> Work[str, Outcome[Layer]]:
    """Return the jobs of a scaling, in the order of the file, and how they are done.

    Args:
        adapter: Read layer by layer.
        factors: The strength of each target.
        has_alpha: Whether the result has a place for alphas; None: if the adapter's format has.
    """
    check_not_empty(adapter)
    keeps = format_named(adapter.format).keeps_alpha if has_alpha is None else has_alpha
    jobs = [Job(target, target, alike=target) for target in adapter.layers]
    return Work(jobs, partial(_compute, adapter.layers, factors, keeps))


def _compute(
    layers: Mapping[str, Layer],
    factors: Mapping[str, float],
    has_alpha: bool,
    targets: Sequence[str],
    _: Placement,
) -> list[Outcome[Layer]]:
    return [_scaled(target, layers[target], factors[target], has_alpha) for target in targets]


def _scaled(target: str, layer: Layer, strength: float, has_alpha: bool) -> Outcome[Layer]:
    check_proportional(target, layer)
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


def check_proportional(target: str, layer: Layer) -> None:
    """Refuse a layer that no strength can be written into; its data is not looked at.

    Raises:
        UnsupportedLayerError: Says what to do instead.
    """
    if unpadded(layer).is_proportional:
        return
    raise UnsupportedLayerError(
        f"layer `{target}` {described(layer)}: its change is not proportional to its factors, "
        "so no strength can be written into them; set the strength where the file is used, or "
        'make it a plain LoRA first: `convert(lora, to="lora", base=checkpoint)`',
        target=target,
    )


def _missed(layer: Layer, result: Layer, strength: float) -> float:
    """Frobenius norm of what rounding took; alpha, which is not rounded, takes nothing."""
    before, after = innermost(layer), innermost(result)
    return 0.0 if has_numbers_of(after, before) else before.missed(after, strength, torch.float32)
