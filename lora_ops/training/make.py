"""Paths for submodules: new ones, and those that an adapter's layers are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..adapters.formats import PEFT
from ..adapters.layers import DoraLayer, Layer, LoraLayer, fits, low_rank
from ..errors import ArgumentError, TargetMismatchError, UnsupportedLayerError, WeightShapeError
from ..models.pairing import nearest
from .adapted import is_supported
from .initial import INITIALISERS, leading, rows
from .paths import DifferencePath, DoraPath, LoraPath
from .weights import dense_weight

KINDS = ("lora", "dora")


@dataclass(frozen=True, slots=True)
class Fresh:
    """Options of new paths; see `inject`.

    Attributes:
        rank: Directions of each path.
        alpha: The number behind the scale; None: scale 1.
        kind: lora or dora.
        dropout: Share of the input's numbers that a path does not see, 0 to 1.
        init: A name in `INITIALISERS`.
        dtype: Dtype of what is trained; None: float32, or the weight's where that is wider.
        generator: Source of the random start.

    Raises:
        ArgumentError: A value that means nothing.
    """

    rank: int
    alpha: float | None
    kind: str
    dropout: float
    init: str
    dtype: torch.dtype | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ArgumentError(f"rank {self.rank}: give 1 or more")
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise ArgumentError(f"alpha {self.alpha}: give a finite number")
        if self.kind not in KINDS:
            raise ArgumentError(f"unknown kind `{self.kind}`; it is one of {', '.join(KINDS)}")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"dropout {self.dropout}: give a share from 0 to below 1")
        if self.init not in INITIALISERS:
            raise ArgumentError(
                f"unknown init `{self.init}`; it is one of {', '.join(INITIALISERS)}, svd_of=FILE"
            )
        if self.kind == "dora" and self.init == "pissa":
            raise ArgumentError("init `pissa` is for kind `lora`: DoRA has a magnitude of its own")


def fresh_path(name: str, module: nn.Module, options: Fresh, difference: Tensor | None) -> LoraPath:
    """Return a new path for a submodule.

    Args:
        name: The submodule's name, for messages.
        module: Linear, convolution or embedding.
        options: Rank, kind, initialisation and so on.
        difference: The change that it starts as, in the weight's shape; None: `options.init`.

    Raises:
        ArgumentError: The rank is higher than the weight has directions.
        UnsupportedLayerError: DoRA of an embedding.
    """
    weight = dense_weight(module)
    matrix = weight.flatten(1)
    if options.rank > min(matrix.shape):
        raise ArgumentError(
            f"rank {options.rank} is above {min(matrix.shape)}, all directions of `{name}`, whose "
            f"weight is {tuple(weight.shape)}; give a smaller rank, or leave it out of the targets"
        )
    is_table = isinstance(module, nn.Embedding)
    if options.kind == "dora" and is_table:
        raise UnsupportedLayerError(
            f"`{name}` is an embedding: DoRA is for linear and convolution layers; use kind `lora`"
        )
    if difference is None:
        start = rows if is_table and options.init != "pissa" else INITIALISERS[options.init]
        up, down = start(matrix, options.rank, options.generator)
    else:
        up, down = leading(difference.flatten(1), options.rank)
    scale = 1.0 if options.alpha is None else options.alpha / options.rank
    if options.init == "pissa" or difference is not None:
        up = up / scale
    shaped = low_rank(up, down, tuple(weight.shape), options.alpha)
    dtype = options.dtype or _trained_dtype(module)
    up, down = shaped.up.to(dtype), shaped.down.to(dtype)
    alpha, dropout = options.alpha, options.dropout
    if options.kind == "dora":
        change = (up.flatten(1) @ down.flatten(1)).float() * scale
        length = torch.linalg.vector_norm(matrix + change, dim=1)
        return DoraPath(length.to(dtype), up, down, alpha, dropout)
    if options.init == "pissa" and difference is None:
        return DifferencePath(up, down, alpha, dropout)
    return LoraPath(up, down, alpha, dropout)


def paths_of(
    module: nn.Module, adapter: Adapter, prefix: str, dropout: float, dtype: torch.dtype | None
) -> Iterator[tuple[str, LoraPath]]:
    """Yield the submodule's name and the path for each layer of an adapter.

    Raises:
        TargetMismatchError: No submodule is called so.
        WeightShapeError: Its weight has another shape.
        UnsupportedLayerError: A kind that no path can stand for.
    """
    known = {name: one for name, one in module.named_modules() if name and is_supported(one)}
    for target, layer in adapter.layers.items():
        name = target.removeprefix(prefix).removeprefix(PEFT.prefixes[0])
        if name not in known:
            raise TargetMismatchError(
                f"layer `{target}` has no submodule: the module has no layer `{name}`, nearest: "
                f"{nearest(name, known)}; give what stands before its names as `prefix`",
                target=target,
            )
        yield name, _path_of(target, layer, known[name], dropout, dtype)


def _path_of(
    target: str, layer: Layer, module: nn.Module, dropout: float, dtype: torch.dtype | None
) -> LoraPath:
    plain = layer.inner if isinstance(layer, DoraLayer) else layer
    if not isinstance(plain, LoraLayer) or (isinstance(layer, DoraLayer) and layer.axis != 0):
        raise UnsupportedLayerError(
            f"layer `{target}` is of kind {layer.title}: what trains here is LoRA, and DoRA with "
            'magnitudes by output channel; make it a LoRA first: `convert(lora, to="lora")`',
            target=target,
        )
    weight = dense_weight(module)
    if not fits(plain.shape, weight.shape):
        raise WeightShapeError(
            f"layer `{target}` changes a weight of shape {plain.shape}, that of the module is "
            f"{tuple(weight.shape)}; the adapter is for another model",
            target=target,
        )
    up, down, alpha = plain.up, plain.down, plain.alpha
    if plain.mid is not None:
        up, down = plain.factors()
        alpha = None
    shaped = low_rank(up.flatten(1), down.flatten(1), tuple(weight.shape), alpha)
    # Training writes into what it is given; the adapter stays as it is.
    up, down = (
        one.detach().to(weight.device, dtype or one.dtype, copy=True)
        for one in (shaped.up, shaped.down)
    )
    if isinstance(layer, DoraLayer):
        lengths = layer.magnitude.detach().flatten()
        lengths = lengths.to(weight.device, dtype or lengths.dtype, copy=True)
        return DoraPath(lengths, up, down, alpha, dropout)
    return LoraPath(up, down, alpha, dropout)


def _trained_dtype(module: nn.Module) -> torch.dtype:
    """Float32 beside a weight that is too narrow to be trained in, else the weight's own."""
    weight = getattr(module, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
    return dtype if dtype.is_floating_point and dtype.itemsize >= 4 else torch.float32
