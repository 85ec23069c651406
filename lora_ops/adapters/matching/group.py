"""Several adapters side by side: which of their layers change one weight, and what it is called."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import (
    ArgumentError,
    MismatchError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)
from ...models.architectures import Architecture
from ..adapter import Adapter
from ..edited import described
from ..formats import (
    BIAS,
    Format,
    ModelNames,
    Respell,
    format_named,
    format_of,
    model_names,
    module_keys,
    respeller,
    spelling_key,
    spelling_keys,
)
from ..layers import Layer, fits
from ..model import models_of


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """An adapter and how much of it is wanted.

    Attributes:
        adapter: Its layers.
        strengths: By target; 1 for a target that is not named.
        name: What messages call it.
    """

    adapter: Adapter
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    name: str = "the adapter"

    def strength(self, target: str) -> float:
        """The factor on one of its layers."""
        return self.strengths.get(target, 1.0)

    def layer(self, target: str) -> Layer:
        """Return one of its layers.

        Raises:
            UnsupportedLayerError: It is made from the base weight, or of a kind that is not read.
        """
        layer = self.adapter.layers[target]
        if layer.needs_base:
            raise UnsupportedLayerError(
                f"layer `{target}` of {self.name} {described(layer)}: what it changes depends on "
                "the base weight, so it cannot be added or compared; give a sum its checkpoint (`base=`), "
                'make it a plain LoRA first (`convert(lora, to="lora", base=checkpoint)`), or bake it '
                "into its checkpoint",
                target=target,
            )
        return layer


@dataclass(frozen=True, slots=True)
class Group:
    """One weight, and the layers that change it.

    Attributes:
        target: Its name in the result.
        keys: Its keys in the result, by role.
        members: The layers: index of the term, and the name in it, in the order of the terms.
    """

    target: str
    keys: Mapping[str, str]
    members: tuple[tuple[int, str], ...]


def group_by_weight(
    terms: Sequence[Term],
    model: Architecture | None,
    format: str | None = None,
    reference: Sequence[str] = (),
) -> list[Group]:
    """Match the layers of all terms, whatever their naming schemes.

    Args:
        terms: One or more.
        model: The model that all are for; None if it is not known.
        format: How the result is named; None: as the first term is.
        reference: Canonical targets of a checkpoint, which give a kohya name its dots back.

    Returns:
        Groups in the order of the first term, then of the second, and so on.

    Raises:
        MismatchError: A term names one weight twice.
        ArgumentError: A layer has no name in that format.
    """
    scheme = format_named(format or terms[0].adapter.format)
    members: dict[str, list[tuple[int, str]]] = {}
    for index, term in enumerate(terms):
        for target, key in spelling_keys(term.adapter.layers).items():
            members.setdefault(key, []).append((index, target))
    names = dict.fromkeys([*reference, *(t for term in terms for t in term.adapter.layers)])
    dotted = [name for name in names if format_of(name).name != "kohya"]
    known = {spelling_key(name): name for name in reversed(dotted)}
    known |= _by_table(names, model_names(model, reference))  # join keys have one layout of a UNet
    respell = respeller(scheme, known, model)
    groups = [_group(terms, scheme, found, respell) for found in members.values()]
    _check_names(terms, groups)
    return groups


def _by_table(names: Iterable[str], table: ModelNames) -> dict[str, str]:
    """Names with dots, from the model's table, for kohya's names without."""
    flat = (name for name in names if format_of(name).name == "kohya")
    places = {name: table.place(name) for name in flat}
    return {spelling_key(name): at.native for name, at in places.items() if at and at.is_whole}


def common_models(terms: Sequence[Term]) -> list[Architecture]:
    """Return the architectures that all terms can be for, the likeliest first; [] if none is known.

    Where any two share one, but not all, these are all that one of them can be for.

    Raises:
        MismatchError: Two terms are for different models.
    """
    known = [(term, models) for term in terms if (models := models_of(term.adapter))]
    for (one, models), (other, others) in itertools.combinations(known, 2):
        if not any(model in others for model in models):
            raise MismatchError(
                f"{one.name} is for {models[0].title}, {other.name} for {others[0].title}: "
                "their changes do not belong to one model"
            )
    ranked = list(dict.fromkeys(model for _, models in known for model in models))
    return [one for one in ranked if all(one in models for _, models in known)] or ranked


def common_shape(
    layers: Sequence[Layer], members: Sequence[tuple[int, str]], terms: Sequence[Term]
) -> tuple[int, ...]:
    """Return the weight's shape, in the longest of the forms that the layers have it in.

    A 1x1 convolution may stand as (out, in) in one file and as (out, in, 1, 1) in another, and the
    kernel of a LoHa or LoKr may be in the input side.

    Raises:
        WeightShapeError: The layers change weights of different shapes.
    """
    shapes = [layer.shape for layer in layers]
    longest = max(shapes, key=len)
    for shape, (index, target) in zip(shapes, members, strict=True):
        if not fits(shape, longest):
            raise WeightShapeError(
                f"layer `{target}` changes a weight of shape {shape} in {terms[index].name} and one "
                f"of {longest} in another input: they are for different models",
                target=target,
            )
    return longest


def _group(
    terms: Sequence[Term], scheme: Format, members: Sequence[tuple[int, str]], respell: Respell
) -> Group:
    """The weight under the keys of the first file that already has the wanted format."""
    for index, target in members:
        keys = terms[index].adapter.keys.get(target)
        if terms[index].adapter.format == scheme.name and keys:
            # The sum may have roles that this layer lacks: these get keys, too.
            every = module_keys(scheme, terms[index].adapter.module(target))
            return Group(target, {**every, **keys}, tuple(members))
    index, target = members[0]
    bias = BIAS if target.endswith(BIAS) else ""
    name = respell(target.removesuffix(bias))
    if name is None:
        raise ArgumentError(
            f"layer `{target}` of {terms[index].name} has no name in format `{scheme.name}`; "
            "choose another `format=`, or give the model as `reference=`, or its name as `architecture=`",
            target=target,
        )
    return Group(name + bias, module_keys(scheme, name + bias), tuple(members))


def _check_names(terms: Sequence[Term], groups: Sequence[Group]) -> None:
    """Refuse two layers of one name: a file that spells a weight in two ways holds it twice."""
    seen: dict[str, Group] = {}
    for group in groups:
        other = seen.setdefault(group.target, group)
        if other is not group:
            index, target = group.members[0]
            raise TargetMismatchError(
                f"layer `{target}` of {terms[index].name} would be called `{group.target}`, and so "
                f"would `{other.members[0][1]}`: rename or remove one of them",
                target=target,
            )
