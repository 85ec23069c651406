"""How a weight is written with scales, and what is said of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from torch import Tensor

from ...elements import Element, element_in
from ...files import FileSource, QuantisedSource
from ...files.quantised.encoding import Encoder
from ...files.quantised.reencoding import ROLES, encoder_like, parts_like
from ...files.quantised.scheme import Scheme
from ...files.quantised.weight import QuantisedWeight
from ...models.architectures import Parameter
from ...models.pairing import parameter_kind
from ...report import LayerReport, Skip, counted
from ...source import TensorSource
from ...text import human_error


@dataclass(frozen=True, slots=True)
class StoredLayer(LayerReport):
    """A weight written with scales: `norm` is its own, `residual` that of what storing it changed."""


#: Key, numbers and shape of a tensor that is written.
Row: TypeAlias = tuple[str, Element, tuple[int, ...]]
#: Where the bytes of a tensor lie that is only copied, and its key there; or the tensor.
Place: TypeAlias = tuple[FileSource, str] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Storing(ABC):
    """How one weight is written: as codes, and tensors beside them.

    Attributes:
        parameter: Which weight it is.
    """

    parameter: Parameter

    @property
    @abstractmethod
    def storage(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def element(self) -> Element:
        """What the codes are."""

    @property
    def by_chance(self) -> bool:
        """Whether numbers can be rounded up or down by chance."""
        return self.encoder().chances

    @property
    def looks(self) -> bool:
        """Whether it is computed twice, as all of it must be seen before any is encoded."""
        return self.encoder().looks

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Key, numbers and shape of everything that is written, the codes first."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """What encodes it."""

    @abstractmethod
    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """The tensors beside the codes, by key, once all of the weight is encoded."""

    @abstractmethod
    def held(self, source: TensorSource, own: str) -> Mapping[str, Place] | None:
        """Where everything that is written lies already.

        Args:
            source: What has the weight.
            own: The weight's key there.

        Returns:
            By the key that it is written under; None where the weight is stored in another way.
        """

    def of_copy(self, source: TensorSource, own: str) -> tuple[StoredLayer, ...]:
        """What is said of it where it is copied."""
        encoder = self.encoder()
        encoder.keep(source.tensor(own))
        return (self.report(encoder),)

    def report(self, encoder: Encoder) -> StoredLayer:
        """What is said of it, once it is encoded."""
        one, (norm, residual) = self.parameter, encoder.norms
        kind = parameter_kind(one)
        return StoredLayer(one.target, one.component, kind, one.shape, 0, norm, residual)


@dataclass(frozen=True, slots=True, eq=False)
class InScheme(Storing):
    """In a way that was asked for.

    Attributes:
        scheme: Which.
    """

    scheme: Scheme

    @property
    def storage(self) -> str:
        """See `Storing`."""
        return self.scheme.storage

    @property
    def element(self) -> Element:
        """See `Storing`."""
        return self.scheme.element

    def rows(self) -> Iterator[Row]:
        """See `Storing`."""
        yield self.parameter.key, self.element, self.scheme.codes(self.parameter.shape)
        for key, part in self.beside(self.encoder()):
            yield key, element_in(part), tuple(part.shape)

    def encoder(self) -> Encoder:
        """See `Storing`."""
        return self.scheme.encoder(self.parameter.key, self.parameter.shape)

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """See `Storing`."""
        return self.scheme.beside(encoder)

    def held(self, source: TensorSource, own: str) -> Mapping[str, Place] | None:
        """See `Storing`."""
        if not isinstance(source, QuantisedSource) or own not in source.weights:
            return None
        one = source.weights[own]
        encoder, file = self.encoder(), source.original
        layer = self.parameter.key.removesuffix(".weight")
        keys = {f"{layer}.{name}": one.parts.get(ROLES[name], "") for name in encoder.parts()}
        keys[self.parameter.key] = one.parts["codes"]
        alike = self.scheme.takes(one) and len(one.parts) == len(keys) and all(keys.values())
        found: dict[str, Place] = {
            key: part for key, part in self.beside(encoder) if key not in keys
        }
        for key, element, shape in self.rows():
            if not alike or key in found:
                continue
            here = keys[key]
            alike = (file.element(here), prod(file.shape(here))) == (element, prod(shape))
            found[key] = file, here
        return found if alike else None


@dataclass(frozen=True, slots=True, eq=False)
class AsStored(Storing):
    """In the way in which the file has it that the result is made like, beside the same tensors.

    Attributes:
        weight: As the file has it.
        file: Which, as it is stored.
    """

    weight: QuantisedWeight
    file: FileSource

    @property
    def storage(self) -> str:
        """See `Storing`."""
        return self.weight.storage

    @property
    def element(self) -> Element:
        """See `Storing`."""
        return self.file.element(self.weight.parts["codes"])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of everything that is written, the codes' first."""
        return tuple(dict.fromkeys((*self.weight.parts.values(), *self.weight.beside)))

    @property
    def is_writable(self) -> bool:
        """Whether other numbers can be written so."""
        return encoder_like(self.weight, self.file) is not None

    def rows(self) -> Iterator[Row]:
        """See `Storing`."""
        for key in self.keys:
            yield key, self.file.element(key), self.file.shape(key)

    def encoder(self) -> Encoder:
        """See `Storing`.

        Raises:
            ValueError: It is only read.
        """
        encoder = encoder_like(self.weight, self.file)
        if encoder is None:
            raise ValueError(f"`{self.weight.key}` is stored in a way that is only read")
        return encoder

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """See `Storing`: new scales, and all else as it was."""
        scales = dict(parts_like(self.weight, self.file, encoder))
        for key in self.keys[1:]:
            yield key, scales[key] if key in scales else self.file.tensor(key)

    def held(self, source: TensorSource, own: str) -> Mapping[str, Place] | None:
        """See `Storing`: of another file, one that is stored alike."""
        if not isinstance(source, QuantisedSource) or own not in source.weights:
            return None
        one = source.weights[own]
        found: dict[str, Place] = {key: (self.file, key) for key in self.keys}
        if source.original is self.file:
            return found
        mine = self.weight
        if replace(one, key=mine.key, parts=mine.parts, beside=mine.beside) != mine:
            return None
        if one.parts.keys() != mine.parts.keys():
            return None
        for role, key in mine.parts.items():
            here, file = one.parts[role], source.original
            if (file.element(here), file.shape(here)) != (
                self.file.element(key),
                self.file.shape(key),
            ):
                return None
            found[key] = file, here
        return found

    def of_copy(self, source: TensorSource, own: str) -> tuple[StoredLayer, ...]:
        """Nothing: it is as it was."""
        return ()


def stored_layers(reports: Iterable[LayerReport | Skip]) -> tuple[StoredLayer, ...]:
    """Return the weights that were written with scales, of all that is said."""
    return tuple(one for one in reports if isinstance(one, StoredLayer))


def storing_notes(stored: Sequence[StoredLayer]) -> Iterator[str]:
    """Say what storing weights with scales has changed.

    Args:
        stored: All of them.
    """
    if stored:
        worst = max(stored, key=lambda one: one.error)
        least = min(one.error for one in stored)
        yield (
            f"storing {counted(len(stored), 'weight')} with scales changed them by {human_error(least)} to "
            f"{human_error(worst.error)}, `{worst.target}` the most"
        )
