"""The plan of a merge: what becomes of each tensor of the base, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...adapters.checkpoint import check_checkpoint, is_checkpoint
from ...adapters.layers import Convention
from ...elements import ELEMENTS, Element, element_named
from ...errors import ArgumentError, MismatchError
from ...models.architectures import Parameter
from ...report import counted
from ...run.workers import Progress
from ...source import DictSource, TensorSource
from ...text import plain
from ..weights.gguf_file_plan import GgufPlan
from ..weights.tiles import Planned
from .combine import Leaf, Sum
from .combined import Combination
from .components import COMPONENTS, with_components
from .matched import EMA
from .opening import Node
from .recipes.checks import check_order, check_output
from .recipes.recipe import ALLOWED, Recipe
from .resolved import Resolver
from .step import Merged

_FLAGS = ("v_pred", "ztsnr")


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """What a merge will do, known from headers alone.

    Attributes:
        recipe: What was asked for, with numbers for all names.
        base: The checkpoint whose names, order, metadata and other tensors the result has.
        sources: All that is read, by the recipe's names.
        tensors: What becomes of each tensor, by key, in the base's order.
        merged: Names of the parameters that are computed.
        taken: How many of these are another model's, as they are.
        copied: Keys of the base that stay as they are.
        only_base: Names of parameters of the merged components that no other model has.
        only_others: By the recipe's name of a file, the parameters that the base does not have.
        dropped: Keys of the base that are left out: averages of the weights.
        notes: What is worth a sentence.
        allow_nonfinite: Whether weights that are not finite in some model stay those of the base.
        surveys: What is read of all weights of a step first, for methods that ask for it.
        passes: How often files are read at most, by the weight that asks for most.
        gguf: How it lies in a GGUF file, where it is written as one.
    """

    recipe: Recipe
    base: TensorSource
    sources: Mapping[str, TensorSource]
    tensors: Mapping[str, Planned]
    merged: tuple[str, ...]
    taken: int
    copied: tuple[str, ...]
    only_base: tuple[str, ...]
    only_others: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    allow_nonfinite: bool = False
    surveys: tuple[Callable[[Progress | None], Tensor], ...] = ()
    passes: int = 1
    gguf: GgufPlan | None = None

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of every tensor of the result."""
        return {key: one.element.dtype for key, one in self.tensors.items()}


def plan_merge(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    *,
    components: Sequence[str] = COMPONENTS,
    strict: bool = False,
    allow_nonfinite: bool = False,
    allow_partial: bool = False,
    dora: Convention | None = None,
) -> MergePlan:
    """Match the checkpoints and settle what becomes of each tensor, from headers alone.

    The base of the last step gives names, order, metadata, and everything that is not merged: whole
    numbers, what belongs to no model (noise schedules, flags of v-prediction), and the VAE.

    Args:
        recipe: With numbers for all names; see `Recipe.bind`.
        sources: The files by the recipe's names: checkpoints and adapters.
        components: Which are merged; `vae` among them merges it too. The plan's recipe says so in its
            parts, so that it gives the same again.
        strict: Whether a parameter that not all have is an error.
        allow_nonfinite: Keep the base's weight where some model's is not finite. This, the next and
            `dora` are in the plan's recipe, too; what a recipe allows is allowed anyway.
        allow_partial: Leave out layers of adapters that the base has no parameter for.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md. None: the
            recipe's.

    Raises:
        ArgumentError: The recipe means nothing, or names a file or method that is not there; or its
            steps stand too deep upon each other.
        MismatchError: A checkpoint is none, or the models have nothing in common.
        WeightShapeError: A parameter has two shapes.
    """
    recipe = _told(recipe, partial=allow_partial, nonfinite=allow_nonfinite, dora=dora)
    check_output(recipe.output)
    check_order(recipe)
    try:
        return _planned(recipe, sources, components, strict)
    except RecursionError:
        raise too_deep(recipe) from None


