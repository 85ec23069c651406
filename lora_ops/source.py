"""TensorSource: anything that can name its tensors and hand out one at a time.

A checkpoint file, a sharded index, a folder, a dict of tensors: every operation reads through this.
A source of one's own is a class of it with four methods:

    class Zeros(TensorSource):
        name = "zeros"

        def keys(self):
            return ["weight"]

        def shape(self, key):
            return (4, 4)

        def dtype(self, key):
            return torch.float32

        def tensor(self, key):
            return torch.zeros(4, 4)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from .elements import Element, element_of
from .spacing import spacing


class TensorSource(ABC):
    """Names, shapes and dtypes known up front; data read one tensor at a time, or a piece of one.

    `shape` and `dtype` are those of the numbers that `tensor` gives. How they are stored may be
    another matter, of which `storage`, `stored_size` and `grid` tell: a file of scaled fp8 can hand out float32.

    Attributes:
        name: What messages call it: a file's path, as the user gave it.
        metadata: The file's own string map; empty where it has none.
    """

    name: str
    metadata: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def keys(self) -> Sequence[str]:
        """All tensor names, in the order in which reading them is cheapest."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading its data."""

    @abstractmethod
    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor, without reading its data."""

    def element(self, key: str) -> Element:
        """What the numbers of one tensor are, without torch."""
        return element_of(self.dtype(key))

    def result_dtype(self, key: str) -> torch.dtype:
        """Dtype of what is made of a tensor where none is asked for: its own, if it is stored so."""
        return self.dtype(key)

    def result_element(self, key: str) -> Element:
        """The same without torch."""
        return element_of(self.result_dtype(key))

    @abstractmethod
    def tensor(self, key: str) -> Tensor:
        """Read one tensor, on the CPU, in its `dtype`. Safe from several threads.

        Operations never write into it: it may be the source's own.
        """

    def makes(self, key: str) -> bool:
        """Whether `tensor` makes a tensor anew each time, so that whoever asked for it may write into it."""
        return False

    def number(self, key: str) -> float:
        """Read a tensor that holds one number, such as an alpha."""
        (found,) = self.numbers(key)
        return float(found)

    def numbers(self, key: str) -> list[float]:
        """Read a tensor of a few numbers, in C order; whole ones are integers."""
        return self.tensor(key).flatten().tolist()

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of a tensor's numbers. Safe from several threads.

        Args:
            key: The tensor.
            start: Flat index, in C order, of the first number.
            out: On the CPU, contiguous, any shape, of the tensor's `dtype`; it gets as many
                numbers as it holds.

        Raises:
            ValueError: The buffer is of another dtype, or the run does not lie within the tensor.
        """
        check_run(self, key, start, out)
        out.reshape(-1).copy_(self.tensor(key).reshape(-1)[start : start + out.numel()])

    def has_ranges(self, key: str) -> bool:
        """Whether `read_into` of a piece costs that piece; if not, it costs the whole tensor."""
        return False

    def own_key(self, key: str) -> str:
        """The file's own spelling of a name, without what a folder puts in front."""
        return key

    def storage(self, key: str) -> str:
        """What people call the way in which a tensor is stored: `fp16`, `fp8 e4m3`, `int8`."""
        return self.element(key).storage

    def stored_size(self, key: str) -> int:
        """Bytes that a tensor takes where it is stored, those of its scales included."""
        return math.prod(self.shape(key)) * self.element(key).bits // 8

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """Return how far apart the numbers that the storage can hold lie, around each value.

        One number, rounded twice to such numbers, lies no further from itself than that; more is what `reach` tells.

        Args:
            key: The tensor.
            values: One for each number of a run of the tensor, of any shape and real dtype: the
                tensor's own, or others in their places.
            start: Flat index, in C order, of the first number of the run.

        Returns:
            float64, of the shape of `values`: of plain floats the unit in the last place, also among the
            subnormal ones; of whole numbers 1; NaN for what is not finite.
        """
        return spacing(values, self.dtype(key))

    def reach(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """Return how far apart two programs may have stored one number, around each value.

        What is no further apart may be one number. It is the grid, and more where scales are rounded
        themselves, or chosen so that the largest numbers do not fit.

        Args:
            key: The tensor.
            values: One for each number of a run of the tensor, as for `grid`.
            start: Flat index, in C order, of the first number of the run.

        Returns:
            float64, of the shape of `values`.
        """
        return self.grid(key, values, start)


class DictSource(TensorSource):
    """A dict of tensors as a source: a state dict, a test's tiny model.

    The tensors are handed out as they are, not copied; operations never write into them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        name: str = "tensors",
    ) -> None:
        self.name = name
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self._tensors = dict(tensors)

    def keys(self) -> Sequence[str]:
        """All tensor names, in the dict's order."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._tensors[key]

    def has_ranges(self, key: str) -> bool:
        """Always: it is in memory."""
        return True


def storage_name(dtype: torch.dtype) -> str:
    """What people call numbers that are stored as they are: `bf16`, `fp8 e5m2`, `int64`."""
    return element_of(dtype).storage


def check_run(source: TensorSource, key: str, start: int, out: Tensor) -> None:
    """Refuse a buffer into which a run of a tensor cannot be read.

    Raises:
        ValueError: See `TensorSource.read_into`.
    """
    count, dtype = torch.Size(source.shape(key)).numel(), source.dtype(key)
    if out.dtype != dtype or not out.is_contiguous() or out.device.type != "cpu":
        raise ValueError(f"`{key}` is read into contiguous {dtype} on the CPU, not {out.dtype}")
    if not 0 <= start <= start + out.numel() <= count:
        raise ValueError(f"`{key}` has {count} numbers, not {start} to {start + out.numel()}")
