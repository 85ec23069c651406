"""The methods whose result is made from factors, by name, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ....errors import ArgumentError
from ..catalogue import ALIASES, MERGE_METHODS
from ..elements.work import Task, Value
from ..kinds import Element
from ..parameters import AnyParameter, Choice, PerTerm, settled
from ..table import METHODS, Parameter, check_method, check_names, nearest
from . import compressed, directions
from .elements import in_core, in_rows
from .frame import Factors, Frame
from .units import rank_units


@dataclass(frozen=True, slots=True)
class FactorMethod:
    """A way of adding that gives factors.

    Attributes:
        solve: From the frame of two changes or more, and the task, to factors up and down, float32.
        help: What it does, in one line.
        most: The most inputs that it takes; None for any number.
        parameters: What it takes, by name.
        fixed: Parameters that the name stands for.
        element: What it does to elements; None where it is about directions.
    """

    solve: Callable[[Frame, Task], Factors]
    help: str
    most: int | None = None
    parameters: Mapping[str, AnyParameter] = field(default_factory=dict[str, AnyParameter])
    fixed: Mapping[str, Value] = field(default_factory=dict[str, Value])
    element: Element | None = None


_SEED = {"seed": Parameter(0, 0, 2**53, "of what is drawn by chance", whole=True)}
_DIRECTIONS = {
    "directions": Parameter(
        0, 0, 1 << 16, "directions of the result; 0: the largest input's", whole=True
    )
}
_CORE = "on small matrices in the inputs' common directions"


def _element(name: str) -> Element:
    """What a method of checkpoints does to elements."""
    how = MERGE_METHODS[name].how
    if not isinstance(how, Element):
        raise TypeError(f"`{name}` treats no elements")
    return how


def _of_elements(name: str, help: str, *scopes: str) -> FactorMethod:
    """A method of checkpoints, on the cores of LoRAs or, where that is asked for, on elements."""
    merge, preset = ALIASES.get(name, (name, {}))
    how = _element(merge)
    scope = Choice(
        ("core", "element", *scopes),
        f"where it works: {_CORE}{', on whole ranks' if scopes else ''}, or on the weight's elements, which no LoRA holds",
    )
    own = {
        key: _with_default(one, preset.get(key, one.default))
        for key, one in MERGE_METHODS[merge].parameters.items()
        if key == "density" or key not in preset
    }
    fixed = {key: value for key, value in preset.items() if key not in own}
    solve = partial(_scoped, how=how)
    return FactorMethod(
        solve, help, parameters={"scope": scope} | own | _SEED, fixed=fixed, element=how
    )


def _scoped(frame: Frame, task: Task, *, how: Element) -> Factors:
    return (
        rank_units(frame, task)
        if task.choice("scope") == "units"
        else in_core(frame, task, how=how)
    )


def _with_default(parameter: AnyParameter, default: Value) -> AnyParameter:
    if isinstance(parameter, Choice):
        return parameter
    if isinstance(parameter, PerTerm):
        return replace(parameter, number=replace(parameter.number, default=float(str(default))))
    return replace(parameter, default=float(str(default)))


_TIES = _of_elements("ties", "trim, elect a sign for each element, take the mean of what agrees")
_INSIDE = {key: one for key, one in _TIES.parameters.items() if key != "scope"}

FACTORED: dict[str, FactorMethod] = {
    "ties": _TIES,
    "magnitude": _of_elements("magnitude", "keep each one's largest elements and add them"),
    "dare": _of_elements("dare", "keep elements by chance, made up for, and add them", "units"),
    "dare_ties": _of_elements(
        "dare_ties", "keep elements by chance, then elect signs as TIES does"
    ),
    "della": _of_elements("della", "keep elements by chance, large ones rather, then elect signs"),
    "breadcrumbs": _of_elements("breadcrumbs", "keep elements but the smallest and the largest"),
    "sce": _of_elements("sce", "keep the elements that differ most, inputs weighed by them"),
    "tsv": FactorMethod(
        directions.task_singular_vectors,
        "TSV-M: all inputs' singular directions, made orthogonal to each other",
    ),
    "iso": FactorMethod(
        directions.isotropic, "Iso-C: the sum, all of its directions at their mean strength"
    ),
    "np": FactorMethod(
        directions.null_space,
        "NP-LoRA: the first gives way in the principal directions of the second",
        most=2,
        parameters={
            "directions": Parameter(0, 0, 1 << 16, "of the second; 0: all of them", whole=True),
            "mu": Parameter(0.5, 0, 1e6, "how far: the share mu / (1 + mu) goes"),
        },
    ),
    "knots": FactorMethod(
        partial(in_rows, how=_element("ties")),
        "KnOTS: TIES in common output directions",
        parameters=_INSIDE,
    ),
    "ctm": FactorMethod(
        partial(compressed.compress_then_merge, how=_element("ties")),
        "CtM: compress into one subspace, then add there",
        parameters=_DIRECTIONS
        | {
            "beta": Parameter(1, 0, 1, "1: each counts by its energy; 0: all alike"),
            "merge": Choice(("sum", "ties"), "what is done in the subspace"),
        }
        | _INSIDE,
    ),
    "lego": FactorMethod(
        compressed.lego, "LoRA-LEGO: ranks of all inputs clustered", parameters=_DIRECTIONS | _SEED
    ),
}


def check_adding(
    method: str, inputs: int, parameters: Mapping[str, Value], *, recompresses: bool = True
) -> dict[str, Value]:
    """Return all parameters of a way of adding, with defaults, if it can be used like this.

    Args:
        method: In `METHODS` or `FACTORED`.
        inputs: How many there are.
        parameters: The user's.
        recompresses: Whether the result is cut to a rank.

    Raises:
        ArgumentError: Unknown method or parameter, a value out of range, too many inputs, or a
            method on elements without a rank.
    """
    if method not in FACTORED:
        if method not in METHODS:
            raise ArgumentError(f"unknown method `{method}`{nearest(method, METHODS | FACTORED)}")
        check_names(method, METHODS[method].parameters, parameters)
        return dict(check_method(method, inputs, **_numbers(method, parameters)))
    known = FACTORED[method]
    if known.most is not None and inputs > known.most:
        raise ArgumentError(f"method `{method}` takes {known.most} inputs, not {inputs}")
    told = {**settled(method, known.parameters, inputs, parameters), **known.fixed}
    if told.get("scope") == "element" and not recompresses:
        raise ArgumentError(
            f"method `{method}` on elements has a result that no LoRA holds; say how many directions to "
            "keep (`rule=64`), take the scope `core`, or merge the inputs into their checkpoint"
        )
    return told


def _numbers(method: str, parameters: Mapping[str, Value]) -> dict[str, float]:
    for name, value in parameters.items():
        if isinstance(value, str | tuple):
            raise ArgumentError(
                f"method `{method}`: `{name}={value}`: give a number, as in `slerp,t=0.3`"
            )
    return {name: float(str(value)) for name, value in parameters.items()}
