"""What a step of a recipe takes, settled for all parameters: weights by name, layers, the method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...adapters.strengths.ingredient import Ingredient
from ...adapters.strengths.rules import check_strengths, parse_rules, strengths
from ...errors import ArgumentError
from ...models.architectures import Parameter
from ...source import TensorSource
from ..bake.plan import adapter_shares
from ..methods.choosing import Chosen, choose_method
from ..methods.elements.work import Value
from ..weights.shares import Share
from .matched import Model
from .recipes.recipe import Step, Term
from .spelled import elemental_weights

_VAE = "vae."


@dataclass(frozen=True, slots=True, eq=False)
class SettledTerm:
    """A term of a step, for all parameters.

    Attributes:
        of: A file or a step.
        minus: Likewise, or empty.
        weights: By the parameter's target.
        shares: Of an adapter, by the parameter.
    """

    of: str
    minus: str
    weights: Mapping[str, float]
    shares: Mapping[Parameter, tuple[Share, ...]] = field(default_factory=dict)


def settled_term(step: Step, term: Term, names: Sequence[str]) -> SettledTerm:
    """Settle a term that is a model or a step, or a difference of such.

    Args:
        step: Whose term it is, for messages.
        term: Any but an adapter's.
        names: Targets of all parameters that are merged.

    Raises:
        ArgumentError: Its weights mean nothing for these parameters.
    """
    number, blocks = _weight(step, term)
    weights = strengths(names, strength=number, blocks=blocks)
    for rule in parse_rules(names, blocks=blocks):
        if rule.pattern == "BASE":  # of all that is in no block, as lists elsewhere have it
            weights |= {name: number * rule.strength for name in names if name.startswith(_VAE)}
    for rule in parse_rules(names, where=term.where):
        weights |= dict.fromkeys(rule.names, number * rule.strength)
    if term.elemental:
        weights |= elemental_weights(step, term.elemental, names)
    check_strengths(weights)
    return SettledTerm(term.of, term.minus, weights)


def settled_adapter(
    step: Step,
    term: Term,
    adapter: TensorSource,
    base: Model,
    names: Sequence[str],
    allow_partial: bool,
) -> SettledTerm:
    """Settle a term that is an adapter: its layers, with their strengths, each where it lies.

    Args:
        step: Whose term it is, for messages.
        term: The adapter's.
        adapter: Its source.
        base: The checkpoint that the result has the names of.
        names: Targets of all parameters that are merged.
        allow_partial: Leave out layers that the base has no parameter for.

    Raises:
        LoraOpsError: See `adapter_shares`.
    """
    number, blocks = _weight(step, term)
    if term.elemental:
        raise ArgumentError(
            f"step `{step.name}`: `elemental` is for models; write `where` for `{term.of}`"
        )
    one = Ingredient(adapter, number, blocks, term.where)
    shares: dict[Parameter, tuple[Share, ...]] = {}
    for share in adapter_shares(one, 1, base.parameters, base.source, allow_partial):
        if share.seat is not None and share.strength:
            at = share.seat.parameter
            shares[at] = (*shares.get(at, ()), share)
    return SettledTerm(term.of, "", dict.fromkeys(names, 1.0), shares)


def _weight(step: Step, term: Term) -> tuple[float, str | None]:
    """The number of a term and its blocks, of which a gradient is a form."""
    weight, blocks = term.weight, term.blocks or None
    if not isinstance(weight, tuple):
        return float(weight), blocks
    if blocks:
        raise ArgumentError(
            f"step `{step.name}`: `{term.of}` has a gradient and `blocks`; give one of them"
        )
    return 1.0, "depth=" + ",".join(map(str, weight))


def settled_method(step: Step, adapters: Collection[str], is_lone: bool) -> Chosen:
    """Find the method of a step, with all that it takes.

    Args:
        step: Any.
        adapters: The names that are adapters.
        is_lone: Whether it is the recipe's only step; else messages name it.

    Raises:
        ArgumentError: See `choose_method`, with the line in a document; a parameter is given for some
            terms only.
    """
    name, given = step.method, dict[str, Value]()
    for key, value in step.parameters.items():
        given[key] = tuple(map(float, value)) if isinstance(value, tuple) else value
    for key in {key for term in step.terms for key in term.parameters}:
        own = [term.parameters.get(key, step.parameters.get(key)) for term in step.terms]
        if any(one is None or isinstance(one, tuple) for one in own):
            raise ArgumentError(f"step `{step.name}`: give `{key}` for each term, or for the step")
        given[key] = tuple(float(one) for one in own)  # type: ignore[arg-type]
    if step.sparsify != "none":
        given["sparsify"] = step.sparsify
        name = "sparse" if name in ("sum", "average") else name
    if step.legacy:
        given["legacy"] = step.legacy
    if name == "average" and any(term.of in adapters for term in step.terms):
        raise ArgumentError(f"step `{step.name}`: an adapter has no share in an average; use `sum`")
    try:
        return choose_method(name, len(step.terms), bool(step.base), given)
    except ArgumentError as error:
        where, what = (
            _place(step, str(error)),
            str(error) if is_lone else f"step `{step.name}`: {error}",
        )
        raise ArgumentError(f"{what} ({where})" if where else what) from error


def _place(step: Step, fault: str) -> str:
    """Where in a document a method, or what it is given, is at fault; empty where there is no document."""
    if step.place is None:
        return ""
    given: list[tuple[tuple[str | int, ...], Mapping[str, object]]] = [((), step.parameters)]
    given += [(("terms", number), term.parameters) for number, term in enumerate(step.terms, 1)]
    for path, parameters in given:
        for name in parameters:
            if f"`{name}`" in fault or f"`{name}=" in fault:
                return step.place.of(*path, name)
    return step.place.of("method")
