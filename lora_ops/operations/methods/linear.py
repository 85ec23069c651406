"""Linear methods for checkpoints: coefficients that are known from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ArgumentError
from .means import CANCELLED


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What to multiply whole weights by.

    A term that is a change, such as an adapter, is a whole weight less the base: it takes its own
    coefficient, and the base takes `base` and, for each such term, that term's coefficient.

    Attributes:
        base: Of the base; 0 without one.
        terms: Of each term.
    """

    base: float
    terms: tuple[float, ...]


def plain_sum(weights: Sequence[float], based: bool, strength: float) -> Coefficients:
    """sum(w T), or base + sum(w (T - base)): task arithmetic (arXiv:2212.04089)."""
    terms = tuple(strength * weight for weight in weights)
    return Coefficients(1 - math.fsum(terms) if based else 0.0, terms)


def mean(weights: Sequence[float], based: bool, strength: float) -> Coefficients:
    """The same with the weights divided by their sum."""
    total = math.fsum(weights)
    if abs(total) <= CANCELLED * math.fsum(map(abs, weights)):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ArgumentError(
            f"method `average` divides by the sum of the weights, and {listed} add up to 0; "
            "use method `sum`, or other weights"
        )
    return plain_sum([weight / total for weight in weights], based, strength)


def add_difference(weights: Sequence[float], _based: bool) -> Coefficients:
    """A + a (B - C), a being the weight of B."""
    return Coefficients(1.0, (weights[0], -weights[0]))


def sum_twice(weights: Sequence[float], _based: bool) -> Coefficients:
    """(1 - b) ((1 - a) A + a B) + b C, a and b being the weights of B and C."""
    a, b = weights
    return Coefficients((1 - a) * (1 - b), (a * (1 - b), b))


def sigmoid(weights: Sequence[float], _based: bool) -> Coefficients:
    """s(4 a) (A + B) - s(a) A with s(x) = 1 / (1 + exp(-x)): Chattiori's; at a = 0 it is B / 2."""
    wide, narrow = ((1 + math.tanh(x / 2)) / 2 for x in (4 * weights[0], weights[0]))
    return Coefficients(wide - narrow, (wide,))


def weighed(coefficients: Sequence[float], tensors: Sequence[Tensor], out: Tensor) -> Tensor:
    """Add float32 tensors, each times its coefficient, into memory for them.

    One of coefficient 0 is not looked at, and one of coefficient 1 alone is copied bit for bit. Two
    that share 1 between them are interpolated, so that equal numbers stay what they are.

    Args:
        coefficients: One for each tensor.
        tensors: Of one shape.
        out: Of that shape too, none of `tensors`; what it holds is lost.
    """
    there = [(c, t) for c, t in zip(coefficients, tensors, strict=True) if c]
    if not there:
        return out.zero_()
    if len(there) == 2 and there[0][0] + there[1][0] == 1:
        return torch.lerp(there[0][1], there[1][1], there[1][0], out=out)
    first, rest = there[0], there[1:]
    out.copy_(first[1]) if first[0] == 1 else torch.mul(first[1], first[0], out=out)
    for coefficient, tensor in rest:
        out.add_(tensor, alpha=coefficient)
    return out
