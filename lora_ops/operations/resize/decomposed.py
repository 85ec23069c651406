"""The layers of an adapter with their decompositions, batch by batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.edited import described, finite
from ...adapters.layers import KroneckerProduct, Layer, MadeLayer, innermost
from ...adapters.outline import outline
from ...errors import UnsupportedLayerError
from ...linalg import FactoredSvd, KronSvd, factored_svd, frobenius, spectrum, thinned
from ...run.devices import Placement, upload
from ...run.job import Job, Work

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed:
    """A layer with factors.

    Attributes:
        target: Its name.
        layer: As it was read.
        svd: Of its change.
        s: Its singular values, on the CPU: those of all layers of a batch come at once.
    """

    target: str
    layer: Layer
    svd: FactoredSvd | KronSvd
    s: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A full difference.

    Attributes:
        target: Its name.
        layer: As it was read.
    """

    target: str
    layer: Layer


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A layer whose change is multiplied out, to be cut to a rank.

    Attributes:
        target: Its name.
        layer: As it was read.
        matrix: (out, in * kernel), float32, on the device.
        total: Its squared Frobenius norm, float64.
    """

    target: str
    layer: Layer
    matrix: Tensor
    total: Tensor


PreparedLayer: TypeAlias = Decomposed | Dense | Whole


def decomposed_work(
    adapter: Adapter, function: Callable[[Sequence[PreparedLayer]], Sequence[Result]]
) -> Work[str, Result]:
    """Return the jobs of a function of layers with their decompositions, and how they are done.

    Layers of one form are alike: stacked, they are decomposed together.

    Args:
        adapter: Read layer by layer.
        function: Given the layers of a batch; returns a result for each. It can be pickled.

    Raises, when it is done:
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in a factor.
    """
    jobs = [_job(target, layer) for target, layer in outline(adapter.layers).items()]
    return Work(jobs, partial(_compute, adapter.layers, function))


def _job(target: str, layer: Layer) -> Job[str]:
    """With its bytes on the device: the factors in float32 and float64, and the new ones."""
    form = _form(layer)
    need = 32 * sum(map(math.prod, form)) or 1
    # What is not stacked is read alone; what is comes back in one copy, which has one dtype.
    return Job(target, target, need=need, alike=(form, layer.dtype) if form else target)


def _compute(
    layers: Mapping[str, Layer],
    function: Callable[[Sequence[PreparedLayer]], Sequence[Result]],
    targets: Sequence[str],
    placement: Placement,
) -> Sequence[Result]:
    known = {one.target: one for one in _decompose(layers, targets, placement)}
    return function([known[target] for target in targets])


def singular_values(batch: Sequence[PreparedLayer]) -> dict[str, Tensor]:
    """Return all singular values of those that are not whole, by target: float64, on the CPU."""
    known = {one.target: one.s for one in batch if isinstance(one, Decomposed)}
    dense = [one for one in batch if isinstance(one, Dense)]
    if dense:
        found = spectrum(stacked([one.matrix for one in dense])).cpu()
        known |= {one.target: s for one, s in zip(dense, found, strict=True)}
    return known


def stacked(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices as a stack; of one no copy is made."""
    return matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(list(matrices))


def _form(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """The shapes of the factors that are stacked; none for a layer that is not."""
    plain = innermost(layer)
    if plain.is_full or layer.needs_base or _kron(plain) is not None:
        return ()
    if isinstance(plain, MadeLayer) and plain.is_dense:
        return ((layer.shape[0], math.prod(layer.shape[1:])),)
    rank = plain.inner_rank
    return (layer.shape[0], rank), (rank, math.prod(layer.shape[1:]))


def all_directions(layer: Layer) -> int:
    """How many directions the change of a layer can have; its data is not looked at.

    Args:
        layer: With factors, or multiplied out.
    """
    form = _form(layer)
    return form[0][1] if len(form) > 1 else min(layer.shape[0], math.prod(layer.shape[1:]))


def _decompose(
    layers: Mapping[str, Layer], targets: Sequence[str], placement: Placement
) -> Iterator[PreparedLayer]:
    # A header does not tell the rank of what is joined: those that are alike may have several.
    thin: defaultdict[object, list[tuple[str, Layer, Tensor, Tensor]]] = defaultdict(list)
    for target in targets:
        layer = layers[target]
        if innermost(layer).is_full and not layer.needs_base:
            yield Whole(target, layer)
            continue
        check_own(target, layer)
        plain = innermost(layer)
        product = _kron(plain)
        if product is not None:
            finite(product.kron().norm(), target, product)
            svd = product.svd()
            yield Decomposed(target, layer, svd, svd.s.cpu())
            continue
        if isinstance(plain, MadeLayer) and plain.is_dense:
            matrix = upload(plain.delta().flatten(1), placement)
            yield Dense(target, layer, matrix, frobenius(matrix).square())
            continue
        up, down = layer.factors()
        finite(up.norm() * down.norm(), target, layer)
        both = (upload(up, placement), upload(down, placement))
        thin[up.shape, down.shape].append((target, layer, *both))
    for found in thin.values():
        named, layers_, ups, downs = zip(*found, strict=True)
        stack = factored_svd(*thinned(torch.stack(ups), torch.stack(downs)))
        values = stack.s.cpu()
        for index, (target, layer) in enumerate(zip(named, layers_, strict=True)):
            yield Decomposed(target, layer, stack[index], values[index])


def _kron(plain: Layer) -> KroneckerProduct | None:
    """The layer as a LoKr whose two matrices can be decomposed apart; None for others."""
    product = plain.kronecker()
    return product if product is not None and product.is_small else None


def check_own(target: str, layer: Layer) -> None:
    """Refuse a layer that has no change of its own; its data is not looked at.

    Raises:
        UnsupportedLayerError: It is made from the base weight.
    """
    if layer.needs_base:
        raise UnsupportedLayerError(
            f"layer `{target}` {described(layer)}: what it changes depends on the base weight, so "
            "it has no singular values of its own to choose from; give the checkpoint that it was "
            "trained on as `base=`, or bake it into its checkpoint",
            target=target,
        )
