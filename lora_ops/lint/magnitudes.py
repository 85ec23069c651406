"""Whether ComfyUI and Forge can apply the magnitudes of DoRA: by their shape, which they broadcast."""

from __future__ import annotations

import re

import torch

from .subject import Part

# Modules of UNets that are kernels, though LyCORIS may store their factors as matrices.
_KERNELS = re.compile(
    r"\.(in_layers\.2|out_layers\.3|skip_connection|op|conv)$|\.input_blocks\.0\.0$|\.out\.2$"
)
_FLAT = ("loha", "lokr")


def are_applied(part: Part) -> bool:
    """Whether magnitudes over a layer can be multiplied with its weight.

    They are divided by lengths of rows, (out, 1, ...), where their first axis is as long as the
    weight's, else of columns, (1, in, ...), and the weight is multiplied with that in place. What
    does not broadcast so is an error in the log, and the layer is left out.
    """
    if "dora_scale" not in part.keys or part.layer is None:
        return True
    magnitudes, weight = part.magnitudes, part.layer.shape
    if len(weight) == 2 and part.kind in _FLAT and len(magnitudes) != 2:
        return len(magnitudes) == 4  # of a kernel, most likely; its size is not in the file
    if len(weight) == 2 and part.kind in _FLAT and _is_kernel(part):
        return False
    return _broadcasts(magnitudes, weight)


def _is_kernel(part: Part) -> bool:
    return part.place is not None and _KERNELS.search(part.place.native) is not None


def _broadcasts(magnitudes: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    if not magnitudes:
        return False
    axis = 0 if magnitudes[0] == weight[0] else 1
    lengths = [size if index == axis else 1 for index, size in enumerate(weight)]
    try:
        product = torch.broadcast_shapes(magnitudes, lengths)
        return torch.broadcast_shapes(product, weight) == weight
    except RuntimeError:
        return False
