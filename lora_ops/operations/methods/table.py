"""The methods by name, what they take, and the one way to call them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import ArgumentError, NonFiniteError
from . import means, scaled


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a method takes.

    Attributes:
        default: Its value where none is given.
        low: The least that it may be.
        high: The most.
        help: What it is, for people.
        whole: Whether it is a count.
    """

    default: float
    low: float
    high: float
    help: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """A way of adding.

    Attributes:
        solve: From the Gram matrix (T, T) of the deltas and the strengths (T,), T > 1, to the
            coefficients (T,) on the deltas; all float64.
        help: What it does, in one line.
        most: The most inputs that it takes; None for any number.
        of_last: Whether it gives a part of the last input: nothing where that one is absent.
        parameters: What else `solve` takes, by name.
    """

    solve: Callable[..., Tensor]
    help: str
    most: int | None = None
    of_last: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])


_ITERATED = {
    "iterations": Parameter(100, 1, 10_000, "steps at most", whole=True),
    "tolerance": Parameter(1e-8, 0, 1, "stop at steps of this share of the size"),
}

METHODS: dict[str, Method] = {
    "sum": Method(scaled.scaled_sum, "add them, each times its strength"),
    "average": Method(means.average, "the sum over the sum of the strengths"),
    "slerp": Method(
        scaled.slerp,
        "on the arc from the first to the second",
        most=2,
        parameters={"t": Parameter(0.5, 0, 1, "how far from the first to the second")},
    ),
    "karcher": Method(
        means.karcher,
        "mean of the directions on the sphere, at the mean norm",
        parameters=_ITERATED,
    ),
    "geometric_median": Method(
        means.geometric_median, "nearest to all in total; outvotes an outlier", parameters=_ITERATED
    ),
    "model_stock": Method(
        means.model_stock, "the mean, weaker the less they agree; unrelated LoRAs nearly vanish"
    ),
    "orthogonalise": Method(
        scaled.orthogonalise,
        "the last, without its parts along the earlier ones",
        of_last=True,
    ),
    "energy": Method(scaled.energy, "add them at equal norms, whatever their sizes"),
}


def coefficients(method: str, gram: Tensor, strengths: Tensor, **parameters: float) -> Tensor:
    """Return what to multiply each delta by, so that their sum is the method's result.

    Args:
        method: A name in `METHODS`.
        gram: (T, T) inner products of the deltas themselves, strengths not folded in, float64.
        strengths: (T,) the user's factors, float64.
        **parameters: The method's own; defaults in `METHODS`.

    Returns:
        (T,) float64, always finite.

    Raises:
        ArgumentError: As `check_method`, or the strengths cancel where they are divided by.
        NonFiniteError: NaN or infinity in the Gram matrix or the strengths.
    """
    values = check_method(method, len(strengths), **parameters)
    if not bool(gram.isfinite().all() and strengths.isfinite().all()):
        raise NonFiniteError("an inner product or a strength is NaN or infinite: check the inputs")
    if len(strengths) == 1:
        return strengths
    return METHODS[method].solve(gram, strengths, **values)


def check_method(method: str, inputs: int, **parameters: float) -> dict[str, float]:
    """Return all of the method's parameters, with defaults, if it can be used like this.

    Raises:
        ArgumentError: Unknown method or parameter, a value out of range, or too many inputs.
    """
    if method not in METHODS:
        raise ArgumentError(f"unknown method `{method}`{nearest(method, METHODS)}")
    known = METHODS[method]
    if known.most is not None and inputs > known.most:
        raise ArgumentError(
            f"method `{method}` takes {known.most} inputs, not {inputs}; "
            "`karcher` is its like for any number"
        )
    check_names(method, known.parameters, parameters)
    for name, value in parameters.items():
        span = known.parameters[name]
        if not span.low <= value <= span.high or (span.whole and value != int(value)):
            kind = "a whole number" if span.whole else "a number"
            raise ArgumentError(
                f"method `{method}`: `{name}={value:g}`: give {kind} from {span.low:g} to {span.high:g}"
            )
    return {name: span.default for name, span in known.parameters.items()} | parameters


def check_names(method: str, known: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Raise an `ArgumentError` where something is given that a method does not take."""
    for name in given:
        if name not in known:
            raise ArgumentError(
                f"method `{method}` has no parameter `{name}`{nearest(name, known)}"
            )


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The end of a message about an unknown name: the nearest one, or all there are."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; it is one of {', '.join(known)}" if known else "; it takes none"
