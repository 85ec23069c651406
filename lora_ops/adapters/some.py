"""Some of an adapter's layers, as an adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from .adapter import Adapter
from .layers import Layer
from .outline import outline


@dataclass(frozen=True, slots=True, eq=False)
class SomeLayers(Mapping[str, Layer]):
    """Some layers of many, read when they are asked for.

    Attributes:
        layers: All of them.
        targets: Which, in order.
    """

    layers: Mapping[str, Layer]
    targets: Collection[str]

    def __getitem__(self, target: str) -> Layer:
        if target not in self.targets:
            raise KeyError(target)
        return self.layers[target]

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def outline(self) -> Mapping[str, Layer]:
        """The same without data."""
        return replace(self, layers=outline(self.layers))


def only(adapter: Adapter, targets: Collection[str]) -> Adapter:
    """Return an adapter with these layers alone."""
    return replace(adapter, layers=SomeLayers(adapter.layers, dict.fromkeys(targets)))


def without(adapter: Adapter, targets: Collection[str]) -> Adapter:
    """Return an adapter without some of its layers."""
    if not targets:
        return adapter
    return only(adapter, [target for target in adapter.layers if target not in targets])
