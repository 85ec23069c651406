"""The dtypes a safetensors file can name, how wide they are, and what torch calls them.

Names and widths: the `Dtype` enumeration of the safetensors format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError

# name in the file, bits per element, torch's name (None: torch has no such element)
_TABLE: tuple[tuple[str, int, str | None], ...] = (
    ("F64", 64, "float64"),
    ("F32", 32, "float32"),
    ("F16", 16, "float16"),
    ("BF16", 16, "bfloat16"),
    ("F8_E4M3", 8, "float8_e4m3fn"),
    ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
    ("F8_E5M2", 8, "float8_e5m2"),
    ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
    ("F8_E8M0", 8, "float8_e8m0fnu"),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F4", 4, None),
    ("I64", 64, "int64"),
    ("I32", 32, "int32"),
    ("I16", 16, "int16"),
    ("I8", 8, "int8"),
    ("U64", 64, "uint64"),
    ("U32", 32, "uint32"),
    ("U16", 16, "uint16"),
    ("U8", 8, "uint8"),
    ("BOOL", 8, "bool"),
    ("C64", 64, "complex64"),
)

#: Bits per element, by the name in the file.
DTYPE_BITS: dict[str, int] = {name: bits for name, bits, _ in _TABLE}

#: torch's dtype by the name in the file. Sub-byte floats are absent, and so is what an older
#: torch lacks (`F8_E8M0` came with 2.7).
TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, torch_name)
    for name, _, torch_name in _TABLE
    if torch_name is not None and hasattr(torch, torch_name)
}

#: The name in the file by torch's dtype.
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


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
        return DTYPE_NAMES[dtype]
    except KeyError:
        raise ArgumentError(
            f"a safetensors file cannot hold {dtype}; choose one of {', '.join(sorted(DTYPE_NAMES.values()))}"
        ) from None
