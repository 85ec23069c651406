"""Methods of merging checkpoints, by name: of three kinds, with what they take.

Terms are the inputs but the base, each with a weight. Where published recipes speak of models A, B and
C, the base is A, the terms are B and C, and their numbers alpha and beta are the weights of B and C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from ...errors import ArgumentError
from . import linear
from .element import Task, Value, Work
from .parameters import AnyParameter, Choice, PerTerm, settled
from .sparse import SparseWork
from .table import Parameter, nearest


@dataclass(frozen=True, slots=True)
class Linear:
    """Coefficients that are known from the weights alone.

    Attributes:
        solve: From the weights, whether there is a base, and the parameters, to coefficients.
    """

    solve: Callable[..., linear.Coefficients]


@dataclass(frozen=True, slots=True)
class Span:
    """Coefficients from the inner products of all terms: `coefficients(name, gram, weights)`.

    Attributes:
        name: Of the method in `METHODS`, whose weights are the strengths.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Element:
    """A function of tiles, after passes for statistics.

    Attributes:
        begin: From a weight to the work on it.
        survey: From what all weights of the model give (`Work.values`, joined, in any order) to what
            each of them is told (`Task.survey`); None for methods that look at one weight alone.
    """

    begin: Callable[[Task], Work]
    survey: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A way of merging.

    Attributes:
        how: What the engine runs; only an `Element` is not linear in the inputs.
        help: What it does, in one line.
        terms: The fewest and the most terms that it takes, beside the base; None for any number.
        base: Whether it must have a base, may have one, or never has.
        of: Whether it sees terms as their changes against the base, where there is one, or as they are.
        parameters: What it takes besides weights, by name.
    """

    how: Linear | Span | Element
    help: str
    terms: tuple[int, int | None] = (1, None)
    base: Literal["needed", "optional", "none"] = "needed"
    of: Literal["changes", "weights"] = "weights"
    parameters: Mapping[str, AnyParameter] = field(default_factory=dict[str, AnyParameter])


_STRENGTH = {"strength": Parameter(1, -10, 10, "factor on the whole sum")}
_DENSITY = "share of the elements that stays"


def _sparse(density: float) -> dict[str, AnyParameter]:
    """What thinning out takes."""
    return {
        **_STRENGTH,
        "sparsify": Choice(
            ("magnitude", "none", "dare", "della", "breadcrumbs"), "which elements stay"
        ),
        "density": PerTerm(Parameter(density, 0, 1, _DENSITY)),
        "gamma": PerTerm(Parameter(0.01, 0, 1, "breadcrumbs: share of the largest that goes")),
        "epsilon": PerTerm(
            Parameter(0.1, 0, 1, "della: width of the probabilities around density")
        ),
        "rescale": Choice(
            ("auto", "no", "density", "l1"),
            "what makes up for the rest: auto is 1 / density for dare and della, else nothing",
        ),
        "legacy": Choice(("no", "mergekit", "mecha", "chattiori"), "another program's meaning"),
    }


_ELECT: dict[str, AnyParameter] = {
    "elect": Choice(("sum", "count"), "sign of the sum of the changes, or of most of them"),
    "normalize": Choice(
        ("auto", "count", "weights", "no"),
        "divide by the number of those that agree (auto), by their weights, or by nothing",
    ),
}

MERGE_METHODS: dict[str, MergeMethod] = {
    "sum": MergeMethod(
        Linear(linear.plain_sum),
        "add the weights as given; with a base the base and its weighted changes",
        base="optional",
        parameters=_STRENGTH,
    ),
    "average": MergeMethod(
        Linear(linear.mean),
        "the same, weights divided by their sum",
        base="optional",
        parameters=_STRENGTH,
    ),
    "lerp": MergeMethod(
        Linear(partial(linear.plain_sum, strength=1)),
        "from the base to one other, by its weight",
        terms=(1, 1),
    ),
    "add_difference": MergeMethod(
        Linear(linear.add_difference), "A + alpha (B - C), alpha the weight of B", terms=(2, 2)
    ),
    "sum_twice": MergeMethod(
        Linear(linear.sum_twice), "A to B by alpha, and that to C by beta", terms=(2, 2)
    ),
    "triple_sum": MergeMethod(
        Linear(partial(linear.plain_sum, strength=1)),
        "(1 - alpha - beta) A + alpha B + beta C",
        terms=(2, 2),
    ),
    "sigmoid": MergeMethod(
        Linear(linear.sigmoid), "Chattiori's; at alpha = 0 it is B / 2", terms=(1, 1)
    ),
    "ties": MergeMethod(
        Element(partial(SparseWork.begin, elected=True)),
        "thin out the changes, elect a sign for each element, take the mean of what agrees",
        of="changes",
        parameters=_sparse(0.2) | _ELECT,
    ),
    "sparse": MergeMethod(
        Element(partial(SparseWork.begin, elected=False)),
        "thin out the changes and add them",
        of="changes",
        parameters=_sparse(0.5),
    ),
}

#: Names that other programs have for the same, and the parameters that make it so.
ALIASES: dict[str, tuple[str, Mapping[str, Value]]] = {
    "weighted_sum": ("lerp", {}),
    "task_arithmetic": ("sum", {}),
    "linear": ("average", {}),
    "magnitude": ("sparse", {"sparsify": "magnitude"}),
    "dare": ("sparse", {"sparsify": "dare"}),
    "dare_linear": ("sparse", {"sparsify": "dare"}),
    "dare_ties": ("ties", {"sparsify": "dare", "density": 0.5}),
    "della": ("ties", {"sparsify": "della", "density": 0.5}),
    "della_linear": ("sparse", {"sparsify": "della"}),
    "breadcrumbs": ("sparse", {"sparsify": "breadcrumbs"}),
    "breadcrumbs_ties": ("ties", {"sparsify": "breadcrumbs", "density": 0.5}),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method with all of its parameters.

    Attributes:
        name: In `MERGE_METHODS`.
        method: The same.
        parameters: By name, defaults included.
    """

    name: str
    method: MergeMethod
    parameters: Mapping[str, Value]


def choose_method(
    name: str, terms: int, has_base: bool, parameters: Mapping[str, Value] | None = None
) -> Chosen:
    """Find a method and settle what it takes, if it can be used like this.

    Args:
        name: In `MERGE_METHODS` or `ALIASES`.
        terms: How many there are, beside the base.
        has_base: Whether there is a base.
        parameters: The user's; a tuple of one number for each term where they may differ by term.

    Raises:
        ArgumentError: Unknown method or parameter, a value out of range, too few or too many terms,
            a base too many or none.
    """
    asked = name
    name, preset = ALIASES.get(name, (name, {}))
    if name not in MERGE_METHODS:
        raise ArgumentError(f"unknown method `{name}`{nearest(name, MERGE_METHODS | ALIASES)}")
    method = MERGE_METHODS[name]
    least, most = method.terms
    if terms < least or (most is not None and terms > most):
        count = (
            f"{least}"
            if least == most
            else f"{least} or more"
            if most is None
            else f"{least} to {most}"
        )
        beside = " beside the base" if has_base else ""
        raise ArgumentError(f"method `{asked}` takes {count} models{beside}, not {terms}")
    if has_base and method.base == "none":
        raise ArgumentError(f"method `{asked}` takes no base: give it as a model with a weight")
    if not has_base and method.base == "needed":
        raise ArgumentError(f"method `{asked}` needs a base: say which model it is")
    given = dict(preset) | dict(parameters or {})
    return Chosen(name, method, settled(asked, method.parameters, terms, given))
