"""A sum that is no combination of its inputs: a method makes new factors, or a weight, from theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.layers import FullLayer, Layer, innermost, low_rank
from ...errors import UnsupportedLayerError
from ...linalg import frobenius, inner, residual_
from ...linalg.ranks.rules import RankRule
from ...linalg.ranks.truncation import truncated
from ...linalg.storage import rounded
from ...run.devices import Placement, download
from ..methods.elements.work import Task, Value
from ..methods.factored.table import FACTORED
from ..methods.kinds import Element
from .apart import Apart
from .combine import Combination, Stack, recompressed, stacked, written

# Elements of the tiles that a method on elements is at work on, of all inputs together.
_TILE = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What a method made of the changes of one weight.

    Attributes:
        layer: As it is written; None where the rule leaves nothing.
        norm: Frobenius norm of the method's result.
        residual: Norm of what the layer misses of it.
        cosine: Of the layer with the plain sum of the inputs.
    """

    layer: Layer | None
    norm: float
    residual: float
    cosine: float


def merged(
    sum_: Combination,
    method: str,
    parameters: Mapping[str, Value],
    rule: RankRule | None,
    dtype: torch.dtype | None,
    where: Placement,
    *,
    has_alpha: bool,
    kept: Sequence[int] = (),
) -> Merged:
    """Return what a method makes of two changes of one weight or more.

    Args:
        sum_: The changes, with their strengths as coefficients.
        method: In `FACTORED`.
        parameters: All of its parameters.
        rule: How many directions to keep; None: all that the result has.
        dtype: Of the numbers that are written; None: one that holds those of all inputs.
        where: Where to compute.
        has_alpha: Whether the file has a place for alpha.
        kept: Places of changes that the method does not see: they are added to its result.

    Raises:
        UnsupportedLayerError: An input has no factors smaller than the weight.
    """
    stack = sum_.stack
    how = FACTORED[method].element
    on_elements = how is not None and (parameters["scope"] == "element" or len(sum_.shape) < 2)
    if not (on_elements or isinstance(stack, Stack)):
        raise UnsupportedLayerError(
            f"layer `{sum_.target}` is a LoKr of which factors would be larger than the weight: method "
            f'`{method}` needs factors; make it a LoRA of a rank first: `convert(lora, to="lora", rank=64)`',
            target=sum_.target,
        )
    whole_ones = [sum_.layers[at] for at in kept]
    factors = [sum_.coefficients[at] for at in kept]
    seen = _without(sum_, kept, where)
    task = _task(seen, parameters)
    wide = dtype or sum_.dtype
    whole = all(isinstance(innermost(layer), FullLayer) for layer in sum_.layers)
    if how is not None and on_elements:
        result = _on_elements(seen.stack, task, how)
        for layer_, factor in zip(whole_ones, factors, strict=True):
            up, down = (one.to(result) for one in layer_.factors())
            result.addmm_(up, down, alpha=factor)
        norm = float(frobenius(result))
        if whole:
            layer: Layer | None = FullLayer(rounded(result.reshape(sum_.shape), wide, sum_.target))
        else:
            layer = _fitted(result, rule, sum_, wide, has_alpha=has_alpha)
        return _measured(sum_, stack, layer, norm, result)
    up, down = download(FACTORED[method].solve(_factors_of(seen).frame(), task))
    made = low_rank(up, down, sum_.shape)
    parts = [made, *whole_ones]
    own = Combination(
        sum_.target, sum_.shape, parts, [1.0, *factors], stacked(parts, where).exact()
    )
    norm = float(own.stack.square(own.coefficients).sqrt())
    if whole:
        up, down = own.product(_factors_of(own))
        product = up @ down
        layer = FullLayer(rounded(product.reshape(sum_.shape), wide, sum_.target))
        return _measured(sum_, stack, layer, norm, product)
    layer = recompressed(own, rule, wide, has_alpha=has_alpha)
    residual = norm if layer is None else own.missed(layer)
    return Merged(layer, norm, residual, _cosine(sum_, stack, layer))


def _without(sum_: Combination, kept: Sequence[int], where: Placement) -> Combination:
    """The combination of the other changes alone."""
    if not kept:
        return sum_
    left = [at for at in range(len(sum_.layers)) if at not in kept]
    layers = [sum_.layers[at] for at in left]
    factors = [sum_.coefficients[at] for at in left]
    return Combination(sum_.target, sum_.shape, layers, factors, stacked(layers, where))


def _factors_of(sum_: Combination) -> Stack:
    """The factors of changes that all have some smaller than the weight."""
    if not isinstance(sum_.stack, Stack):
        raise TypeError(f"`{sum_.target}` has no factors")
    return sum_.stack


def _task(sum_: Combination, parameters: Mapping[str, Value]) -> Task:
    """The weight as methods see it: a matrix (out, in * kernel)."""
    seed = parameters.get("seed", 0)
    shape = (sum_.shape[0], math.prod(sum_.shape[1:]))
    weights = tuple(sum_.coefficients)
    return Task(shape, weights, parameters, sum_.target, int(float(str(seed))))


def _on_elements(stack: Stack | Apart, task: Task, how: Element) -> Tensor:
    """The method on the weight's own elements: (out, in * kernel), float32; tile by tile but for the result."""
    rows = max(1, _TILE // max(1, task.count * task.shape[1]))
    parts = [slice(at, min(at + rows, task.rows)) for at in range(0, task.rows, rows)]
    work = how.begin(task)
    while work.passes:
        seen = [work.observe(stack.tiles(part), None, part.start) for part in parts]
        work = work.settle(torch.stack(seen).sum(0))
    result = [work.combine(stack.tiles(part), None, part.start).clone() for part in parts]
    return torch.cat(result)


def _fitted(
    result: Tensor, rule: RankRule | None, sum_: Combination, dtype: torch.dtype, *, has_alpha: bool
) -> Layer | None:
    """The best LoRA of a rule for a matrix without a low rank; None where the rule leaves nothing."""
    own = (rule or RankRule("rank", sum_.rank)).for_kernel(sum_.shape[2:])
    total = frobenius(result).square()
    if own.leaves_out or float(total) == 0:
        return None
    (near,) = truncated(result[None], total[None], own)
    return written(sum_, near.factors(), dtype, has_alpha=has_alpha)


def _measured(
    sum_: Combination, stack: Stack | Apart, layer: Layer | None, norm: float, result: Tensor
) -> Merged:
    """What was made, with its error against a matrix, which is overwritten."""
    if layer is None:
        return Merged(None, norm, norm, 0.0)
    up, down = (factor.to(result) for factor in layer.factors())
    return Merged(layer, norm, float(residual_(result, up, down)), _cosine(sum_, stack, layer))


def _cosine(sum_: Combination, stack: Stack | Apart, layer: Layer | None) -> float:
    """The cosine of a layer with the plain sum; 0 where one of them is nothing."""
    if layer is None:
        return 0.0
    up, down = layer.factors()
    if isinstance(stack, Apart):
        both = stack.inner(sum_.coefficients, layer)
    else:
        up, down = up.to(stack.up.device), down.to(stack.up.device)
        both = float(inner(*sum_.product(stack), up, down))
    norms = float(stack.square(sum_.coefficients).sqrt() * inner(up, down, up, down).cpu().sqrt())
    return both / norms if norms > 0 else 0.0
