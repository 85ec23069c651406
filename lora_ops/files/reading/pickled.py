"""Tensors out of `.ckpt`, `.pt`, `.pth` and `.bin` files, without running what is in them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ...errors import ArgumentError, FormatError, QuantisedError
from ..base import FileSource, quote
from ..header import check_name
from .archives import Extent, read_contents
from .ranges import RangeReader
from .stored import Stored, Strange

# Where trainers put the state dict inside a checkpoint (Lightning, many scripts, DeepSpeed).
_NESTS = ("state_dict", "model", "module", "params_ema", "params")
# Levels of dicts and lists that are looked into.
_DEPTH = 4
# Names that may share one tensor, as tied embeddings do; more make much out of a small file.
_SHARED = 8

_AnyTensor = Stored | Strange


class PickledFile(FileSource):
    """A PyTorch checkpoint as a `TensorSource`: its pickle now, each tensor when asked for.

    `state_dict`, `model` and the like are unwrapped; what is not a tensor (optimiser, step
    counters) is left out. Where no dict of tensors is, those in dicts and lists within have the
    names and places that lead to them: `string_to_param.*`, `320.0.bias`.

    Holds one open file and the descriptions. Threads may read at the same time.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        UnsafePickleError: reading it would run code that it names.
        QuantisedError: a tensor holds integers with scales.
        FormatError: it is damaged, or there are no tensors in it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.name = str(path)
        self.paths = (self._path,)
        self.metadata: Mapping[str, str] = {}
        self._file = RangeReader(self._path)
        try:
            self._read_contents()
        except FormatError as error:
            self._file.close()
            error.path = self._path
            raise
        except BaseException:
            self._file.close()
            raise

    def keys(self) -> list[str]:
        """All tensor names, in the order of their data."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as stored."""
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """Read one tensor into fresh CPU memory, contiguous, in its stored dtype.

        Raises:
            FormatError: the file has become shorter, the disk fails, or the data are not those
                that were written.
        """
        stored = self._tensors[key]
        run = torch.empty(stored.span, dtype=stored.dtype)
        if stored.span:
            memory = run.view(torch.uint8).numpy().data
            self._file.into(memory, self._begin(stored), quote(key))
            place = self._places[stored.storage.root]
            if place.crc and len(memory) == place.size and zlib.crc32(memory) != place.crc:
                raise FormatError(
                    f"the data of {quote(key)} are damaged: their checksum is another; "
                    "download or copy the file again",
                    path=self._path,
                )
        if self._swapped and stored.span:
            run.untyped_storage().byteswap(stored.dtype)
        out = run.as_strided(stored.shape, stored.strides).contiguous()
        if stored.conjugated:
            out = out.conj_physical()
        return -out if stored.negated else out

    def close(self) -> None:
        """Close the file; names and shapes stay readable."""
        self._file.close()

    def _read_contents(self) -> None:
        contents = read_contents(self._file)
        self._places: Mapping[str, Extent] = contents.places
        self._swapped = contents.swapped
        found = _state_dict(contents.value, set()) or dict(_inside(contents.value, set()))
        if not found:
            raise FormatError("there are no tensors in it")
        plain = {key: self._plain(key, tensor) for key, tensor in found.items()}
        total = sum(stored.size for stored in plain.values())
        if total > _SHARED * self._file.size:
            raise FormatError(
                f"its {len(plain)} tensors claim {total} bytes, {total // self._file.size} times "
                "what the file has"
            )
        order = sorted(plain, key=lambda key: self._begin(plain[key]))
        self._tensors = {key: plain[key] for key in order}

    def _plain(self, key: str, tensor: _AnyTensor) -> Stored:
        """Refuse what cannot be read or written; a view may claim far more than is stored."""
        try:
            check_name(key)
        except ArgumentError as error:
            raise FormatError(str(error)) from None
        if isinstance(tensor, Strange):
            if tensor.quantised:
                raise QuantisedError(
                    f"{quote(key)} is {tensor.what}; "
                    "give the unquantised (fp16/bf16/fp32) checkpoint"
                )
            raise FormatError(
                f"{quote(key)} is no plain dense tensor: it is {tensor.what}; "
                "leave it out, or make it one, in the program that made the file"
            )
        if tensor.size > self._file.size:
            raise FormatError(f"{quote(key)} claims {tensor.size} bytes, more than the file has")
        return tensor

    def _begin(self, stored: Stored) -> int:
        """Where its first element lies in the file."""
        place = self._places.get(stored.storage.root)
        if place is None:  # of an empty storage
            return 0
        return place.begin + stored.storage.begin + stored.offset * stored.dtype.itemsize


def _inside(
    value: object, seen: set[int], way: tuple[str, ...] = ()
) -> Iterator[tuple[str, _AnyTensor]]:
    """All tensors in dicts and lists, by the keys and numbers on the way to them.

    A container that is in several places is looked into once.
    """
    if isinstance(value, _AnyTensor):
        yield ".".join(way) or "tensor", value
        return
    if len(way) == _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    members: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        members = cast("dict[object, object]", value).items()
    elif isinstance(value, list | tuple):
        members = enumerate(cast("Sequence[object]", value))
    for key, member in members:
        yield from _inside(member, seen, (*way, str(key)))


def _state_dict(value: object, seen: set[int], depth: int = 3) -> dict[str, _AnyTensor]:
    """The tensors of a checkpoint by name, from the innermost known nest.

    A pickle can hold a dict that contains itself: hence the memory.
    """
    if not isinstance(value, dict) or not depth or id(value) in seen:
        return {}
    seen.add(id(value))
    fields = cast("dict[object, object]", value)
    for nest in _NESTS:
        if inner := _state_dict(fields.get(nest), seen, depth - 1):
            return inner
    return {k: v for k, v in fields.items() if isinstance(k, str) and isinstance(v, _AnyTensor)}
