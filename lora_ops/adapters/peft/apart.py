"""Adapters whose stacks of experts are read apart: the factors of each expert under a name of its own."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ...errors import LayerShapeError, LoraOpsError, UnsupportedLayerError
from ...models.architectures.modules import IN_ORDER, STACK
from ...models.modules import stack_order
from ...source import TensorSource
from .config import ROOT, configs_of, rank_of
from .parameters import parameter_of, target_parameters
from .stacked import one_of

_FACTOR = re.compile(r"(?P<module>.+?)(?P<within>(?:\.base_layer)*)\.lora_(?P<side>[AB])\.weight$")
_SIDES = {"A": "down", "B": "up"}
# Stacks that are kept when they have been read: the two of a layer.
_HELD = 2


@dataclass(frozen=True, slots=True)
class _Slice:
    """One expert's part of a factor.

    Attributes:
        key: Of the factor of all of them, in the file.
        role: up or down.
        number: Of the expert.
        experts: How many there are.
        shape: Of the part.
    """

    key: str
    role: str
    number: int
    experts: int
    shape: tuple[int, int]


def experts_apart(source: TensorSource) -> TensorSource:
    """Return an adapter of PEFT with each expert's factors as those of a layer; itself where it has no stacks.

    Args:
        source: An adapter file, with its configuration.

    Returns:
        A source in which a stack ``….experts`` of `lora_A` (experts * r, in) and `lora_B` (out, r * experts) is
        ``….experts.gate_up_proj.3`` and its like, of (r, in) and (out, r). A parameter that is a module's
        weight has the names of a module already.

    Raises:
        UnsupportedLayerError: It adapts parameters that are neither, or it cannot be told which they are.
        LayerShapeError: A stack has not the rank that the configuration gives it.
    """
    config = configs_of(source.metadata).get("", {})
    entries = target_parameters(config)
    keys = source.keys()
    if not entries:
        return source
    wrapped: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for key in keys:
        found = _FACTOR.match(key)
        if found is not None:
            depth = found["within"].count(".")
            wrapped[found["module"]][depth][found["side"]] = key
    _check(source.name, [module.removeprefix(ROOT) for module in wrapped], entries)
    slices: dict[str, dict[str, _Slice]] = {}
    for module, wrappers in wrapped.items():
        names = _parameters(module.removeprefix(ROOT), entries)
        if not names or (names == ["weight"] and set(wrappers) == {0}):
            continue
        for depth, name in _named(module, names, wrappers, source.name).items():
            rank = int(rank_of(config, f"{module.removeprefix(ROOT)}.{name}"))
            for side, number, part in _parts(source, f"{module}.{name}", wrappers[depth], rank):
                key = f"{module}.{name}.{number}.lora_{side}.weight"
                slices.setdefault(part.key, {})[key] = part
    return _Apart(source, slices) if slices else source


def apart_or_whole(source: TensorSource) -> TensorSource:
    """Return the same where it can be done, else the source: to say what a file is, whatever it is."""
    try:
        return experts_apart(source)
    except LoraOpsError:
        return source


def _check(source: str, modules: Sequence[str], entries: Sequence[str]) -> None:
    """Refuse a configuration that names parameters of which the file has no factors."""
    known = {f".{parameter_of(module)}" for module in modules}  # those that are read apart already
    for entry in entries:
        name = entry.rpartition(".")[2]
        found = known | {f".{module}.{name}" for module in modules}
        if not any(one.endswith(f".{entry}") for one in found):
            raise _refusal(source, f"`{entry}`, and the file no factors of it", None)


def _refusal(source: str, what: str, target: str | None) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"{source}: its configuration has `target_parameters` {what}; merge it with PEFT, and extract a LoRA from "
        "the merged model",
        target=target,
    )


def _parameters(module: str, entries: Sequence[str]) -> list[str]:
    """The parameters of a module that PEFT adapts, in the order in which models have them."""
    found: dict[str, None] = {}
    for entry in entries:
        name = entry.rpartition(".")[2]
        if f".{module}.{name}".endswith(f".{entry}"):
            found[name] = None
    return sorted(found, key=lambda one: (stack_order(one), one))


def _named(
    module: str, names: Sequence[str], wrappers: Mapping[int, Mapping[str, str]], source: str
) -> dict[int, str]:
    """The parameter of each of the wrappers around a module, by how deep it lies."""
    if not STACK.search(f".{module}.{names[0]}"):
        what = (
            f"`{names[0]}` of `{module}`, which is neither a module's weight nor a stack of experts"
        )
    elif sorted(wrappers) != list(range(len(names))) or any(len(w) < 2 for w in wrappers.values()):
        what = f"{', '.join(f'`{one}`' for one in names)} of `{module}`, and the file has factors of others"
    elif len(names) > 1 and not set(names) <= set(IN_ORDER):
        listed = ", ".join(f"`{one}`" for one in names)
        what = f"{listed} of `{module}`, and which factors are whose is not known"
    else:
        return {len(names) - 1 - at: name for at, name in enumerate(names)}
    raise _refusal(source, what, module)


def _parts(
    source: TensorSource, stack: str, factors: Mapping[str, str], rank: int
) -> list[tuple[str, int, _Slice]]:
    """Each expert's part of the two factors of a stack."""
    down, up = (source.shape(factors[side]) for side in "AB")
    fits = len(down) == len(up) == 2 and down[0] == up[1] and rank > 0 and down[0] % rank == 0
    if not fits or not down[0]:
        raise LayerShapeError(
            f"stack `{stack}` of {source.name} has factors of {down} and {up}, and by the configuration rank {rank}: "
            "these do not divide into experts; the folder is damaged, or of two adapters",
            target=stack,
        )
    experts = down[0] // rank
    shapes = {"A": (rank, down[1]), "B": (up[0], rank)}
    return [
        (side, number, _Slice(factors[side], _SIDES[side], number, experts, shapes[side]))
        for number in range(experts)
        for side in "AB"
    ]


class _Apart(TensorSource):
    """An adapter whose stacks are read one expert at a time.

    Args:
        source: The file.
        slices: By its keys, what becomes of those that are stacks, by new key.
    """

    def __init__(self, source: TensorSource, slices: Mapping[str, Mapping[str, _Slice]]) -> None:
        self.name, self.metadata = source.name, source.metadata
        self._source, self._slices = source, slices
        self._known = {key: one for found in slices.values() for key, one in found.items()}
        self._held: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def keys(self) -> Sequence[str]:
        """All tensor names, those of a stack's parts in its place."""
        known = self._source.keys()
        return [own for key in known for own in self._slices.get(key, (key,))]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        one = self._known.get(key)
        return self._source.shape(key) if one is None else one.shape

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self._source.dtype(self._key(key))

    def result_dtype(self, key: str) -> torch.dtype:
        """Dtype of what is made of one tensor."""
        return self._source.result_dtype(self._key(key))

    def tensor(self, key: str) -> Tensor:
        """Read one tensor, of a stack the part of one expert."""
        one = self._known.get(key)
        if one is None:
            return self._source.tensor(key)
        return one_of(self._whole(one.key), one.role, one.number, one.experts)

    def _key(self, key: str) -> str:
        one = self._known.get(key)
        return key if one is None else one.key

    def _whole(self, key: str) -> Tensor:
        """A factor of a stack, which is read once for experts that follow each other."""
        with self._lock:
            if key not in self._held:
                self._held[key] = self._source.tensor(key)
                for old in list(islice(self._held, max(0, len(self._held) - _HELD))):
                    del self._held[old]
            return self._held[key]
