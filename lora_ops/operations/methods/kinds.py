"""The three kinds of method for checkpoints, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from . import linear
from .elements.work import Task, Work
from .parameters import AnyParameter


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
        whole: Whether a tile must be the whole weight.
    """

    begin: Callable[[Task], Work]
    survey: Callable[[Tensor], Tensor] | None = None
    whole: bool = False


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
        moves: Whether it changes the base where all weights are 0.
    """

    how: Linear | Span | Element
    help: str
    terms: tuple[int, int | None] = (1, None)
    base: Literal["needed", "optional", "none"] = "needed"
    of: Literal["changes", "weights"] = "weights"
    parameters: Mapping[str, AnyParameter] = field(default_factory=dict[str, AnyParameter])
    moves: bool = False
