"""The number formats of what is written: their names, the usual one, and rounding into them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..elements import DTYPES, element_of, spelled
from ..elements import loadable as loadable_element
from ..errors import NonFiniteError


def dtype_named(name: str) -> torch.dtype:
    """The dtype that users give this name: one of `DTYPES`."""
    return getattr(torch, DTYPES[name])


def loadable(dtype: torch.dtype) -> torch.dtype:
    """The nearest dtype that every loader reads: float32 for float64, float16 for float8."""
    return getattr(torch, loadable_element(element_of(dtype)).title)


def rounded(tensor: Tensor, dtype: torch.dtype, target: str, exact: Tensor | None = None) -> Tensor:
    """Return the tensor in `dtype`, on the CPU, contiguous.

    Args:
        tensor: On any device.
        dtype: Any float dtype.
        target: Its layer, for messages.
        exact: What it was before it was rounded, where it has been already.

    Raises:
        NonFiniteError: A value is beyond the range of that dtype.
    """
    if tensor.is_meta:  # there are no numbers, only a shape
        return tensor.to(dtype)
    result = tensor.to(dtype).cpu().contiguous()
    # NaN and infinity survive `max`, which is fifteen times as fast as asking every number.
    if result.numel() and not math.isfinite(float(result.abs().max())):
        raise NonFiniteError(
            f"layer `{target}`: values up to {float((tensor if exact is None else exact).abs().max()):.3g} do not fit "
            f"{spelled(dtype)}, which ends at {torch.finfo(dtype).max:.5g}; "
            "use `dtype=` bf16 or fp32",
            target=target,
        )
    return result
