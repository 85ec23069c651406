"""One weight of several loaded models as one: how much of each is in it, and the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

#: Ways of merging; `b`, `c`, … are the shares of B, C, …. A test compares them with the core's.
METHODS = {
    "weighted_sum": "A + b (B - A) + c (C - A) + …: what the others leave is A's",
    "add_difference": "A + b (B - C), of three models",
    "slerp": "on the arc from A to B, of two models",
    "karcher": "mean of the directions on the sphere, at the mean norm",
    "geometric_median": "nearest to all in total; outvotes an outlier",
    "model_stock": "from A to the mean of the others, less far the less they agree; three models or more",
    "orthogonalise": "A and the last one's change, without its parts along the others' changes",
    "energy": "A and the others' changes at equal norms, whatever their sizes",
}
# What they are called in the core, where that is another name.
_CORE = {"weighted_sum": "sum"}
# Those in which A is one model among the others, and has a share like them.
_MEANS = ("slerp", "karcher", "geometric_median")
_LINEAR = ("weighted_sum", "add_difference")
_ROUNDING = 1e-9
# Numbers of a weight that are multiplied with those of the others at once.
_TILE = 1 << 20

#: From a device to a weight of one model on it, in float32.
Read: TypeAlias = Callable[[torch.device], Tensor]


def check(method: str, models: int, shares: Collection[tuple[float, ...]]) -> None:
    """Refuse what a method does not take.

    Args:
        method: A name in `METHODS`.
        models: How many there are, with A.
        shares: All that occur in some weight: of B, C, ….

    Raises:
        ArgumentError: Too few or too many models, or a share out of range.
    """
    from ...lora_ops import ArgumentError
    from ...lora_ops.operations.methods import choose_method

    if method not in METHODS:
        raise ArgumentError(f"no such method; use one of {', '.join(METHODS)}")
    is_mean = method in _MEANS
    choose_method(_CORE.get(method, method), models - (not is_mean), not is_mean)
    if is_mean and any(min(one) < 0 or math.fsum(one) > 1 + _ROUNDING for one in shares):
        raise ArgumentError(
            f"method `{method}` takes shares from 0 to 1 that add up to no more than 1: what they leave "
            "is A's share"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """One weight, computed when it is asked for.

    Attributes:
        method: A name in `METHODS`.
        shares: Of B, C, …; one at least is not 0.
        reads: The weight of A, B, C, ….
    """

    method: str
    shares: tuple[float, ...]
    reads: Sequence[Read]

    def __call__(self, device: torch.device) -> Tensor:
        """Return it on a device, in float32."""
        from ...lora_ops.operations.methods import weighed

        if self.method in _LINEAR:
            factors = self._known()
            there = [
                (factor, read) for factor, read in zip(factors, self.reads, strict=True) if factor
            ]
            if len(there) == 1 and there[0][0] == 1:
                return there[0][1](device)
            tensors = [read(device) for _, read in there]
            return weighed([factor for factor, _ in there], tensors, torch.empty_like(tensors[0]))
        tensors = [read(device) for read in self.reads]
        return weighed(self._spanned(tensors), tensors, torch.empty_like(tensors[0]))

    def _known(self) -> list[float]:
        """What to multiply the weights by, where that is known from the shares."""
        from ...lora_ops.operations.methods.linear import add_difference, plain_sum

        if self.method == "add_difference":
            solved = add_difference(self.shares, True)
        else:
            solved = plain_sum(self.shares, based=True, strength=1)
        # What shares that add up to 1 leave is A's, but for their rounding.
        return [0.0 if abs(solved.base) < _ROUNDING else solved.base, *solved.terms]

    def _spanned(self, tensors: Sequence[Tensor]) -> list[float]:
        """The same, where it depends on the angles between them."""
        from ...lora_ops.operations.methods import coefficients

        is_mean = self.method in _MEANS
        gram = _gram(tensors, of_changes=not is_mean)
        if self.method == "slerp":
            both = torch.ones(2, dtype=torch.float64)
            return coefficients("slerp", gram, both, t=self.shares[0]).tolist()
        own = [1 - math.fsum(self.shares)] if is_mean else []
        strengths = torch.tensor([*own, *self.shares], dtype=torch.float64)
        found: list[float] = coefficients(self.method, gram, strengths).tolist()
        return found if is_mean else [1 - math.fsum(found), *found]


def _gram(tensors: Sequence[Tensor], *, of_changes: bool) -> Tensor:
    """Inner products of all tensors, or of the others less the first; (T, T), float64, on the CPU."""
    flat = [one.reshape(-1) for one in tensors]
    products: list[Tensor] = []
    for start in range(0, max(1, flat[0].numel()), _TILE):
        tile = torch.stack([one[start : start + _TILE] for one in flat])
        tile = (tile.cpu() if tile.device.type == "mps" else tile).double()  # which has no float64
        tile = tile[1:] - tile[0] if of_changes else tile
        products.append(tile @ tile.mT)
    return torch.stack(products).sum(0).cpu()  # once for all: the CPU waits for each copy
