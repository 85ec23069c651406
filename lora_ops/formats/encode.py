"""From a layer to the tensors of a file."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers import FullLayer, Layer
from .names import Namer
from .suffixes import BIAS
from .table import Format


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
        UnsupportedLayerError: The format has no place for a full difference, or no name for this
            target.
    """
    if isinstance(layer, FullLayer):
        return encode_full(format, namer, target, layer.diff)
    module = namer(target)
    up, down, mid = format.tucker if layer.mid is not None else (format.up, format.down, "")
    tensors = {module + up: layer.up, module + down: layer.down}
    if layer.mid is not None:
        tensors[module + mid] = layer.mid
    alpha = float(layer.rank) if layer.alpha is None and format.needs_alpha else layer.alpha
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    if layer.dora_scale is not None:
        tensors[f"{module}.dora_scale"] = layer.dora_scale
    return tensors


def module_keys(format: Format, module: str) -> dict[str, str]:
    """Return the key of each role in a file of this format, for a module of this name."""
    if module.endswith(BIAS):
        return {"diff": module.removesuffix(BIAS) + ".diff_b"}
    return {
        "up": module + format.up,
        "down": module + format.down,
        "alpha": f"{module}.alpha",
        "diff": f"{module}.diff",
    }


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
