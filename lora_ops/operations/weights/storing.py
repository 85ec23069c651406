"""How a weight is written with scales, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...files import QuantisedSource
from ...files.quantised.encoding import Encoder
from ...files.quantised.storages import Scheme
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
        roles = {"weight_scale": "scales", "weight_scale_2": "whole"}
        keys = {name: one.parts.get(roles[name], "") for name in parts}
        if (
            one.storage != self.scheme.storage
            or len(one.parts) != 1 + len(keys)
            or "" in keys.values()
        ):
            return None
        keys["weight"] = one.parts["codes"]
        wanted = {name: (part.dtype, part.numel()) for name, part in parts.items()}
        wanted["weight"] = self.scheme.dtype, math.prod(self.scheme.codes(self.parameter.shape))
        found = {name: (file.dtype(key), math.prod(file.shape(key))) for name, key in keys.items()}
        return keys if found == wanted else None

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
