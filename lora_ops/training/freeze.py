"""Store the frozen weights of a model narrow, before adapters are injected beside them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ..errors import ArgumentError, UnsupportedLayerError
from .adapted import Adapted
from .stored import STORES
from .targets import chosen
from .weights import read_layers

BACKENDS = ("auto", "torch", "bitsandbytes")
_BITSANDBYTES = "bitsandbytes"


def store_frozen(
    module: nn.Module,
    targets: str | Sequence[str] = "all",
    *,
    store: str = "nf4",
    backend: str = "auto",
) -> int:
    """Replace linear layers by frozen ones in 4 or 8 bits, in place, for good.

    Adapters that are injected afterwards train beside them in full precision; what they learn is
    collected and baked into the checkpoint that the weights came from.

    Args:
        module: The model.
        targets: As in `inject`. Of the submodules meant, the linear layers are replaced, but not
            those whose weight torch reads without calling them.
        store: `nf4`, 0.52 bytes a number; or `int8`, 1 byte.
        backend: `torch`: layers of lorakit; `bitsandbytes`: its Linear4bit, for `nf4`; `auto`: the
            latter for weights on a CUDA device, for which it has kernels, if it is installed.

    Returns:
        How many layers were replaced.

    Raises:
        ArgumentError: No such store or backend, it is not installed, or no linear layer is meant.
        UnsupportedLayerError: A layer carries an adapter already.
    """
    if store not in STORES:
        raise ArgumentError(f"unknown store `{store}`; it is one of {', '.join(STORES)}")
    has_it = importlib.util.find_spec(_BITSANDBYTES) is not None
    _check_backend(backend, store, has_it)
    read = read_layers(module)  # whoever reads a weight directly needs plain numbers
    linears = {
        name: one
        for name, one in chosen(module, targets).items()
        if isinstance(one, nn.Linear) and one.weight.is_floating_point() and one not in read
    }
    if not linears:
        raise ArgumentError(f"`{targets}` means no linear layer; only these are stored in {store}")
    for name, layer in linears.items():
        if isinstance(layer, Adapted):
            raise UnsupportedLayerError(
                f"`{name}` carries an adapter: store the weights first, then inject", target=name
            )
    for name, layer in linears.items():
        parent, _, own = name.rpartition(".")
        bias = cast("nn.Parameter | None", layer.bias)
        if bias is not None:
            bias.requires_grad_(False)
        fits = backend == "auto" and has_it and store == "nf4" and layer.weight.is_cuda
        if fits or backend == _BITSANDBYTES:
            stored = _linear_4bit(layer, bias)
        else:
            stored = STORES[store](layer.weight, bias)
        setattr(module.get_submodule(parent), own, stored.train(layer.training))
    return len(linears)


def _check_backend(backend: str, store: str, has_it: bool) -> None:
    if backend not in BACKENDS:
        raise ArgumentError(f"unknown backend `{backend}`; it is one of {', '.join(BACKENDS)}")
    if backend == _BITSANDBYTES and not has_it:
        raise ArgumentError("bitsandbytes is not installed: pip install bitsandbytes")
    if backend == _BITSANDBYTES and store != "nf4":
        raise ArgumentError(f"backend `bitsandbytes` is for store `nf4`; for `{store}` use `torch`")


def _linear_4bit(layer: nn.Linear, bias: nn.Parameter | None) -> nn.Module:
    """The layer as bitsandbytes' own, with its double quantisation; quantised where it lies."""
    library: Any = importlib.import_module(_BITSANDBYTES)
    made = library.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=bias is not None,
        compute_dtype=layer.weight.dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    made.weight = library.nn.Params4bit(
        layer.weight.detach().clone(),
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
        module=made,
    )
    if bias is not None:
        made.bias = bias
    return made.to(layer.weight.device)
