"""Weights of the layers of a module: what is stored, what it stands for, and who takes it."""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from .stored import StoredLinear

# Modules of torch that take the weight of a layer below them without calling it, some only on the fast
# path of `eval()`; and the names of these layers.
_READERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("out_proj",),
    nn.TransformerEncoderLayer: ("linear1", "linear2"),
}
if hasattr(nn, "LinearCrossEntropyLoss"):  # since torch 2.13
    _READERS[nn.LinearCrossEntropyLoss] = ("linear",)


def stored_weight(module: nn.Module) -> Tensor | None:
    """The parameter `weight` itself, with what is merged into it; None where there is none."""
    return module._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]


def dense_weight(module: nn.Module) -> Tensor:
    """A layer's weight (out, in, *kernel) as it computes with it, float32, without any path.

    Without a gradient, too.

    Raises:
        UnsupportedLayerError: It is stored in a way that is not known here.
    """
    if isinstance(module, StoredLinear):
        return module.dequantised()
    unmerged = cast("Tensor | None", getattr(module, "unmerged", None))
    weight = cast("Tensor", stored_weight(module) if unmerged is None else unmerged).detach()
    if isinstance(module, turned_classes()):
        weight = weight.mT
    return weight.float() if weight.is_floating_point() else _of_bitsandbytes(module)


def _of_bitsandbytes(module: nn.Module) -> Tensor:
    """The weight of a Linear4bit, or of a Linear8bitLt."""
    weight = cast("Any", module.weight)
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if getattr(weight, "SCB", None) is not None:
        return weight.data.float() * weight.SCB[:, None] / 127
    raise UnsupportedLayerError(
        f"a {type(module).__name__} stores its weight in {weight.dtype}, which cannot be read; load "
        "the model in full precision, and store it with `store_frozen`"
    )


def turned_classes() -> tuple[type[nn.Module], ...]:
    """Return the linear layers that store their weight as (in, out): GPT-2's, of transformers."""
    library: Any = sys.modules.get("transformers.pytorch_utils")  # where there is one, it is loaded
    return () if library is None else (library.Conv1D,)


def read_layers(module: nn.Module) -> set[nn.Module]:
    """Return the layers below a module whose weight their parents take without calling them."""
    return {
        child
        for parent in module.modules()
        for kind, names in _READERS.items()
        if isinstance(parent, kind)
        for child in (getattr(parent, name) for name in names)
    }
