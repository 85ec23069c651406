"""A method by its name, with all that it takes, if it can be used as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import ArgumentError
from .catalogue import ALIASES, MERGE_METHODS
from .elements.work import Value
from .kinds import Element, MergeMethod
from .parameters import Choice, settled
from .table import nearest


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

    @property
    def survey(self) -> Callable[[Tensor], Tensor] | None:
        """What turns the values of all weights into what each is told; None if it needs no survey."""
        how = self.method.how
        if not isinstance(how, Element) or self.parameters.get("legacy") == "mecha":
            return None
        return how.survey


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
    count = (
        f"{least}"
        if least == most
        else f"{least} or more"
        if most is None
        else f"{least} to {most}"
    )
    if has_base and method.base == "none":
        raise ArgumentError(f"method `{asked}` takes no base: give it as a model with a weight")
    if not has_base and method.base == "needed":
        raise ArgumentError(
            f"method `{asked}` needs a base, and beside it {count} of the models: say which is the base"
        )
    if terms < least or (most is not None and terms > most):
        beside = " beside the base" if has_base else ""
        raise ArgumentError(f"method `{asked}` takes {count} models{beside}, not {terms}")
    given = dict(preset) | dict(parameters or {})
    return Chosen(name, method, settled(asked, method.parameters, terms, given))


def method_taken(name: str, sparsify: str = "none") -> MergeMethod | None:
    """The method of a step: what it is called elsewhere, and sums of thinned changes; None for no method.

    Args:
        name: In `MERGE_METHODS` or `ALIASES`.
        sparsify: How changes are thinned before.
    """
    name, _ = ALIASES.get(name, (name, {}))
    if sparsify != "none" and name in ("sum", "average"):
        name = "sparse"
    return MERGE_METHODS.get(name)


def check_legacy(name: str, legacy: str, sparsify: str = "none") -> None:
    """Raise an `ArgumentError` where a method has no meaning of its own in another program.

    Args:
        name: Of the method; one that there is not is for `choose_method` to refuse.
        legacy: The program; `no` for none.
        sparsify: How changes are thinned before.
    """
    method = method_taken(name, sparsify)
    if legacy == "no" or method is None or legacy in legacies(method):
        return
    there = {other: legacies(one)[1:] for other, one in MERGE_METHODS.items()}
    have = "; ".join(f"{other} ({', '.join(own)})" for other, own in there.items() if own)
    raise ArgumentError(
        f"method `{name}` has no meaning of its own in `{legacy}`; leave `legacy` out: these have {have}"
    )


def legacies(method: MergeMethod) -> tuple[str, ...]:
    """The programs of which a method has a meaning of its own, after `no` for none."""
    own = method.parameters.get("legacy")
    return own.options if isinstance(own, Choice) else ()
