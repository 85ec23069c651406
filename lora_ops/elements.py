"""What the numbers of a tensor are stored as, known from headers: torch need not be there.

Names and widths: the `Dtype` enumeration of the safetensors format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

# Names for people; others have torch's.
_STORAGES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8 e4m3",
    "float8_e5m2": "fp8 e5m2",
}


class Element(NamedTuple):
    """One kind of number that tensors hold.

    Attributes:
        name: As a safetensors file names it: `BF16`, `F8_E4M3`, `F4`.
        title: As torch does: `bfloat16`; of what torch has not, the file's own name.
        bits: Of one number.
        is_floating_point: As torch's dtypes have it.
        is_complex: Likewise.
    """

    name: str
    title: str
    bits: int
    is_floating_point: bool = False
    is_complex: bool = False

    @property
    def storage(self) -> str:
        """What people call numbers that are stored as they are: `bf16`, `fp8 e5m2`, `int64`."""
        return _STORAGES.get(self.title, self.title)


_FLOATS = (
    Element("F64", "float64", 64, True),
    Element("F32", "float32", 32, True),
    Element("F16", "float16", 16, True),
    Element("BF16", "bfloat16", 16, True),
    Element("F8_E4M3", "float8_e4m3fn", 8, True),
    Element("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, True),
    Element("F8_E5M2", "float8_e5m2", 8, True),
    Element("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, True),
    Element("F8_E8M0", "float8_e8m0fnu", 8, True),
    # torch has none of these: what a source hands out of them are bytes.
    Element("F6_E2M3", "F6_E2M3", 6),
    Element("F6_E3M2", "F6_E3M2", 6),
    Element("F4", "F4", 4),
)
_OTHERS = (
    *(Element(f"I{bits}", f"int{bits}", bits) for bits in (64, 32, 16, 8)),
    *(Element(f"U{bits}", f"uint{bits}", bits) for bits in (64, 32, 16, 8)),
    Element("BOOL", "bool", 8),
    Element("C64", "complex64", 64, is_complex=True),
)
#: By the name in the file.
ELEMENTS: dict[str, Element] = {one.name: one for one in (*_FLOATS, *_OTHERS)}
_BY_TITLE = {one.title: one for one in ELEMENTS.values()}

#: torch's name of what every loader reads, by the name that users give it.
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def spelled(dtype: torch.dtype) -> str:
    """The name without its module: float16."""
    return str(dtype).removeprefix("torch.")


def loadable(element: Element) -> Element:
    """The nearest that every loader reads: float32 for float64, float16 for float8."""
    if element.name == "F64":
        return ELEMENTS["F32"]
    return element if element.title in DTYPES.values() else ELEMENTS["F16"]


def element_of(dtype: torch.dtype) -> Element:
    """What the numbers of a dtype are; of one that no safetensors file can hold, under torch's name."""
    title = spelled(dtype)
    return _BY_TITLE.get(title) or Element(
        str(dtype), title, 8 * dtype.itemsize, dtype.is_floating_point, dtype.is_complex
    )
