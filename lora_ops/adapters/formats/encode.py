"""From a layer to the tensors of a file."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UnsupportedLayerError
from ...models.architectures import TABLES
from ..layers import DoraLayer, FullLayer, Layer, LoraLayer, ReshapedLayer
from ..naming.names import Namer
from ..naming.suffixes import BIAS, TABLE_DOWN, TABLE_UP, is_turned, suffix_of
from ..naming.table import COMFY, KOHYA, PEFT, Format
from .kinds import KINDS

_KIND_OF = {kind.build: name for name, kind in KINDS.items()}
_PAIR = ("up", "down")


def encode_layer(format: Format, namer: Namer, target: str, layer: Layer) -> dict[str, Tensor]:
    """Return the tensors of one layer under the keys they get in the file.

    Factors keep their shape: those of a convolution are (rank, in, *kernel) and (out, rank, 1...).
    Alpha becomes a float32 scalar. A layer without one has scale 1: it gets its rank where the
    format needs a number, else none.

    Args:
        format: Where to.
        namer: Of that format, from ``module_namer``.
        target: Canonical target; the whole parameter name for a full difference of what is not
            called ``.weight``.
        layer: What to write; its tensors are passed on, not copied.

    Raises:
        UnsupportedLayerError: The format has no place for that kind, or no name for this target.
    """
    if isinstance(layer, FullLayer):
        return encode_full(format, namer, target, layer.diff)
    if isinstance(layer, DoraLayer):
        inner = encode_layer(format, namer, target, layer.inner)
        return inner | _encode_magnitudes(format, namer, target, layer)
    if isinstance(layer, ReshapedLayer):
        if format.name != COMFY.name:
            raise _no_place(format, target, layer)
        inner = encode_layer(format, namer, target, layer.inner)
        return inner | {f"{namer(target)}.reshape_weight": layer.reshape_weight}
    if not isinstance(layer, LoraLayer):
        return _encode_other(format, namer, target, layer)
    module = namer(target)
    if layer.mid is not None:
        up, down, mid = format.tucker
        tensors = {module + up: layer.up, module + down: layer.down, module + mid: layer.mid}
    else:
        keys = module_keys(format, module)
        tensors = {keys[role]: as_stored(keys[role], layer.tensors()[role]) for role in _PAIR}
    alpha = float(layer.rank) if layer.alpha is None and format.needs_alpha else layer.alpha
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def _encode_other(format: Format, namer: Namer, target: str, layer: Layer) -> dict[str, Tensor]:
    name = _KIND_OF.get(type(layer), "")
    if not name or format.name not in KINDS[name].formats:
        raise _no_place(format, target, layer)
    if format.needs_alpha:
        layer = layer.with_alpha()
    module, keys = namer(target), KINDS[name].spelled or name
    tensors = layer.tensors().items()
    return {module + suffix_of(keys, role): tensor for role, tensor in tensors}


def _encode_magnitudes(
    format: Format, namer: Namer, target: str, layer: DoraLayer
) -> dict[str, Tensor]:
    if format.name in (KOHYA.name, COMFY.name):
        # In PEFT's shape the loaders of these formats would take the magnitudes for another axis.
        return {f"{namer(target)}.dora_scale": layer.dora_scale}
    if layer.axis != 0 or not isinstance(layer.inner, LoraLayer):
        raise _no_place(format, target, layer)
    ones = [1] * (len(layer.shape) - 2)
    shape = (1, -1, *ones) if ones else (-1,)
    return {f"{namer(target)}.lora_magnitude_vector": layer.magnitude.reshape(shape)}


def _no_place(format: Format, target: str, layer: Layer) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"format `{format.name}` has no place for `{target}`, a {layer.title} layer: its loaders do "
        'not know the kind; use the format that it has, or convert it with `to="lora"`',
        target=target,
    )


def module_keys(format: Format, module: str) -> dict[str, str]:
    """Return the key of each role in a file of this format, for a module of this name."""
    if module.endswith(BIAS):
        return {"diff": module.removesuffix(BIAS) + ".diff_b"}
    is_table = format.name == PEFT.name and module.rpartition(".")[2] in TABLES
    keys = (
        table_keys(module) if is_table else {"up": module + format.up, "down": module + format.down}
    )
    return {**keys, "alpha": f"{module}.alpha", "diff": f"{module}.diff"}


def table_keys(module: str) -> dict[str, str]:
    """Return the keys that PEFT gives the two factors of an embedding."""
    return {"up": module + TABLE_UP, "down": module + TABLE_DOWN}


def as_stored(key: str, tensor: Tensor) -> Tensor:
    """Return a layer's tensor as a file has it under a key."""
    return tensor.mT.contiguous() if is_turned(key) else tensor


def encode_full(format: Format, namer: Namer, target: str, diff: Tensor) -> dict[str, Tensor]:
    """Return a full difference under its key: ``.diff``, and ``.diff_b`` for a bias.

    Raises:
        UnsupportedLayerError: The format has no place for it.
    """
    if not format.holds_full:
        raise UnsupportedLayerError(
            f"format `{format.name}` has no place for the full difference of `{target}`: "
            "its loaders know factors of linear and convolution layers only; "
            "use format `comfy`, or leave full differences out",
            target=target,
        )
    if target.endswith(BIAS):
        return {namer(target.removesuffix(BIAS)) + ".diff_b": diff}
    return {f"{namer(target)}.diff": diff}
