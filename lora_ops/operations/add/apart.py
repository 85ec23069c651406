"""Changes of one weight, each in its own form: for sums with a LoKr, which has no thin factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from ...adapters.layers import FullLayer, Layer, innermost
from ...linalg import Kron, Operator, Part, part_inner


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """What stands for `combine.Stack` where factors would be as large as the weight.

    Attributes:
        parts: For each change its Kronecker product in float64, factors in float32, or difference.
        sizes: The rank of each change.
        shape: Of the weight as a matrix, (out, in * kernel).
    """

    parts: tuple[Part, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int]

    def exact(self) -> Apart:
        """The same object: its inner products are in float64 already."""
        return self

    def gram(self) -> Tensor:
        """Return the (T, T) inner products of the T changes; float64, on the CPU."""
        count = len(self.parts)
        found = torch.zeros((count, count), dtype=torch.float64)
        for i, j in combinations_with_replacement(range(count), 2):
            found[i, j] = found[j, i] = part_inner(self.parts[i], self.parts[j])
        return found

    def sum(self, coefficients: Sequence[float]) -> Operator:
        """Return the sum of coefficients times changes, float32, which is only multiplied with."""
        return Operator(tuple(map(_single, self.parts)), tuple(coefficients), (1, *self.shape))

    def square(self, coefficients: Sequence[float]) -> Tensor:
        """Return the squared Frobenius norm of that sum, float64."""
        factors = torch.tensor(coefficients, dtype=torch.float64)
        return (factors @ self.gram() @ factors).clamp(min=0)

    def missed(self, coefficients: Sequence[float], result: Layer) -> float:
        """Frobenius norm of that sum less the layer that is written for it."""
        written = _part(result)
        inners = (part_inner(part, written) for part in self.parts)
        both = sum(c * found for c, found in zip(coefficients, inners, strict=True))
        square = float(self.square(coefficients)) - 2 * both + part_inner(written, written)
        return max(square, 0.0) ** 0.5


def apart(layers: Sequence[Layer]) -> Apart:
    """Return layers of one weight, each in its own form.

    Args:
        layers: One or more, none made from the base weight.
    """
    parts = tuple(map(_part, layers))
    return Apart(parts, tuple(layer.rank for layer in layers), _shape(parts[0]))


def is_bulky(layer: Layer) -> bool:
    """Whether factors of a layer would be larger than the weight, and the layer is far smaller."""
    product = innermost(layer).kronecker()
    return product is not None and not product.is_thin


def _part(layer: Layer) -> Part:
    plain = innermost(layer)
    product = plain.kronecker()
    if product is not None:
        return product.kron()
    if isinstance(plain, FullLayer):
        return plain.diff.float().reshape(len(plain.diff) if plain.diff.ndim else 1, -1)
    return layer.factors()


def _shape(part: Part) -> tuple[int, int]:
    if isinstance(part, tuple):
        return part[0].shape[0], part[1].shape[1]
    out, into = part.shape
    return out, into


def _single(part: Part) -> Part:
    if isinstance(part, Kron):
        return Kron(part.first.float(), part.second.float(), part.scale)
    return part
