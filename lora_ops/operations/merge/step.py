"""The step of a merge: what is added to one parameter, or takes its place, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...models.pairing import parameter_kind
from ...models.parameter import Piece
from ...report import Skip
from ...source import TensorSource
from ..weights.change import BakedLayer
from ..weights.step import Measured, not_numbers
from ..weights.terms import Replacement, Rows, Stored, matrix_shape
from .combine import Leaf, leaves
from .opening import Node, Opening

UNCHANGED = "no number differs"


@dataclass(frozen=True, slots=True)
class MergedLayer(BakedLayer):
    """One parameter that was merged; measured on one in eight of the rows of a large one.

    Attributes:
        size: Norm of the change as a share of that of the base's weight.
        measured: Share of its rows that all of this was measured on.
    """

    size: float
    measured: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A step of the engine: what is added to one parameter of the base.

    Attributes:
        parameter: Which, and where it lies in the base.
        base: The checkpoint.
        node: What is added; or the weight that takes its place.
        place: See `Step`.
    """

    parameter: Parameter
    base: TensorSource
    node: Node
    place: tuple[Parameter, Piece | None]

    @property
    def every(self) -> int:
        """See `Step`."""
        return 8

    def change(self, weight: Stored, dtype: torch.dtype) -> Rows:
        """See `Step`."""
        whole, piece = self.place
        rows = Opening(whole, weight, dtype, self.base, piece).open(self.node)
        return Replacement(rows) if self.node.is_whole else rows

    def report(self, change: Rows, measured: Measured) -> MergedLayer | Skip:
        """See `Step`."""
        del change
        one, kind = self.parameter, parameter_kind(self.parameter)
        if measured.norm == 0:
            return Skip(one.target, one.component, kind, UNCHANGED, 0.0)
        return MergedLayer(
            target=one.target,
            component=one.component,
            kind=kind,
            shape=one.shape,
            rank=min(matrix_shape(one.shape)),
            norm=measured.norm,
            residual=measured.lost,
            cosine=measured.cosine,
            gain=measured.gain,
            size=measured.norm / measured.base if measured.base else float("inf"),
            measured=measured.share,
        )

    def not_finite(self, weight: Tensor, change: Tensor) -> NonFiniteError | None:
        """See `Step`."""
        way_out = "use another file, or keep the base's weights there (`allow_nonfinite`)"
        for leaf in (Leaf(self.base, self.parameter), *leaves(self.node)):
            numbers = read_parameter(leaf.source, leaf.parameter)
            what = f"`{leaf.parameter.key}` of {leaf.source.name}"
            if found := not_numbers(numbers, what, way_out, self.parameter.target):
                return found
        what = f"the change of `{self.parameter.target}`"
        return not_numbers(change, what, way_out, self.parameter.target)
