"""How a weight is written with scales, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...files import QuantisedSource
from ...files.quantised.encoding import Encoder, Scheme
from ...models.architectures import Parameter
from ...models.pairing import parameter_kind
from ...report import LayerReport, Skip, counted
from ...source import TensorSource
from ...text import human_error


@dataclass(frozen=True, slots=True)
class StoredLayer(LayerReport):
    """A weight written with scales: `norm` is its own, `residual` that of what storing it changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Storing:
    """How one weight is written.

    Attributes:
        scheme: In which way.
        parameter: Which weight it is.
    """

    scheme: Scheme
    parameter: Parameter

    def encoder(self) -> Encoder:
        """What encodes it."""
        return self.scheme.encoder(self.parameter.key, self.parameter.shape)

    def held(self, source: TensorSource, own: str) -> Mapping[str, str] | None:
        """Where a source has the weight stored in this way: keys in its `original`, by the part's name.

        Args:
            source: Which.
            own: The weight's key there.

        Returns:
            The codes under `weight`; None where it is stored in another way.
        """
        one = source.weights.get(own) if isinstance(source, QuantisedSource) else None
        if one is None or not isinstance(source, QuantisedSource):
            return None
        parts, file = self.encoder().parts(), source.original
        has_all = one.storage == self.scheme.storage and one.parts.keys() == {"codes", "scales"}
        if not has_all or file.dtype(one.parts["codes"]) != self.scheme.dtype:
            return None
        ((name, part),) = parts.items()
        key = one.parts["scales"]
        is_same = file.dtype(key) == part.dtype and math.prod(file.shape(key)) == part.numel()
        return {"weight": one.parts["codes"], name: key} if is_same else None

    def report(self, encoder: Encoder) -> StoredLayer:
        """What is said of it, once it is encoded."""
        one, (norm, residual) = self.parameter, encoder.norms
        kind = parameter_kind(one)
        return StoredLayer(one.target, one.component, kind, one.shape, 0, norm, residual)


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
