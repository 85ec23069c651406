"""The families of layers, and what is so of all kinds in one.

A layer either has a change of its own (LoRA, LoHa, LoKr, a full difference), or says how to make one
from the weight that it changes (GLoRA, OFT, BOFT, IA3, DoRA, a replacement). Of both, some have an
alpha.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from ...errors import NonFiniteError, UnsupportedLayerError
from ...linalg import Kron, KronSvd
from .layer import Convention, Layer, check_fits

# The largest number of float32.
_MOST = 2.0**128 - 2.0**104


class OwnChange(Layer, Protocol):
    """The family whose change is there without the weight, and proportional to the strength."""

    __slots__ = ()

    @property
    def needs_base(self) -> bool:
        """Never: the factors alone make the change."""
        return False

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return strength * delta in the shape of the weight; all programs agree.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        dtype = dtype or torch.float32
        check_fits(self, base)
        return (self.delta(dtype) * strength).reshape(base.shape).to(base.device)


class ChangeOfBase(Layer, Protocol):
    """The family whose change is made from the weight."""

    __slots__ = ()

    is_proportional: ClassVar[bool] = False
    is_made_whole: ClassVar[bool] = True

    @property
    def needs_base(self) -> bool:
        """Always: without the weight there is no change."""
        return True

    @property
    def scale(self) -> float:
        """Always 1, unless the kind says otherwise."""
        return 1.0

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Refuse: the change depends on the weight; see `change`.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise _without_base(self.title)

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Refuse: the change depends on the weight; see `change`.

        Raises:
            UnsupportedLayerError: Always.
        """
        raise _without_base(self.title)


class KroneckerProduct(Layer, Protocol):
    """A layer whose change is the Kronecker product of two matrices."""

    __slots__ = ()

    @property
    def is_thin(self) -> bool:
        """Whether `factors` take no more room than the change itself."""
        ...

    @property
    def is_small(self) -> bool:
        """Whether both matrices are small enough to be decomposed at once."""
        ...

    def kron(self) -> Kron:
        """Return the change as the product that it is, float64."""
        ...

    def svd(self) -> KronSvd:
        """Return the SVD of the change, exact, from those of both matrices."""
        ...


class Scaled(Layer):
    """The kinds whose scale is an alpha over the inner size of their factors, `factor_rank`."""

    __slots__ = ()

    alpha: float | None

    @property
    def scale(self) -> float:
        """Alpha / inner size, and 1 where there is no alpha, or nothing that has an inner size."""
        rank = self.factor_rank
        return 1.0 if self.alpha is None or rank is None else self.alpha / rank

    @property
    def stored_alpha(self) -> float | None:
        """The stored number; None where the file has none."""
        return self.alpha

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its alpha.

        Raises:
            NonFiniteError: It is then out of the range of what stores it.
        """
        rank = self.factor_rank
        if strength == 1 or rank is None:
            return self
        result = (rank if self.alpha is None else self.alpha) * strength
        if abs(result) > _MOST:
            raise NonFiniteError(
                f"layer `{target}`: an alpha of {result:.3g} does not fit float32, in which files "
                "hold it; give a smaller strength",
                target=target,
            )
        return replace(cast("Any", self), alpha=result)

    def with_alpha(self) -> Layer:
        """Return the layer with its inner size as alpha, where it has none."""
        rank = self.factor_rank
        return (
            replace(cast("Any", self), alpha=float(rank)) if self.alpha is None and rank else self
        )

    def at_scale(self, scale: float) -> Layer:
        """Return the layer at a scale, where it has no alpha of its own."""
        rank = self.factor_rank
        if self.alpha is not None or rank is None:
            return self
        return replace(cast("Any", self), alpha=scale * rank)


def _without_base(title: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"a {title} layer has no change of its own: it is made from the base weight; "
        "give the base checkpoint, or use a plain LoRA"
    )
