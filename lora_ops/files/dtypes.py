"""What torch calls the dtypes that a safetensors file can name."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..elements import ELEMENTS
from ..errors import ArgumentError

#: Bits per element, by the name in the file.
DTYPE_BITS: dict[str, int] = {one.name: one.bits for one in ELEMENTS.values()}


@cache
def torch_dtypes() -> dict[str, torch.dtype]:
    """Each dtype of torch by its name in the file.

    Floats narrower than a byte are absent, and so is what an older torch lacks (`F8_E8M0` came with 2.7).
    """
    found = {one.name: getattr(torch, one.title, None) for one in ELEMENTS.values()}
    return {name: dtype for name, dtype in found.items() if dtype is not None}


@cache
def dtype_names() -> dict[torch.dtype, str]:
    """The name in the file by torch's dtype."""
    return {dtype: name for name, dtype in torch_dtypes().items()}


def memory_of(tensor: Tensor) -> memoryview:
    """A tensor's elements as bytes, in C order; shares its memory where it can."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def dtype_name(dtype: torch.dtype) -> str:
    """The name a safetensors file uses for a torch dtype, such as `BF16`.

    Raises:
        ArgumentError: the format has no name for it.
    """
    try:
        return dtype_names()[dtype]
    except KeyError:
        raise ArgumentError(
            f"a safetensors file cannot hold {dtype}; choose one of {', '.join(sorted(torch_dtypes()))}"
        ) from None
