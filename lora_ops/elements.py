"""What the numbers of a tensor are stored as, and tensors of which no more is known: torch need not be there.

Names and widths: the `torch.dtype | Element` enumeration of the safetensors format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype in torch, which is imported for this; bytes where torch has none."""
        import torch

        return getattr(torch, self.title, torch.uint8)


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


def element_named(name: str) -> Element:
    """What users give this name: one of `DTYPES`."""
    return element_titled(DTYPES[name])


def loadable(element: Element) -> Element:
    """The nearest that every loader reads: float32 for float64, float16 for float8."""
    if element.name == "F64":
        return ELEMENTS["F32"]
    return element if element.title in DTYPES.values() else ELEMENTS["F16"]


def loadable_by_all(elements: Iterable[Element]) -> Element:
    """The narrowest that every loader reads and that holds numbers of all of these."""
    found = {loadable(one) for one in elements}
    return found.pop() if len(found) == 1 else ELEMENTS["F32"]


def element_titled(title: str) -> Element:
    """What the numbers of a dtype are that has this name in torch."""
    return _BY_TITLE[title]


def asked(dtype: torch.dtype | Element | None) -> Element | None:
    """What numbers are to be stored as; None where nothing is asked for."""
    return None if dtype is None else element_of(dtype)


def element_of(dtype: torch.dtype | Element) -> Element:
    """What the numbers of a dtype are; of one that no safetensors file can hold, under torch's name."""
    if isinstance(dtype, Element):
        return dtype
    title = spelled(dtype)
    return _BY_TITLE.get(title) or Element(
        str(dtype), title, 8 * dtype.itemsize, dtype.is_floating_point, dtype.is_complex
    )


@dataclass(frozen=True, slots=True, eq=False)
class Shaped:
    """A tensor without its data, as a header tells of it.

    It says what plans ask. Whatever else is asked of it, or done with it, is done with a tensor of torch
    that has no data either, for which torch is imported.

    Attributes:
        shape: Of the tensor.
        element: What its numbers are.
    """

    shape: tuple[int, ...]
    element: Element

    is_meta: ClassVar[bool] = True

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers."""
        return self.element.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numel() * self.element.bits // 8

    @property
    def mT(self) -> Shaped:  # noqa: N802  as PyTorch calls it
        """The last two axes the other way round."""
        return Shaped((*self.shape[:-2], *self.shape[:-3:-1]), self.element)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to(self, dtype: torch.dtype | Element) -> Shaped:
        """The same of other numbers."""
        return Shaped(self.shape, element_of(dtype))

    def reshape(self, *shape: Any) -> Shaped:
        """The same numbers in another shape: sizes, or one sequence of them."""
        sizes = shape if shape and isinstance(shape[0], int) else tuple(*shape)
        open_size = self.numel() // max(1, abs(math.prod(sizes)))
        return Shaped(tuple(open_size if one == -1 else one for one in sizes), self.element)

    def of_torch(self) -> Tensor:
        """The same as torch has it."""
        import torch

        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def __len__(self) -> int:
        return self.shape[0]

    def contiguous(self) -> Shaped:
        """Itself."""
        return self

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            return self.of_torch()[at]
        return Shaped((len(range(*at.indices(len(self)))), *self.shape[1:]), self.element)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python looks for, such as ways to copy
            raise AttributeError(name)
        return getattr(self.of_torch(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do with tensors of torch what torch is to do with such ones."""
        return function(
            *map(_of_torch, args), **{k: _of_torch(v) for k, v in (kwargs or {}).items()}
        )


def _of_torch(value: Any) -> Any:
    """An argument, or a list of them, as torch has it."""
    if isinstance(value, (list, tuple)):
        return [_of_torch(one) for one in cast("list[Any]", value)]
    return value.of_torch() if isinstance(value, Shaped) else value


def shaped(shape: Sequence[int], element: Element) -> Tensor:
    """A tensor of which only this is known, for what asks for no more; see `Shaped`."""
    return cast("Tensor", Shaped(tuple(shape), element))


def as_element(tensor: Tensor, element: Element) -> Tensor:
    """A tensor in another dtype, whether it has data or not."""
    return tensor.to(cast("Any", element if isinstance(tensor, Shaped) else element.dtype))


def element_in(tensor: Tensor) -> Element:
    """What the numbers of a tensor are, whether it has data or not."""
    return tensor.element if isinstance(tensor, Shaped) else element_of(tensor.dtype)
