"""The layers of an adapter with their decompositions, side by side: batches on a GPU."""

from __future__ import annotations

import math
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
from ...linalg import FactoredSvd, KronSvd, factored_svd, frobenius, thinned
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
    adapter: Adapter, function: Callable[[PreparedLayer], Result]
) -> Work[str, Result]:
    """Return the jobs of a function of each layer with its decomposition, and how they are done.

    Layers of one form are alike: stacked, they are decomposed together.

    Args:
        adapter: Read layer by layer.
        function: Given a layer with its decomposition. It can be pickled.

    Raises, when it is done:
        UnsupportedLayerError: A layer is made from the base weight.
        NonFiniteError: NaN or infinity in a factor.
    """
    jobs = [_job(target, _form(layer)) for target, layer in outline(adapter.layers).items()]
    return Work(jobs, partial(_compute, adapter.layers, function))


def _job(target: str, form: tuple[tuple[int, ...], ...]) -> Job[str]:
    """With its bytes on the device: the factors in float32 and float64, and the new ones."""
    return Job(target, target, need=32 * sum(map(math.prod, form)) or 1, alike=form)


def _compute(
    layers: Mapping[str, Layer],
    function: Callable[[PreparedLayer], Result],
    targets: Sequence[str],
    placement: Placement,
) -> list[Result]:
    return [function(known) for known in _decompose(layers, targets, placement)]


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
    thin: dict[str, Layer] = {}
    ups: list[Tensor] = []
    downs: list[Tensor] = []
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
        thin[target] = layer
        ups.append(upload(up, placement))
        downs.append(upload(down, placement))
    if not thin:
        return
    # A header does not tell the rank of what is joined: then those that are alike may not be.
    if len({up.shape + down.shape for up, down in zip(ups, downs, strict=True)}) > 1:
        for (target, layer), up, down in zip(thin.items(), ups, downs, strict=True):
            svd = factored_svd(*thinned(up[None], down[None]))[0]
            yield Decomposed(target, layer, svd, svd.s.cpu())
        return
    stack = factored_svd(*thinned(torch.stack(ups), torch.stack(downs)))
    values = stack.s.cpu()
    for index, (target, layer) in enumerate(thin.items()):
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
