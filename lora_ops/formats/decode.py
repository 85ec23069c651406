"""From the tensors of a file to layers, read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..adapter import Adapter
from ..errors import UnknownFormatError
from ..layers import Layer
from ..source import TensorSource
from .kinds import read_kind
from .names import resolve
from .peft_config import configured_scales
from .suffixes import Module, modules
from .table import FORMATS, PEFT


def detect(keys: Iterable[str], name: str = "the file") -> str:
    """Return the name of the format that most modules of an adapter file have.

    Args:
        keys: All keys of the file.
        name: What messages call the file.

    Raises:
        UnknownFormatError: No key belongs to an adapter.
    """
    listed = list(keys)
    found = Counter(_format(module) for module in modules(listed).modules)
    if found:
        return found.most_common(1)[0][0]
    formats = ", ".join(known.name for known in FORMATS)
    first = f"; the first is `{listed[0]}`" if listed else ""
    raise UnknownFormatError(
        f"{name}: none of {len(listed)} keys belongs to a known adapter format ({formats}){first}"
    )


def decode(source: TensorSource, targets: Collection[str] = ()) -> Adapter:
    """Return an adapter file as layers by target. A layer is read each time it is asked for.

    Args:
        source: The file.
        targets: All canonical targets of the checkpoint it is for, to find its modules by. A module
            that none of them is called stays under the name it has in the file.

    Raises:
        UnknownFormatError: It is no adapter file.
    """
    keys = source.keys()
    format = detect(keys, source.name)
    grouped = modules(keys)
    targets_of = resolve(grouped.modules, targets)
    names = _distinct({name: targets_of.get(name, name) for name in grouped.modules})
    layers = {target: (name, grouped.modules[name]) for name, target in names.items()}
    spelled = {
        target: {"alpha": f"{name}.alpha", **module.keys}
        for target, (name, module) in layers.items()
    }
    scales = configured_scales(source, grouped.modules)
    extras = _Tensors(source, grouped.extras)
    return Adapter(_Layers(source, layers, scales), extras, source.metadata, format, spelled)


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Two modules that mean one target both keep the file's names: neither is dropped."""
    often = Counter(names.values())
    return {module: name if often[name] == 1 else module for module, name in names.items()}


def _format(module: str) -> str:
    return next((known.name for known in FORMATS if module.startswith(known.prefixes)), PEFT.name)


@dataclass(frozen=True, slots=True, eq=False)
class _Layers(Mapping[str, Layer]):
    source: TensorSource
    modules: Mapping[str, tuple[str, Module]]
    scales: Mapping[str, float]

    def __getitem__(self, target: str) -> Layer:
        name, module = self.modules[target]
        return read_kind(self.source, name, module, self.scales.get(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


@dataclass(frozen=True, slots=True, eq=False)
class _Tensors(Mapping[str, Tensor]):
    source: TensorSource
    names: tuple[str, ...]

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.names:
            raise KeyError(key)
        return self.source.tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
