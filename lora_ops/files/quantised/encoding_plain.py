"""Float8 without scales: each number as the nearest that the format has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import NonFiniteError
from .encoding import Chance, Encoder
from .fp8 import widened
from .scheme import Scheme


class PlainFloat(Encoder):
    """Codes that are the numbers themselves."""

    def encode(
        self, rows: Tensor, first: int, chance: Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder`.

        Raises:
            NonFiniteError: Some number is none, or beyond what the format holds.
        """
        exact = rows.float()
        limits = torch.finfo(self.dtype)
        # A little more is rounded to the largest; what is far beyond, torch makes NaN or the largest.
        if not bool((exact.abs() <= limits.max * (1 + limits.eps / 4)).all()):
            raise NonFiniteError(
                f"`{self.key}` holds numbers that float8 without scales does not, which ends at "
                f"{limits.max:.5g}; store it with scales, or keep it whole (`whole=`)"
            )
        codes = exact.to(self.dtype) if chance is None else chance.to_floats(exact, self.dtype)
        numbers = widened(codes)
        self.count(exact, numbers, first)
        return codes, numbers

    def parts(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class PlainScheme(Scheme):
    """A dtype as any other, with nothing beside it."""

    def beside(self, encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
        """Nothing."""
        return iter(())
