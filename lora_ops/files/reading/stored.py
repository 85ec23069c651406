"""What a pickled checkpoint says of its tensors: which bytes of which storage, in what shape.

The functions carry the arguments that `torch.save` writes for those of `torch._utils`, and check
them: a view must lie within its storage, whatever the pickle says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from ..base import quote
from ..dtypes import dtype_names

_MAX_DIMS = 64  # more than torch's and numpy's operations take
_MAX_ARGUMENTS = 16


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle names, `module.name`, and that is not looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file.

    Attributes:
        root: The key of the storage that the file holds.
        dtype: What torch's class for it says; None for quantised integers.
        width: Bytes of one element.
        begin: First byte within the root.
        size: Bytes.
    """

    root: str
    dtype: torch.dtype | None
    width: int
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A plain dense tensor that lies in a storage.

    Attributes:
        storage: Where.
        dtype: Of its elements.
        offset: Its first element within the storage, in elements.
        shape: Elements along each axis.
        strides: From one to the next along each axis, in elements; none is negative.
        conjugated: Whether the elements are the conjugates of those stored.
        negated: Whether they are the negatives.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool
    negated: bool

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        if not all(self.shape):
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def size(self) -> int:
        """Bytes of a copy of it."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Strange:
    """A tensor that cannot be read as plain numbers.

    Attributes:
        what: Why: `sparse`, `without data`.
        quantised: Whether it holds integers with scales.
    """

    what: str
    quantised: bool = False


# Classes of storages in all versions of torch, without their ending: torch's name of the dtype.
_STORAGES = {
    "Untyped": "uint8",
    "_Untyped": "uint8",
    "Byte": "uint8",
    "Bool": "bool",
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
# Those of quantised integers, and the bytes of their elements.
_QUANTISED = {"QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1, "QInt32": 4}
_ENDING = "Storage"
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")

# What tensors may be of, besides what safetensors files can hold.
_MORE = ("torch.complex128", "torch.complex32")


def storage_of(identity: object) -> Storage | Name:
    """What a persistent id stands for: a storage, or (in old files) the class of a module.

    Args:
        identity: `("storage", class, key, device, elements)`; before torch 1.6 with `(key, first
            element, elements)` of a view, or None, at the end.

    Raises:
        ValueError: it is neither, or a size is no size.
    """
    match identity:
        case ("storage", Name(text), str(key), _, int(count)):
            view = None
        case ("storage", Name(text), str(key), _, int(count), view):
            pass
        case ("module", Name() as name, *_):
            return name
        case _:
            raise ValueError("a persistent id that is no storage")
    module, _, kind = text.rpartition(".")
    kind, ending = kind[: -len(_ENDING)], kind[-len(_ENDING) :]
    known = kind in _STORAGES or kind in _QUANTISED
    if module not in _STORAGE_MODULES or ending != _ENDING or not known:
        raise ValueError(f"{text} is no class of storages")
    dtype = None if kind in _QUANTISED else getattr(torch, _STORAGES[kind])
    width = _QUANTISED[kind] if dtype is None else dtype.itemsize
    begin, length = 0, _natural(count)
    if view is not None:
        _, begin, length = cast("tuple[object, int, int]", view)
        if _natural(begin) + _natural(length) > count:
            raise ValueError(f"a view of storage {key} reaches beyond it")
    return Storage(key, dtype, width, begin * width, length * width)


def _tensor(
    storage: object, offset: object, shape: object, strides: object, *more: object
) -> Stored | Strange:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`: (gradients, hooks, bits) may follow."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if storage.dtype is None:
        return Strange("made of quantised integers", quantised=True)
    bits = more[2] if len(more) > 2 else None
    return _stored(storage, storage.dtype, offset, shape, strides, bits)


def _tensor_of_dtype(
    storage: object, offset: object, shape: object, strides: object, *more: object
) -> Stored | Strange:
    """`_rebuild_tensor_v3`: (gradients, hooks, dtype, bits) follow."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    name = more[2]
    if not isinstance(name, Name):
        raise ValueError("a tensor without a dtype")
    # Looked up where nothing is imported by being asked for.
    dtype = vars(torch).get(name.text.removeprefix("torch."))
    if not isinstance(dtype, torch.dtype) or not (dtype in dtype_names() or str(dtype) in _MORE):
        return Strange(f"of {quote(name.text)}")
    bits = more[3] if len(more) > 3 else None
    return _stored(storage, dtype, offset, shape, strides, bits)