def too_deep(recipe: Recipe) -> ArgumentError:
    """The error for steps upon steps, each of which is a call within another, that Python does not go down.

    Args:
        recipe: With steps that take earlier ones alone.
    """
    depths: dict[str, int] = {}
    for step in recipe.steps:
        names = (step.base, *(name for term in step.terms for name in (term.of, term.minus)))
        depths[step.name] = 1 + max(depths.get(name, 0) for name in names)
    deepest = max(depths, key=lambda name: depths[name])
    return ArgumentError(
        f"step `{plain(deepest)}` stands on {depths[deepest] - 1} others, one upon the other, more than are "
        "computed at once; write the model of one in between, and go on from that"
    )


def _planned(
    recipe: Recipe, sources: Mapping[str, TensorSource], components: Sequence[str], strict: bool
) -> MergePlan:
    resolver = Resolver(recipe, sources, components)
    told = with_components(recipe, components, resolver.base, sources)
    if told != recipe:
        recipe = told
        resolver = Resolver(told, sources, COMPONENTS)
    base = resolver.base
    check_checkpoint(base.source)
    steps: dict[str, list[Merged]] = {}
    taken: dict[str, Leaf] = {}
    merged: list[str] = []
    nodes: list[Node] = []
    only_base: list[str] = []
    for name, parameter in base.parameters.items():
        if not resolver.is_merged(parameter):
            continue
        node = resolver.node(parameter)
        if node is None:
            if not resolver.is_elsewhere(name):
                only_base.append(name)
            continue
        merged.append(name)
        nodes.append(node)
        lone = node.terms[0] if isinstance(node, Sum) and len(node.terms) == 1 else node
        if isinstance(lone, Leaf) and _same_place(lone.parameter, parameter):
            taken[parameter.key] = lone
            continue
        for piece in parameter.pieces or (None,):
            at = parameter if piece is None else piece.parameter
            step = Merged(at, base.source, node, (parameter, piece))
            steps.setdefault(at.key, []).append(step)
    if not merged:
        raise _nothing(resolver)
    only_others = resolver.only_others()
    if strict and (only_base or any(only_others.values())):
        first = (only_base or [name for names in only_others.values() for name in names])[0]
        raise MismatchError(
            f"not all models have all parameters: {len(only_base)} only in {base.source.name}, "
            f"{sum(map(len, only_others.values()))} only in others, the first `{first}`"
        )
    dropped = tuple(one.key for name, one in base.parameters.items() if name.startswith(EMA))
    asked = asked_elements(recipe, base.parameters)
    tensors: dict[str, Planned] = {}
    seed = (recipe.steps[-1].seed or 0) if recipe.output.rounding == "stochastic" else None
    for key in base.source.keys():  # noqa: SIM118
        if key in dropped:
            continue
        element = base.source.element(key)
        if element.is_floating_point:
            element = asked.get(key, base.source.result_element(key))
        at = taken.get(key)
        source, own = (base.source, key) if at is None else (at.source, at.parameter.key)
        found = tuple(steps.get(key, ()))
        tensors[key] = Planned(key, source, own, element, found, seed if found else None)
    notes = [*_notes(resolver, only_base, only_others, dropped)]
    notes += _repaired(tensors)
    notes += _flags(recipe, tensors, sources)
    return MergePlan(
        recipe=recipe,
        base=base.source,
        sources=dict(sources),
        tensors=tensors,
        merged=tuple(merged),
        taken=len(taken),
        copied=tuple(key for key, one in tensors.items() if not one.steps and key not in taken),
        only_base=tuple(only_base),
        only_others=only_others,
        dropped=dropped,
        notes=tuple(notes),
        allow_nonfinite="nonfinite" in recipe.output.allow,
        surveys=tuple(one.found for one in resolver.surveys),
        passes=_passes(nodes) + sum(_passes(one.nodes) - 1 for one in resolver.surveys),
    )


def _nothing(resolver: Resolver) -> MismatchError:
    """Why no weight is to be merged."""
    base = resolver.base.source
    if all(one is base for one in resolver.used):
        return MismatchError(
            f"nothing to merge: {base.name} is the only model; give another to merge it with"
        )
    return MismatchError(
        f"nothing to merge: no weight of {base.name} is in another model with a weight other than 0; "
        "see what the files are with `info`"
    )


