"""In which numbers a search multiplies: bfloat16 where the processor has units for it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Below this side it is not the products that take the time.
_LEAST_SIDE = 512


def search_dtype(matrix: Tensor) -> torch.dtype:
    """Return bfloat16 where products of the matrix (..., out, in) are twice as fast in it, else float32.

    Known from the processor, not measured: on a busy machine a clock would decide otherwise the next
    time, and the same inputs would not give the same bytes.
    """
    if matrix.device.type != "cpu" or min(matrix.shape[-2:]) < _LEAST_SIDE or not has_bf16_units():
        return torch.float32
    return torch.bfloat16


@functools.cache
def has_bf16_units() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16 or AMX), and torch makes use of it.

    Others convert to float32 and back, several times slower than float32 itself.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    # Older versions of torch do not say: float32 there.
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, ask, bool)() for ask in asks)