def _stored(
    storage: Storage,
    dtype: torch.dtype,
    offset: object,
    shape: object,
    strides: object,
    bits: object,
) -> Stored:
    sizes, steps = _naturals(shape), _naturals(strides)
    if len(sizes) != len(steps) or math.prod(n or 1 for n in sizes) >= 1 << 63:
        raise ValueError("the shape of a tensor is not a tuple of sizes")
    flags = cast("Mapping[str, object]", bits) if isinstance(bits, Mapping) else {}
    conjugated, negated = bool(flags.get("conj")), bool(flags.get("neg"))
    tensor = Stored(storage, dtype, _natural(offset), sizes, steps, conjugated, negated)
    end = (tensor.offset + tensor.span) * dtype.itemsize
    if tensor.span and end > storage.size:
        raise ValueError(f"a tensor claims {end} bytes of a storage that has {storage.size}")
    return tensor


def _parameter(data: object, *_: object) -> object:
    """`_rebuild_parameter`, `Parameter` and those of tensors that were on an accelerator."""
    return data if isinstance(data, Stored | Strange) else None


def _with_attributes(function: object, kind: object, arguments: object, _: object) -> object:
    """`_rebuild_from_type_v2`: a tensor that has attributes, or is of a class of its own."""
    rebuild = REBUILD.get(function.text) if isinstance(function, Name) else None
    if rebuild is None or rebuild is _with_attributes or not isinstance(arguments, tuple):
        raise ValueError("a tensor that nothing of torch rebuilds")
    tensor = call(rebuild, cast("tuple[object, ...]", arguments))
    if isinstance(tensor, Strange) or (isinstance(kind, Name) and kind.text in _TENSOR_CLASSES):
        return tensor
    return Strange("of a class of its own")


def _size(sizes: object = ()) -> tuple[int, ...]:
    return _naturals(sizes)


def _strange(what: str, quantised: bool = False) -> Callable[..., Strange]:
    def rebuild(*_: object) -> Strange:
        return Strange(what, quantised)

    return rebuild


_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")

#: What makes a value of use, by name; each raises ValueError or TypeError for what is no such call.
REBUILD: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch._utils._rebuild_qtensor": _strange("made of quantised integers", quantised=True),
    "torch._utils._rebuild_sparse_tensor": _strange("sparse"),
    "torch._utils._rebuild_nested_tensor": _strange("nested"),
    "torch.nested._internal.nested_tensor._rebuild_njt": _strange("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _strange("without data (of the meta device)"),
    "torch._utils._rebuild_wrapper_subclass": _strange("of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": _strange("a numpy array"),
    "torch.Size": _size,
}

#: What checkpoints hold besides and is not needed: a call of it gives None.
HARMLESS = {
    *("collections.Counter", "torch.device", "torch.serialization._get_layout", "_codecs.encode"),
    "torch._dynamo.decorators._DimRange",  # beside nested tensors
    *("builtins.bytearray", "builtins.set", "builtins.frozenset", "builtins.complex"),
    *("__builtin__.bytearray", "__builtin__.set", "__builtin__.frozenset", "__builtin__.complex"),
}


def call(function: Callable[..., object], arguments: tuple[object, ...]) -> object:
    """Call one of `REBUILD`; a long tuple, given again and again, would take for ever.

    Raises:
        ValueError: they are no arguments of it.
        TypeError: likewise.
    """
    if len(arguments) > _MAX_ARGUMENTS:
        raise ValueError(f"a call with {len(arguments)} arguments")
    return function(*arguments)


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a size or a place that is none")
    return value


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(cast("tuple[object, ...]", values)) > _MAX_DIMS:
        raise ValueError("the shape of a tensor is not a tuple of sizes")
    return tuple(_natural(value) for value in cast("tuple[object, ...]", values))
