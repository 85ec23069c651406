"""LoKr: the Kronecker product of a small matrix and a larger one, each whole or in factors.

Edalati et al. (2022), arXiv:2212.10650; storage, Tucker's form and the law of alpha as in LyCORIS
(Yeh et al., 2023, arXiv:2309.14859) and ComfyUI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...elements import Element, element_in
from ...errors import LayerShapeError
from ...linalg import Kron, KronSvd, kron_svd, thinned
from .families import KroneckerProduct, OwnChange, Scaled
from .layer import Layer, by_role, multiplied
from .matrix import ThinMatrix, WholeMatrix, beside_identity, kron

# Inner size up to which an exact SVD of one matrix takes less than a second.
_SMALL = 1024


@dataclass(frozen=True, slots=True, eq=False)
class LokrLayer(Scaled, OwnChange, KroneckerProduct):
    """delta = scale * kron(w1, w2), where w1 is (a, b), w2 (c, d, *kernel), the change (ac, bd, *kernel).

    Attributes:
        w1: (a, b), or None where it is the product of w1_a and w1_b.
        w1_a, w1_b: (a, rank) and (rank, b), or None.
        w2: (c, d, *kernel), or None where it is made of w2_a and w2_b.
        w2_a, w2_b: (c, rank) and (rank, d * kernel), or None; in Tucker's form (rank, c) and
            (rank, d).
        t2: Tucker core (rank, rank, *kernel), or None.
        alpha: The stored number; None where the file has none. Without meaning where both matrices
            are whole.

    Raises:
        LayerShapeError: A matrix is missing or given twice, or its factors do not fit together.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        first, _ = self._matrices
        if len(first.shape) != 2:
            raise LayerShapeError(f"w1 is {first.shape}: it has two axes")

    is_compact: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """LoKr."""
        return "LoKr"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel), or with a flat kernel."""
        (a, b), (c, d, *kernel) = (one.shape for one in self._matrices)
        return (a * c, b * d, *kernel)

    @property
    def factor_rank(self) -> int | None:
        """Inner size of the factors of w2, else of w1: what alpha is divided by; None without any."""
        low = self.w2_b if self.w2_b is not None else self.w1_b
        return None if low is None else low.shape[0]

    @property
    def rank(self) -> int:
        """The product of both matrices' ranks, and no more than a side of the weight."""
        return min(self._columns, self.shape[0], math.prod(self.shape[1:]))

    @property
    def element(self) -> Element:
        """What the numbers of the larger matrix are, as stored."""
        known = (self.w2, self.w2_b, self.w1, self.w1_b)
        return next(element_in(one) for one in known if one is not None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role, as a file holds them; alpha as a float32 scalar."""
        return by_role(
            self.alpha,
            w1=self.w1,
            w1_a=self.w1_a,
            w1_b=self.w1_b,
            w2=self.w2,
            w2_a=self.w2_a,
            w2_b=self.w2_b,
            t2=self.t2,
        )

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), float32, whose product is the change.

        kron(AB, CD) is kron(A, C) kron(B, D). A whole matrix stands beside an identity.
        """
        if self._columns > self.rank:
            return beside_identity(self.delta().flatten(1) * strength)
        (up_1, down_1), (up_2, down_2) = (one.factors(torch.float32) for one in self._matrices)
        return kron(up_1, up_2) * (self.scale * strength), kron(down_1, down_2)

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change, of `shape`, multiplied out in ``dtype``."""
        dtype = dtype or torch.float32
        first, second = (one.product(dtype) for one in self._matrices)
        # The kernel is on the input side of the second, so its taps stay together.
        return kron(first, second).mul_(self.scale).reshape(self.shape)

    @property
    def is_thin(self) -> bool:
        """Whether `factors` take no more room than the change itself."""
        out, into = self.shape[0], math.prod(self.shape[1:])
        return self.rank * (out + into) <= out * into

    @property
    def is_small(self) -> bool:
        """Whether both matrices are small enough to be decomposed at once."""
        return all(min(one.rank, one.shape[0]) <= _SMALL for one in self._matrices)

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its alpha; of whole matrices, in the first.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
        """
        if self.w1 is None or self.factor_rank is not None or strength == 1:
            return Scaled.times(self, target, strength, has_alpha=has_alpha)
        return replace(self, w1=multiplied(target, self.w1, strength))

    def at_scale(self, scale: float) -> Layer:
        """Return the layer at a scale, where it has no alpha; no other program scales whole matrices."""
        if self.w1 is None or self.factor_rank is not None or scale == 1:
            return Scaled.at_scale(self, scale)
        return replace(self, w1=self.w1.float() * scale)

    def norm(self, dtype: torch.dtype | None = None) -> Tensor:
        """Frobenius norm of the change, float64, from its matrices."""
        return self.kron().norm()

    def missed(
        self, other: Layer, strength: float = 1.0, dtype: torch.dtype | None = None
    ) -> float:
        """Frobenius norm of the change at a strength less that of another layer, from matrices."""
        dtype = dtype or torch.float64
        product = other.kronecker()
        if product is None:
            return OwnChange.missed(self, other, strength, dtype)
        kron = self.kron()
        return replace(kron, scale=kron.scale * strength).distance(product.kron())

    def kronecker(self) -> KroneckerProduct:
        """Itself."""
        return self

    def kron(self) -> Kron:
        """Return the change as the product that it is, float64."""
        first, second = (one.product(torch.float64) for one in self._matrices)
        return Kron(first, second, self.scale)

    def svd(self) -> KronSvd:
        """Return the SVD of the change, exact, from those of both matrices."""
        first, second = (thinned(*one.factors(torch.float32)) for one in self._matrices)
        return kron_svd(first, second, self.scale)

    @property
    def _columns(self) -> int:
        first, second = self._matrices
        return first.rank * second.rank

    @property
    def _matrices(self) -> tuple[ThinMatrix | WholeMatrix, ThinMatrix | WholeMatrix]:
        return (
            _matrix("w1", self.w1, self.w1_a, self.w1_b, None),
            _matrix("w2", self.w2, self.w2_a, self.w2_b, self.t2),
        )


def _matrix(
    name: str, whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> ThinMatrix | WholeMatrix:
    if whole is not None:
        if not (a is None and b is None and core is None):
            raise LayerShapeError(f"{name} is there whole, and factors of it beside it")
        return WholeMatrix(name, whole)
    if a is None or b is None:
        raise LayerShapeError(
            f"{name} is incomplete: it is one tensor, or both of {name}_a and {name}_b"
        )
    return ThinMatrix(name, a, b, core)
