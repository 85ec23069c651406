"""A checkpoint under diffusers' names as one under those of the model's own program, for a GGUF file."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from ...elements import ELEMENTS, Element
from ...files import FileSource
from ...files.reading.routed import RoutedSource
from ...models.architectures import UNET, Parameter, parameters
from ...models.differences import read_parameter
from ...models.grids import parameter_grid, parameter_reach
from .gguf_file_plan import gguf_file

if TYPE_CHECKING:
    import torch

_PREFIX = "model."
# The published files of Flux and its kin call the weight of these norms a scale, and older programs no other.
_SCALES = re.compile(r"(\.(?:query|key)_norm|\.distilled_guidance_layer\.norms\.\d+)\.weight$")


class NativeFile(RoutedSource):
    """A `TensorSource` over a checkpoint of diffusers: the diffusion model's names are its own program's.

    What diffusers splits is joined, what it fuses is split, and rows are in the order of the model.

    Args:
        original: The checkpoint.
        inside: The parameters of its diffusion model.
    """

    def __init__(self, original: FileSource, inside: Mapping[str, Parameter]) -> None:
        self.original = original
        self.name, self.paths, self.stamps = original.name, original.paths, original.stamps
        self.spelling, self.metadata = original.spelling, original.metadata
        self._own = {_published(one): one for one in inside.values()}
        used = {key for one in inside.values() for key in one.keys}
        self._others = [key for key in original.keys() if key not in used]  # noqa: SIM118

    def keys(self) -> list[str]:
        """Native names, and what is of no diffusion model, as it is called."""
        return [*self._own, *self._others]

    def route(self, key: str) -> tuple[FileSource, str]:
        """The checkpoint, and its key: that of the first piece."""
        return self.original, self._own[key].key if key in self._own else key

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape that the model has it in."""
        return self._own[key].shape if key in self._own else super().shape(key)

    def element(self, key: str) -> Element:
        """What the numbers of its pieces are, or what holds those of all."""
        return _wide(self.original.element(one) for one in self._keys(key))

    def dtype(self, key: str) -> torch.dtype:
        """The same as torch has it."""
        return self.element(key).dtype

    def result_element(self, key: str) -> Element:
        """What those are of what is made of it."""
        return _wide(self.original.result_element(one) for one in self._keys(key))

    def result_dtype(self, key: str) -> torch.dtype:
        """The same as torch has it."""
        return self.result_element(key).dtype

    def dtype_name(self, key: str) -> str:
        """Dtype of one tensor as a header names it."""
        return super().dtype_name(key) if key not in self._own else FileSource.dtype_name(self, key)

    def storage(self, key: str) -> str:
        """What the first piece is stored as, where that is no dtype."""
        found, first = super().storage(key), self.route(key)[1]
        is_plain = found == self.original.element(first).storage
        return self.element(key).storage if is_plain else found

    def stored_size(self, key: str) -> int:
        """Bytes of all pieces."""
        if key in self._own and self._own[key].rows is not None:
            return prod(self.shape(key)) * self.element(key).bits // 8
        return sum(self.original.stored_size(one) for one in self._keys(key))

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """See `TensorSource`."""
        if key not in self._own:
            return super().grid(key, values, start)
        return parameter_grid(self.original, self._own[key])(values, start)

    def reach(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """See `TensorSource`."""
        if key not in self._own:
            return super().reach(key, values, start)
        return parameter_reach(self.original, self._own[key])(values, start)

    def numbers(self, key: str) -> list[float]:
        """Read a few numbers as the model has them."""
        return FileSource.numbers(self, key) if key in self._own else super().numbers(key)

    def tensor(self, key: str) -> Tensor:
        """Read it as the model has it."""
        if key not in self._own:
            return super().tensor(key)
        return read_parameter(self.original, self._own[key])

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of it; of what is joined all is read."""
        if self.has_ranges(key):
            super().read_into(key, start, out)
        else:
            FileSource.read_into(self, key, start, out)

    def has_ranges(self, key: str) -> bool:
        """Whether a piece costs no more than that piece."""
        return self._is_as_stored(key) and super().has_ranges(key)

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the bytes of it into an open file."""
        if self._is_as_stored(key):
            super().copy_into(key, file, offset)
        else:
            FileSource.copy_into(self, key, file, offset)

    def close(self) -> None:
        """Close the checkpoint."""
        self.original.close()

    def _is_as_stored(self, key: str) -> bool:
        one = self._own.get(key)
        return one is None or not (one.pieces or one.rows is not None or one.transposed)

    def _keys(self, key: str) -> tuple[str, ...]:
        return self._own[key].keys if key in self._own else (key,)


def _published(one: Parameter) -> str:
    name = _PREFIX + one.name
    return _SCALES.sub(r"\1.scale", name) if len(one.shape) == 1 else name


def _wide(elements: Iterator[Element]) -> Element:
    """One of several, as `read_parameter` joins what is stored in them."""
    found = set(elements)
    if len(found) == 1:
        return found.pop()
    return ELEMENTS["F64"] if ELEMENTS["F64"] in found else ELEMENTS["F32"]


def foreign(known: Mapping[str, Parameter]) -> list[Parameter]:
    """The parameters of a diffusion model that lie under other names than its own, or in another form.

    Vectors may have names that the program itself takes for others.

    Args:
        known: Of a checkpoint, by canonical names.
    """
    uses = Counter(key for one in known.values() for key in one.keys)
    inside = (one for one in known.values() if one.component == "unet")
    return [one for one in inside if not _is_own(one) or uses[one.key] > 1]


def _is_own(one: Parameter) -> bool:
    name = one.name.removeprefix(UNET)
    is_named = name != one.name and one.key.endswith(name)
    return not (one.pieces or one.transposed) and (is_named or len(one.shape) < 2)


def natively(checkpoint: FileSource) -> FileSource:
    """Return a checkpoint under the names of the model's own program, where tables tell all of them.

    Args:
        checkpoint: Under any names; one that has its own, or some that no table knows, is returned, and so
            is a GGUF file.
    """
    if gguf_file(checkpoint) is not None:
        return checkpoint
    known = parameters(checkpoint)
    inside = {name: one for name, one in known.items() if one.component == "unet"}
    if not foreign(known) or not all(name.startswith(UNET) for name in inside):
        return checkpoint
    return NativeFile(checkpoint, inside)