def _told(recipe: Recipe, *, dora: Convention | None, **allowed: bool) -> Recipe:
    """A recipe that says how its files are read, as whoever runs it wants it."""
    output = recipe.output
    asked = [name for name in ALLOWED if allowed[name] and name not in output.allow]
    allow = (*output.allow, *asked)
    return replace(recipe, output=replace(output, dora=dora or output.dora, allow=allow))


def _passes(nodes: Sequence[Node]) -> int:
    """How often files are read at most to compute these, a pass of each step after the other's."""
    known: dict[int, int] = {}

    def before(node: Node) -> int:
        if id(node) not in known:
            own = node.passes if isinstance(node, Combination) else 0
            known[id(node)] = own + max(map(before, node.parts), default=0)
        return known[id(node)]

    return 1 + max(map(before, nodes), default=0)


def _same_place(one: Parameter, other: Parameter) -> bool:
    whole = one.rows is None and other.rows is None and not one.pieces and not other.pieces
    return whole and one.transposed == other.transposed and one.shape == other.shape


def asked_elements(recipe: Recipe, parameters: Mapping[str, Parameter]) -> dict[str, Element]:
    """What is asked for, by key; what belongs to no model stays as it is stored."""
    asked = {part: element_named(name) for part, name in recipe.output.dtype.items()}
    found: dict[str, Element] = {}
    for parameter in parameters.values():
        element = asked.get(parameter.component, asked.get("all"))
        if element is not None and parameter.component != "other":
            found |= dict.fromkeys(parameter.keys, element)
    return found


def _notes(
    resolver: Resolver,
    only_base: Sequence[str],
    only_others: Mapping[str, Sequence[str]],
    dropped: Sequence[str],
) -> Iterator[str]:
    base = resolver.base.source.name
    for name, count in Counter(one.name for one in resolver.used).items():
        if count > 1:
            yield f"{name} stands under {count} names of the recipe"
    if only_base:
        yield f"{counted(len(only_base), 'parameter')} only in {base}, the first `{only_base[0]}`: kept"
    for name, names in only_others.items():
        if names:
            what = counted(len(names), "parameter")
            yield f"{what} only in `{name}`, the first `{names[0]}`: left out"
    if dropped:
        yield (
            f"{counted(len(dropped), 'tensor')} of running averages (EMA) left out, the first "
            f"`{dropped[0]}`"
        )


def _repaired(tensors: dict[str, Planned]) -> Iterator[str]:
    """Set positions right that a program stored rounded: they count from 0."""
    for key, one in tensors.items():
        if not key.endswith("position_ids"):
            continue
        numbers, element = one.source.numbers(one.own), one.source.element(one.own)
        if element.is_floating_point or numbers != list(range(len(numbers))):
            element = ELEMENTS["I64"] if element.is_floating_point else element
            right = torch.arange(len(numbers)).reshape(one.shape).to(element.dtype)
            tensors[key] = Planned(key, DictSource({key: right}), key, element)
            yield f"`{key}` did not count from 0 in whole numbers, and was repaired"


def _flags(
    recipe: Recipe, tensors: dict[str, Planned], sources: Mapping[str, TensorSource]
) -> Iterator[str]:
    """The flags of v-prediction: the base's, unless the recipe says otherwise."""
    for flag in _FLAGS:
        had = flag in tensors
        if recipe.output.keep == "on" and not had:
            empty = DictSource({flag: torch.empty(0)})
            tensors[flag] = Planned(flag, empty, flag, ELEMENTS["F32"])
        elif recipe.output.keep == "off" and had:
            del tensors[flag]
        elif recipe.output.keep == "auto":
            others = [name for name, one in sources.items() if (flag in set(one.keys())) != had]
            others = [name for name in others if is_checkpoint(sources[name])]
            if others:
                does = "lacks" if had else "has"
                yield (
                    f"`{others[0]}` {does} the flag `{flag}`, the base does not agree: the base decides; "
                    'set `keep = "on"` or `"off"` in the recipe'
                )
