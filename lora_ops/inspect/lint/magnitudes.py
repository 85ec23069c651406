"""Whether ComfyUI and Forge can apply the magnitudes of DoRA: by their shape, which they broadcast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from .subject import Part

# Convolutions, whose factors LyCORIS may store as matrices; and modules that may be convolutions.
_KERNELS = re.compile(
    r"\.(in_layers\.2|out_layers\.3|skip_connection|op|conv)$|\.input_blocks\.0\.0$|\.out\.2$"
)
_EITHER = re.compile(r"proj_(in|out)$|embed|img_in|conv")
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
    if len(weight) != 2 or part.kind not in _FLAT:
        return _broadcasts(magnitudes, weight)
    kernel = _kernel(magnitudes, weight)
    named = part.place.native if part.place is not None else ""
    if _KERNELS.search(named):
        return _broadcasts(magnitudes, kernel)
    unsure = not named or _EITHER.search(named) is not None
    return _broadcasts(magnitudes, weight) or (unsure and _broadcasts(magnitudes, kernel))


def _kernel(magnitudes: tuple[int, ...], matrix: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that the weight may have; the file does not tell its channels from its kernel."""
    columns = magnitudes[1] if len(magnitudes) == 4 else matrix[1]
    return (matrix[0], columns, 3, 3)


def _broadcasts(magnitudes: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    if not magnitudes:
        return False
    axis = 0 if magnitudes[0] == weight[0] else 1
    lengths = [size if index == axis else 1 for index, size in enumerate(weight)]
    product = _together(magnitudes, lengths)
    return product is not None and _together(product, weight) == weight


def _together(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of a product of two tensors; None where they cannot be multiplied."""
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    if any(first != second and 1 not in (first, second) for first, second in pairs):
        return None
    return tuple(second if first == 1 else first for first, second in reversed(pairs))
