"""Some of an adapter's layers, as an adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

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


class MadeTensors(Mapping[str, Tensor]):
    """Tensors that are made, or read, when they are asked for.

    Args:
        made: What makes each, by its key.
    """

    def __init__(self, made: Mapping[str, Callable[[], Tensor]]) -> None:
        self._made = made

    def __getitem__(self, key: str) -> Tensor:
        return self._made[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def tensors_without(tensors: Mapping[str, Tensor], keys: Collection[str]) -> Mapping[str, Tensor]:
    """Return tensors without some of them; none is read."""
    return MadeTensors({k: partial(tensors.__getitem__, k) for k in tensors if k not in keys})


def only(adapter: Adapter, targets: Collection[str]) -> Adapter:
    """Return an adapter with these layers alone."""
    return replace(adapter, layers=SomeLayers(adapter.layers, dict.fromkeys(targets)))


def without(adapter: Adapter, targets: Collection[str]) -> Adapter:
    """Return an adapter without some of its layers."""
    if not targets:
        return adapter
    return only(adapter, [target for target in adapter.layers if target not in targets])
