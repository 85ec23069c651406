"""Changes of one weight, each in its own form: for sums with a LoKr, or a change that is made from the weight.

Neither has thin factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from ...adapters.layers import FullLayer, Layer, MadeLayer, innermost
from ...linalg import Kron, Operator, Part, part_inner
from ...run.devices import Placement, upload


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """What stands for `combine.Stack` where factors would be as large as the weight.

    Attributes:
        parts: For each change its Kronecker product in float64, factors in float32, or difference.
        sizes: The rank of each change.
        shape: Of the weight as a matrix, (out, in * kernel).
        placement: Where a sum that is multiplied out is decomposed; None: on the CPU.
    """

    parts: tuple[Part, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int]
    placement: Placement | None = None

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

    def sum(self, coefficients: Sequence[float]) -> Operator | Tensor:
        """Return the sum of coefficients times changes, (1, out, in), float32.

        It is only multiplied with, unless a part has as many numbers as the sum.
        """
        whole = Operator(tuple(map(_single, self.parts)), tuple(coefficients), (1, *self.shape))
        if not any(isinstance(part, Tensor) for part in self.parts):
            return whole
        return whole.dense() if self.placement is None else upload(whole.dense(), self.placement)

    def tiles(self, part: slice) -> Tensor:
        """Return rows of each change multiplied out: (T, rows, in * kernel), float32."""
        return torch.stack([_rows(one, part) for one in map(_single, self.parts)])

    def square(self, coefficients: Sequence[float]) -> Tensor:
        """Return the squared Frobenius norm of that sum, float64."""
        factors = torch.tensor(coefficients, dtype=torch.float64)
        return (factors @ self.gram() @ factors).clamp(min=0)

    def inner(self, coefficients: Sequence[float], result: Layer) -> float:
        """Return the inner product of that sum with a layer."""
        written = _part(result)
        inners = (part_inner(part, written) for part in self.parts)
        return sum(c * found for c, found in zip(coefficients, inners, strict=True))

    def missed(self, coefficients: Sequence[float], result: Layer) -> float:
        """Frobenius norm of that sum less the layer that is written for it."""
        written = _part(result)
        both = self.inner(coefficients, result)
        square = float(self.square(coefficients)) - 2 * both + part_inner(written, written)
        return max(square, 0.0) ** 0.5


def apart(layers: Sequence[Layer], placement: Placement | None = None) -> Apart:
    """Return layers of one weight, each in its own form.

    Args:
        layers: One or more; what is made from the base weight is made here.
        placement: Where a sum that is multiplied out is decomposed; None: on the CPU.
    """
    parts = tuple(map(_part, layers))
    shape = _shape(parts[0])
    sizes = [min(shape) if is_made(one) else one.rank for one in layers]
    return Apart(parts, tuple(sizes), shape, placement)


def is_made(layer: Layer) -> bool:
    """Whether a layer is what another made of the weight, and has all of its directions."""
    plain = innermost(layer)
    return isinstance(plain, MadeLayer) and plain.is_dense


def is_bulky(layer: Layer) -> bool:
    """Whether factors of a layer would be larger than the weight, and the layer is far smaller."""
    if is_made(layer):
        return len(layer.shape) > 1
    product = innermost(layer).kronecker()
    return product is not None and not product.is_thin


def _part(layer: Layer) -> Part:
    plain = innermost(layer)
    product = plain.kronecker()
    if product is not None:
        return product.kron()
    if isinstance(plain, MadeLayer) and plain.is_dense:
        return plain.delta().flatten(1)
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


def _rows(part: Part, rows: slice) -> Tensor:
    if isinstance(part, Kron):
        return part.rows(rows)
    return part[rows] if isinstance(part, Tensor) else part[0][rows] @ part[1]
