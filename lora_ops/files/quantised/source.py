"""A file of quantised weights as one of plain ones: each is decoded when it is asked for."""

from __future__ import annotations

import io
from collections.abc import Collection, Container, Iterable, Mapping

import torch
from torch import Tensor

from ...elements import ELEMENTS, Element
from ...errors import QuantisedError
from ...source import TensorSource
from ..base import FileSource
from ..reading.gguf_file import GgufFile
from ..reading.routed import RoutedSource
from .comfy import METADATA, configurations
from .nunchaku.layers import METADATA as OF_NUNCHAKU
from .nunchaku.weight import Nunchaku
from .schemes import is_suspect, markers, quantised_weights
from .torchao import described, descriptions
from .weight import Plain, QuantisedWeight


class QuantisedSource(RoutedSource):
    """A `TensorSource` over a file, whose quantised weights are float32; what belongs to them is hidden.

    Args:
        original: The file.
        weights: Those beside which scales are stored, by key.

    Attributes:
        original: The file as it is stored.
        weights: What is decoded, by key.
        plain: What is stored as it is although tensors stand beside it, by key.
    """

    def __init__(
        self, original: FileSource, weights: Mapping[str, QuantisedWeight | Plain]
    ) -> None:
        self.original = original
        self.weights = {k: one for k, one in weights.items() if isinstance(one, QuantisedWeight)}
        self.plain = {k: one for k, one in weights.items() if isinstance(one, Plain)}
        self.name, self.paths, self.stamps = original.name, original.paths, original.stamps
        self.spelling = original.spelling
        false = {METADATA, *described(original.metadata)}
        if any(isinstance(one, Nunchaku) for one in self.weights.values()):
            false.update(OF_NUNCHAKU)
        self.metadata = {k: v for k, v in original.metadata.items() if k not in false}
        hidden = set(markers(original))
        for one in weights.values():
            hidden.update(one.beside)
        for one in self.weights.values():
            hidden.update(one.parts.values())
        named: dict[str, list[str]] = {}  # several where a program fuses layers
        for key, one in weights.items():
            named.setdefault(one.stored or key, []).append(key)
        self._names = {
            name: key
            for key in original.keys()  # noqa: SIM118
            if key in named or key not in hidden
            for name in named.get(key, [key])
        }

    def keys(self) -> list[str]:
        """The names of weights, in the order of the file."""
        return list(self._names)

    def parts(self) -> list[list[str]]:
        """The names of weights, file by file."""
        known: dict[str, list[str]] = {}
        for key, own in self._names.items():
            known.setdefault(own, []).append(key)
        return [[k for own in part for k in known.get(own, ())] for part in self.original.parts()]

    def route(self, key: str) -> tuple[FileSource, str]:
        """The file and its own name of a tensor."""
        return self.original, self._names[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the weight that a tensor stands for."""
        one = self.weights.get(key)
        return super().shape(key) if one is None else one.shape

    def dtype(self, key: str) -> torch.dtype:
        """Float32 for what is decoded."""
        return torch.float32 if key in self.weights else super().dtype(key)

    def element(self, key: str) -> Element:
        """Those of float32 for what is decoded."""
        return ELEMENTS["F32"] if key in self.weights else super().element(key)

    def result_dtype(self, key: str) -> torch.dtype:
        """Bfloat16 for what is decoded: what such models are made from, and far finer than their storage."""
        return torch.bfloat16 if key in self.weights else super().result_dtype(key)

    def result_element(self, key: str) -> Element:
        """Likewise."""
        return ELEMENTS["BF16"] if key in self.weights else super().result_element(key)

    def storage(self, key: str) -> str:
        """What people call the way in which a tensor is stored."""
        one = self.weights.get(key)
        return super().storage(key) if one is None else one.storage

    def stored_size(self, key: str) -> int:
        """Bytes in the file, those of the scales included."""
        one = self.weights.get(key)
        if one is None:
            return super().stored_size(key)
        return one.stored_size(self.original.stored_size)

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """How far apart the numbers that the storage can hold lie."""
        one = self.weights.get(key)
        if one is None:
            return super().grid(key, values, start)
        return one.steps(self._scales(one), values, start)

    def reach(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        """How far apart two programs may have stored one number."""
        one = self.weights.get(key)
        if one is None:
            return super().reach(key, values, start)
        return one.reach(self._scales(one), values, start)

    def _scales(self, one: QuantisedWeight) -> dict[str, Tensor]:
        return {role: self.original.tensor(one.parts[role]) for role in one.roles_of_steps}

    def numbers(self, key: str) -> list[float]:
        """Read a few numbers, decoded where they are stored in another way."""
        return FileSource.numbers(self, key) if key in self.weights else super().numbers(key)

    def tensor(self, key: str) -> Tensor:
        """Read one tensor, and decode it."""
        one = self.weights.get(key)
        if one is None:
            return super().tensor(key)
        return one.decode({role: self.original.tensor(part) for role, part in one.parts.items()})

    def makes(self, key: str) -> bool:
        """Of what is decoded."""
        return key in self.weights or super().makes(key)

    def read_into(self, key: str, start: int, out: Tensor) -> None:
        """Fill a buffer with a run of a tensor's numbers; decodes all of it."""
        if key in self.weights:
            TensorSource.read_into(self, key, start, out)
        else:
            super().read_into(key, start, out)

    def has_ranges(self, key: str) -> bool:
        """Not of what is decoded."""
        return key not in self.weights and super().has_ranges(key)

    def copy_into(self, key: str, file: io.FileIO, offset: int) -> None:
        """Write the numbers of a tensor into an open file, decoded."""
        if key in self.weights:
            FileSource.copy_into(self, key, file, offset)
        else:
            super().copy_into(key, file, offset)

    @property
    def stays(self) -> bool:
        """Whether weights can be written as they are stored here: not those of a GGUF, which have types."""
        stay = all(one.stays for one in self.weights.values())
        return stay and not isinstance(self.original, GgufFile)

    def loose(self, weights: Collection[str], plain: Container[str]) -> list[str]:
        """The original's keys that are of no decoded weight, for a file that has some of it as it is.

        Args:
            weights: Keys of decoded ones that it has so: with those goes the marker of their part of the
                file.
            plain: Keys of others: with those go what stands beside them.
        """
        parts = {marker: marker.rpartition(".")[0] for marker in markers(self.original)}
        marks = [one for one, part in parts.items() if any(k.startswith(part) for k in weights)]
        return [
            *marks,
            *(name for k, one in self.plain.items() if k in plain for name in one.beside),
        ]

    def told(self, keys: Iterable[str]) -> dict[str, str]:
        """What the file's metadata says of how weights are stored, for a file that has them so.

        Args:
            keys: Of the weights.
        """
        layers = [self.weights[key].layer for key in keys]
        told = self.original.metadata
        return configurations(told, layers) | descriptions(told, layers)

    def check(self) -> None:
        """Raise a `QuantisedError` if what decodes the weights is not installed."""
        for one in self.weights.values():
            one.check()

    def close(self) -> None:
        """Close the file."""
        self.original.close()


def decoded(source: FileSource) -> FileSource:
    """Return a file with its quantised weights as float32; the file itself where there are none.

    One that cannot be decoded is returned as it is stored: `refuse_quantised` says why.
    """
    if not is_suspect(source):
        return source
    try:
        weights = quantised_weights(source)
    except QuantisedError:
        return source
    return QuantisedSource(source, weights) if weights or markers(source) else source
