"""In which numbers a search multiplies: in as few bits as the processor has units for."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Below this side it is not the products that take the time.
_LEAST_SIDE = 512


def search_dtypes(matrix: Tensor) -> tuple[torch.dtype, ...]:
    """Return in which dtypes to search a matrix (..., out, in), the first that is fine enough for it.

    None on other devices, and for small matrices: there a stack is searched at once.

    Known from the processor, not measured: on a busy machine a clock would decide otherwise the next
    time, and the same inputs would not give the same bytes.
    """
    if matrix.device.type != "cpu" or min(matrix.shape[-2:]) < _LEAST_SIDE:
        return ()
    low = (torch.int8,) if has_int8_units() else ()
    return (*low, torch.bfloat16 if has_bf16_units() else torch.float32)


@functools.cache
def has_int8_units() -> bool:
    """Whether the processor multiplies whole numbers of 8 bits itself (VNNI), and torch makes use of it.

    Their sums are exact, in any order and on any number of threads.
    """
    vnni = getattr(torch.cpu, "_is_vnni_supported", bool)
    return torch.backends.mkldnn.is_available() and vnni() and _multiplies_int8()


def _multiplies_int8() -> bool:
    """Whether this torch has that product for processors."""
    ones = torch.ones(32, 32, dtype=torch.int8)
    try:
        return bool((whole_product(ones, ones) == 32).all())
    except (AttributeError, RuntimeError):
        return False


def whole_product(one: Tensor, other: Tensor) -> Tensor:
    """Return `one @ other` of two matrices in int8, as int32; not in torch's public interface."""
    return torch.ops.aten._int_mm(one, other)


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
