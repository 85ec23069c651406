"""The step of a bake: layers of adapters are added to a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.layers import Convention
from ...errors import NonFiniteError
from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...models.pairing import parameter_kind
from ...models.parameter import Piece
from ...report import LayerReport, Skip
from .shares import Share
from .step import Measured, not_numbers
from .terms import Delta, Rows, Stored, matrix

NO_CHANGE = "the layer is zero"


def as_stored(weight: Tensor, parameter: Parameter, piece: Piece | None = None) -> Tensor:
    """Return a weight as a file stores it, as a matrix: all of it, or a piece.

    Args:
        weight: As the model has it.
        parameter: Where the file has it, or the piece.
        piece: Which; None for all of the weight.
    """
    if piece is not None:
        weight = weight[slice(*piece.rows)]
        weight = torch.cat(weight.chunk(2)[::-1]) if piece.swapped else weight
        weight = weight.mT if piece.turned else weight
        weight = weight.reshape(piece.parameter.shape)
    return matrix(weight).mT if parameter.transposed else matrix(weight)


@dataclass(frozen=True, slots=True)
class BakedLayer(LayerReport):
    """One parameter that was changed: `norm` is of the change as meant, `residual` of what is lost.

    Attributes:
        cosine: Of the change as stored (baked - base) with the change as meant; 1 where it survived
            the rounding, 0 where nothing is left of it.
        gain: How much of the change meant is in the one stored: 1 where it survived.
    """

    cosine: float
    gain: float


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Everything that is added to one parameter.

    Attributes:
        parameter: Which, and where it lies.
        shares: The layers, at least one, in the order of the adapters.
        dora: Whose convention, of kinds that programs read differently.
    """

    parameter: Parameter
    shares: tuple[Share, ...]
    dora: Convention = "paper"

    @property
    def place(self) -> tuple[Parameter, Piece | None]:
        """See `Step`."""
        seat = self.shares[0].seat
        if seat is not None and seat.piece is not None:
            return seat.parameter, seat.piece
        return self.parameter, None

    @property
    def every(self) -> int:
        """See `Step`: all are, where a product takes longer than that."""
        return 1

    def change(self, weight: Stored, dtype: torch.dtype) -> Delta:
        """See `Step`."""
        base = None
        if any(share.needs_base for share in self.shares):
            seat = self.shares[0].seat
            if seat is not None and seat.piece is not None:  # of a weight with other pieces
                base = read_parameter(weight.source, seat.parameter)
            else:
                base = weight.whole()
                base = (base.mT if self.parameter.transposed else base).reshape(
                    self.parameter.shape
                )
        delta = Delta.of(self.shares, base, dtype, self.dora)
        return delta.transposed if self.parameter.transposed else delta

    def report(self, change: Rows, measured: Measured) -> BakedLayer | Skip:
        """See `Step`."""
        seat = self.shares[0].seat
        one = seat.parameter if seat is not None and seat.is_flat else self.parameter
        kind = parameter_kind(one)
        if measured.norm == 0:
            return Skip(one.target, one.component, kind, NO_CHANGE, 0.0)
        return BakedLayer(
            target=one.target,
            component=one.component,
            kind=kind,
            shape=one.shape,
            rank=change.rank if isinstance(change, Delta) else 0,
            norm=measured.norm,
            residual=measured.lost,
            cosine=measured.cosine,
            gain=measured.gain,
        )

    def not_finite(self, weight: Tensor, change: Tensor) -> NonFiniteError | None:
        """See `Step`."""
        one, way_out = self.parameter, "use another file, or strength 0 for that layer"
        names = " and ".join(dict.fromkeys(share.source.name for share in self.shares))
        return not_numbers(
            weight, f"`{one.key}` of the checkpoint", way_out, one.target
        ) or not_numbers(change, f"the change of `{one.target}` by {names}", way_out, one.target)
