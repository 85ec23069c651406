"""One tensor of a bake."""

from __future__ import annotations

from torch import Tensor

from ...run.job import Outcome
from ..weights.change import BakedLayer as BakedLayer
from ..weights.tiles import computed
from .plan import BakePlan


class Baked(Outcome[Tensor]):
    """One tensor of the result; the reports are of the parameters in it."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """Its key, which is the checkpoint's."""
        return self.name

    @property
    def tensor(self) -> Tensor:
        """Shape as in the checkpoint, dtype as planned; the checkpoint's own where nothing changes."""
        if self.value is None:
            raise ValueError(f"`{self.name}` was written as it was computed")
        return self.value


def bake_tensor(plan: BakePlan, key: str) -> Baked:
    """Compute one tensor of the result.

    Args:
        plan: What becomes of it.
        key: Its key.

    Raises:
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
    """
    return Baked(key, *computed(plan.tensors[key]))
