"""From the tensors of a file to layers, read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ...errors import UnknownFormatError, UnsupportedLayerError
from ...source import TensorSource
from ..adapter import Adapter
from ..layers import Layer
from ..naming.joining import format_of
from ..naming.names import resolve
from ..naming.suffixes import BIAS, Module, Modules, adapter_names, modules
from ..naming.table import CONTROL, FORMATS, format_named
from ..outline import HeaderOnlySource
from ..peft.apart import experts_apart
from ..peft.config import Configured, configs_of, configured
from .headers import Told, told
from .kinds import read_alpha, read_configured
from .recognise import foreign_method, is_weights, recognise


def detect(keys: Iterable[str], name: str = "the file", *, control: bool = False) -> str:
    """Return the name of the format that most modules of an adapter file have.

    Args:
        keys: All keys of the file.
        name: What messages call the file.
        control: Whether it may be a Control-LoRA, whose layers change a ControlNet, and no UNet.

    Raises:
        UnknownFormatError: No key belongs to an adapter, or it is one of another sort (IP-Adapter).
        UnsupportedLayerError: It is of a method that is not read.
    """
    return _detected(modules(keys), name, control=control)


def commonest(grouped: Modules) -> str | None:
    """Return the name of the format that most modules have; None where there are none."""
    if grouped.is_control:
        return CONTROL.name
    found = Counter(format_of(module).name for module in grouped.modules)
    return found.most_common(1)[0][0] if found else None


def decode(
    source: TensorSource, targets: Collection[str] = (), *, control: bool = False
) -> Adapter:
    """Return an adapter file as layers by target. A layer is read each time it is asked for.

    Args:
        source: The file.
        targets: All canonical targets of the checkpoint it is for, to find its modules by. A module
            that none of them is called stays under the name it has in the file.
        control: Whether it may be a Control-LoRA; its extras are then the parameters that it holds whole.

    Raises:
        UnknownFormatError: It is no adapter file.
        UnsupportedLayerError: A layer is of a method that is not read.
    """
    source = experts_apart(source)
    grouped = modules(source.keys())
    format = _detected(grouped, source.name, control=control)
    targets_of = resolve(grouped.modules, targets)
    names = _distinct({name: targets_of.get(name, name) for name in grouped.modules})
    layers = {target: (name, grouped.modules[name]) for name, target in names.items()}
    spelled = {
        target: {"alpha": f"{name}.alpha", **_own_keys(format, name, module)}
        for target, (name, module) in layers.items()
    }
    settings = settings_of(source, grouped.modules)
    extras = _Tensors(source, grouped.extras)
    return Adapter(_Layers(source, layers, settings), extras, source.metadata, format, spelled)


def settings_of(source: TensorSource, found: Mapping[str, Module]) -> dict[str, Configured]:
    """Return what the configuration says of modules, and for a bias the scale of its layer.

    Args:
        source: The adapter file.
        found: Its modules.

    Raises:
        FormatError, UnsupportedLayerError: As `configured`.
    """
    thin = [name for name, module in found.items() if module.kind != "full"]
    _check_method(source, found)
    settings = configured(source, thin)
    for name, module in found.items():
        layer = found.get(name.removesuffix(BIAS))
        if not module.is_up_bias or layer is None or "down" not in layer.keys:
            continue
        settings[name] = settings.get(name.removesuffix(BIAS), Configured())
        if "alpha" in layer.keys:
            alpha = read_alpha(source, layer.keys["alpha"])
            settings[name] = Configured(alpha / source.shape(layer.keys["down"])[0])
    return settings


def _check_method(source: TensorSource, found: Mapping[str, Module]) -> None:
    """Refuse a plain LoRA under the configuration of AdaLoRA: some of its tensors are not there."""
    methods = [config.get("peft_type") for config in configs_of(source.metadata).values()]
    bare = next((name for name, module in found.items() if module.kind == "lora"), None)
    if bare is not None and "ADALORA" in methods:
        raise UnsupportedLayerError(
            f"{source.name}: its configuration has `peft_type` ADALORA, and layer `{bare}` has no `lora_E`; save "
            "it with PEFT again",
            target=bare,
        )


def _own_keys(format: str, name: str, module: Module) -> Mapping[str, str]:
    """The keys to write a layer under again, after its numbers have been read."""
    if module.is_up_bias and format_named(format).holds_full:
        return {"diff": name.removesuffix(BIAS) + ".diff_b"}
    return module.keys


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Two modules that mean one target both keep the file's names: neither is dropped."""
    often = Counter(names.values())
    return {module: name if often[name] == 1 else module for module, name in names.items()}


def _detected(grouped: Modules, name: str, *, control: bool) -> str:
    method = foreign_method(grouped)
    if method is not None:
        title, key = method
        raise UnsupportedLayerError(
            f"{name}: `{key}` is a layer of {title}, which is not read; merge it into its model "
            "with the program that made it, and `extract()` a LoRA from the result",
            target=key,
        )
    held = (key for module in grouped.modules.values() for key in module.keys.values())
    several = adapter_names([*held, *grouped.extras])
    if len(several) > 1:
        listed = ", ".join(f"`{one}`" for one in several)
        raise UnsupportedLayerError(
            f"{name}: holds the adapters {listed} of one model; save each in a file of its own, "
            "as PEFT's `save_pretrained` does"
        )
    other = recognise(grouped)
    if other is not None and not (control and grouped.is_control):
        raise UnknownFormatError(
            f"{name}: is {other.article} {other.title}, not a LoRA or the like; give one, and see "
            "`describe()` for what a file is"
        )
    format = commonest(grouped)
    if format is not None:
        return format
    if is_weights(grouped.extras):
        raise UnknownFormatError(
            f"{name}: is a checkpoint or a part of one, with {len(grouped.extras)} weights, not a LoRA "
            "or the like; a LoRA is the difference of two checkpoints, which `extract()` takes"
        )
    formats = ", ".join(known.name for known in FORMATS)
    first = f"; the first is `{grouped.extras[0]}`" if grouped.extras else ""
    raise UnknownFormatError(
        f"{name}: none of {len(grouped.extras)} keys belongs to a known adapter format "
        f"({formats}){first}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layers(Mapping[str, Layer]):
    source: TensorSource
    modules: Mapping[str, tuple[str, Module]]
    settings: Mapping[str, Configured]

    def __getitem__(self, target: str) -> Layer:
        name, module = self.modules[target]
        return read_configured(self.source, name, module, self.settings.get(name))

    def told(self, target: str) -> Told:
        """What the header says of one layer."""
        return told(self.source, *self.modules[target])

    def outline(self) -> Mapping[str, Layer]:
        """The same without data."""
        return replace(self, source=HeaderOnlySource(self.source, reads_alpha=False))

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
