"""The parameters of a folder by what the model that is loaded from it calls them: PEFT's names.

A model of diffusers keeps its component in front, any other has the root of text encoders. Nothing is joined
or split as ComfyUI has it; the experts of a layer are parameters of their own, ``….experts.gate_up_proj.3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ArgumentError, MismatchError
from ..source import TensorSource
from .architectures.encoders import TE
from .architectures.language import stored_turned
from .architectures.modules import EXPERTS, IN_FIRST, IN_ORDER, RENAMES, STACK, Experts
from .parameter import COMPONENTS, Parameter, Piece

ROOT = f"{TE}transformer."
_EXPERT = re.compile(r"(?P<stack>.+\.experts\.\w+)\.(?P<number>\d+)$")
_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Modules:
    """The model of a folder.

    Attributes:
        parameters: By name, root and `.weight` included.
        root: What stands before the model's own names.
        has_experts: Whether it has stacks of experts.
        is_renamed: Whether names are not those of the files.
    """

    parameters: Mapping[str, Parameter]
    root: str
    has_experts: bool = False
    is_renamed: bool = False


def modules_of(source: TensorSource, config: Mapping[str, Any]) -> Modules:
    """Return the parameters of a model by its own names, from headers alone.

    Args:
        source: Of one model.
        config: Its `config.json`; empty where there is none.

    Raises:
        MismatchError: It holds several models.
    """
    own = {key: source.own_key(key) for key in source.keys()}  # noqa: SIM118
    fronts = {key.removesuffix(name) for key, name in own.items()}
    if len(fronts) > 1:
        raise MismatchError(
            f"{source.name} holds several models ({', '.join(sorted(fronts))}), and a folder of PEFT is "
            "of one; give the folder of one of them"
        )
    front = fronts.pop() if fronts else ""
    root = front if COMPONENTS.get(front.rstrip(".")) in ("unet", "vae") else ROOT
    shapes = {name: source.shape(key) for key, name in own.items()}
    names = _Names(config)
    turned = stored_turned(shapes)
    found: dict[str, Parameter] = {}
    experts = _Gathered(root, config.get("model_type") in IN_FIRST)
    for key, name in own.items():
        shape = shapes[name]
        if not experts.takes(name, key, shape, is_foreign="auto_map" in config):
            called = root + names.called(name)
            one = Parameter(called, key, shape, transposed=name in turned)
            found[called] = replace(one, shape=shape[::-1]) if one.transposed else one
    stacks = dict(experts.parameters())
    return Modules(
        found | stacks,
        root,
        bool(stacks),
        names.has_renamed or experts.has_joined,
    )


def check_axes(modules: Modules, config: Mapping[str, Any], name: str) -> None:
    """Refuse a model with stacks of experts of which it is not known how they lie.

    Args:
        modules: Its parameters.
        config: Its `config.json`.
        name: What messages call it.

    Raises:
        ArgumentError: It has such stacks.
    """
    if modules.has_experts and not modules.is_renamed and "model_type" not in config:
        raise ArgumentError(
            f"{name} has stacks of experts, and no `config.json` that tells the model: which of their "
            "axes is the input is not known; give the folder of the model"
        )


def expert_of(target: str) -> tuple[str, int] | None:
    """The stack that a target is an expert of, and which; None for any other."""
    found = _EXPERT.match(target)
    return None if found is None else (found["stack"], int(found["number"]))


def stack_order(stack: str) -> int:
    """Where a stack stands among those of its module."""
    name = stack.rpartition(".")[2]
    return IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER)


def aligned(base: Modules, tuned: Modules) -> dict[str, Parameter]:
    """The base's parameters by the tuned model's names: one may be the body of what the other is whole."""
    known = {name.removeprefix(base.root): one for name, one in base.parameters.items()}
    wanted = {name.removeprefix(tuned.root) for name in tuned.parameters}
    heads = {name.partition(".")[0] + "." for name in wanted}
    own = {name.partition(".")[0] + "." for name in known}
    spellings = [
        known,
        *({head + name: one for name, one in known.items()} for head in sorted(heads)),
        *({name.removeprefix(head): one for name, one in known.items()} for head in sorted(own)),
    ]
    best = max(spellings, key=lambda names: len(names.keys() & wanted))
    return {tuned.root + name: replace(one, name=tuned.root + name) for name, one in best.items()}


class _Names:
    """What a model calls the parameters of its files."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._rules = RENAMES.get(str(config.get("model_type")), ())
        self.has_renamed = False

    def called(self, name: str) -> str:
        for pattern, to in self._rules:
            name, count = pattern.subn(to, name)
            self.has_renamed |= bool(count)
        return name


