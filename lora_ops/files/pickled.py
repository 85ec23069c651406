"""Tensors out of `.ckpt`, `.pt`, `.pth` and `.bin` files, without running what is in them."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..errors import FormatError, UnsafePickleError
from .base import FileSource, open_binary, quote

# Where trainers put the state dict inside a checkpoint (Lightning, many scripts, DeepSpeed).
_NESTS = ("state_dict", "model", "module", "params_ema", "params")
# Levels of dicts and lists that are looked into.
_DEPTH = 4

# What torch's weights-only reader says when a pickle wants more than tensors.
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_REFUSALS = ("Unsupported operand", "Can only ", "Trying to call")

# What damaged pickles and archives raise; the documentation of `pickle` promises no shorter list.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)

_WAY_OUT = "if you trust the file, convert it to safetensors with the program that made it"


class PickledFile(FileSource):
    """A PyTorch checkpoint as a `TensorSource`, read with `weights_only=True`.

    Zip archives (PyTorch 1.6 and later) are memory-mapped: what is not asked for is not read.
    Older files have to be loaded whole. `state_dict`, `model` and the like are unwrapped; what is
    not a tensor (optimiser, step counters) is left out. Where no dict of tensors is, those in dicts
    and lists within have the names and places that lead to them: `string_to_param.*`, `320.0.bias`.

    Raises:
        ArgumentError: there is no such file, or it may not be read.
        UnsafePickleError: reading it would run code that it names.
        FormatError: it is damaged, or there are no tensors in it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.name = str(path)
        self.paths = (self._path,)
        self.metadata: Mapping[str, str] = {}
        with open_binary(self._path) as file:
            zipped = file.read(2) == b"PK"
        if zipped:
            self._check_stored()
        value = self._load(zipped)
        found = _state_dict(value) or dict(_inside(value, set()))
        if not found:
            raise FormatError("there are no tensors in it", path=self._path)
        for key, tensor in found.items():
            self._check(key, tensor)
        # In one mapping, addresses are file order.
        order = sorted(found, key=lambda key: found[key].data_ptr()) if zipped else list(found)
        self._tensors = {key: found[key].detach() for key in order}

    def keys(self) -> list[str]:
        """All tensor names, in the order of their data where the file is mapped."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor as stored."""
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """Copy one tensor out of the file, contiguous, in its stored dtype."""
        return self._tensors[key].clone(memory_format=torch.contiguous_format)

    def close(self) -> None:
        """Let go of the mapping; afterwards there are no keys."""
        self._tensors = {}

    def _check_stored(self) -> None:
        """A mapping shows compressed entries as they lie there: as noise."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                packed = any(entry.compress_type for entry in archive.infolist())
        except _DAMAGE as error:
            raise self._damaged(error) from error
        if packed:
            raise FormatError(
                "a zip archive with compressed entries, which PyTorch never writes; unpack it",
                path=self._path,
            )

    def _load(self, zipped: bool) -> object:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(self._path, map_location="cpu", weights_only=True, mmap=zipped)
        except _DAMAGE as error:
            text = str(error)
            name = _GLOBAL.search(text)
            if name is None and not any(refusal in text for refusal in _REFUSALS):
                raise self._damaged(error) from error
            wants = f"run {quote(name[1])}" if name else "do more than name tensors"
            raise UnsafePickleError(
                f"its pickle wants to {wants}, which was not done; {_WAY_OUT}", path=self._path
            ) from error

    def _damaged(self, error: BaseException) -> FormatError:
        lines = str(error).splitlines()
        why = lines[0] if lines else type(error).__name__
        return FormatError(
            f"not a readable PyTorch file ({why[:200]}); download or copy it again", path=self._path
        )

    def _check(self, key: str, tensor: Tensor) -> None:
        """Refuse what cannot be copied out; a view may claim far more elements than are stored."""
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise FormatError(
                f"{quote(key)} is no plain dense tensor ({tensor.layout}); {_WAY_OUT}",
                path=self._path,
            )
        size = tensor.numel() * tensor.element_size()
        if size > self._path.stat().st_size:
            raise FormatError(
                f"{quote(key)} claims {size} bytes, more than the file has", path=self._path
            )


def _inside(
    value: object, seen: set[int], way: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dicts and lists, by the keys and numbers on the way to them.

    A container that is in several places is looked into once.
    """
    if isinstance(value, Tensor):
        yield ".".join(way) or "tensor", value
        return
    if len(way) == _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    members: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        members = cast("Mapping[object, object]", value).items()
    elif isinstance(value, list | tuple):
        members = enumerate(cast("Sequence[object]", value))
    for key, member in members:
        if isinstance(key, str | int):
            yield from _inside(member, seen, (*way, str(key)))


def _state_dict(value: object, depth: int = 3) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, from the innermost known nest.

    A pickle can hold a dict that contains itself: hence the depth.
    """
    if not isinstance(value, Mapping) or not depth:
        return {}
    fields = cast("Mapping[object, object]", value)
    for nest in _NESTS:
        if inner := _state_dict(fields.get(nest), depth - 1):
            return inner
    return {k: v for k, v in fields.items() if isinstance(k, str) and isinstance(v, Tensor)}