@dataclass(eq=False)
class _Gathered:
    """The experts of a model, as they are found.

    Attributes:
        root: What stands before the model's own names.
        in_first: Whether stacks are (experts, in, out).
        single: Of weights that stand alone: key and shape by part, by expert, by stack.
        stacks: Key and shape of stacks that a file has whole.
    """

    root: str
    in_first: bool = False
    single: dict[str, dict[int, dict[str, tuple[str, tuple[int, ...]]]]] = field(
        default_factory=dict[str, dict[int, dict[str, tuple[str, tuple[int, ...]]]]]
    )
    stacks: dict[str, tuple[str, tuple[int, ...]]] = field(
        default_factory=dict[str, tuple[str, tuple[int, ...]]]
    )
    wanted: dict[str, Experts] = field(default_factory=dict[str, Experts])

    @property
    def has_joined(self) -> bool:
        """Whether stacks are made of weights that stand alone."""
        return bool(self.single)

    def takes(self, name: str, key: str, shape: tuple[int, ...], *, is_foreign: bool) -> bool:
        """Take a tensor that is an expert's weight, or a stack of them, and say so."""
        if STACK.search(name) and len(shape) == 3:
            self.stacks[name] = key, shape
            return True
        for row in () if is_foreign or len(shape) != 2 else EXPERTS:
            for part in row.parts:
                found = re.match(row.pattern.replace("{}", part), name)
                if found is not None:
                    stack = found.expand(row.stack)
                    self.wanted[stack] = row
                    self.single.setdefault(stack, {}).setdefault(int(found[2]), {})[part] = (
                        key,
                        shape,
                    )
                    return True
        return False

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every expert of every stack."""
        for stack, (key, shape) in self.stacks.items():
            for number in range(shape[0]):
                name = f"{self.root}{stack}.{number}{_WEIGHT}"
                inner = Parameter(name, key, (1, *shape[1:]), rows=(number, number + 1))
                own = shape[:0:-1] if self.in_first else shape[1:]
                piece = Piece(inner, (0, own[0]), turned=self.in_first)
                yield name, Parameter(name, key, own, pieces=(piece,))
        for stack, experts in self.single.items():
            wanted = self.wanted[stack].parts
            for number in range(len(experts)):
                name = f"{self.root}{stack}.{number}{_WEIGHT}"
                parts = experts.get(number, {})
                if len(parts) < len(wanted):
                    raise MismatchError(
                        f"the experts of `{stack}` are not complete: number {number} has "
                        f"{', '.join(parts) or 'nothing'} of {', '.join(wanted)}; give the whole model"
                    )
                yield name, _rows(name, [parts[one] for one in wanted])


def _rows(name: str, parts: list[tuple[str, tuple[int, ...]]]) -> Parameter:
    """One expert's weight, of the weights that are its rows."""
    if len(parts) == 1:
        ((key, shape),) = parts
        return Parameter(name, key, shape)
    pieces: list[Piece] = []
    end = 0
    for key, shape in parts:
        pieces.append(Piece(Parameter(name, key, shape), (end, end := end + shape[0])))
    return Parameter(name, parts[0][0], (end, *parts[0][1][1:]), pieces=tuple(pieces))
