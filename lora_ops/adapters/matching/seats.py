"""Where the modules of an adapter lie in a checkpoint: by their names, else by those of its model.

A module that another program has under a name of its own, or as some rows of a fused projection, is
found by the table that `convert` renames it by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ...errors import TargetMismatchError
from ...models.architectures import ModelRows, Parameter, Piece
from ...models.pairing import COMPONENT_TITLES, nearest
from ...report import counted
from ..formats import BIAS, ModelNames, component, flat_name, resolve


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a module's weight lies in a checkpoint.

    Attributes:
        parameter: The parameter of the checkpoint.
        rows: Half-open range of the parameter's rows that the module changes; None for all.
        swapped: Whether the module has the halves of these rows in the other order.
        piece: Of a parameter that the file has in pieces: the one that is to be changed.
    """

    parameter: Parameter
    rows: tuple[int, int] | None = None
    swapped: bool = False
    piece: Piece | None = None

    @property
    def own(self) -> Parameter:
        """The rows as a parameter of their own."""
        if self.rows is None:
            return self.parameter
        first, last = self.rows
        start = self.parameter.rows[0] if self.parameter.rows else 0
        return replace(
            self.parameter,
            rows=(start + first, start + last),
            shape=(last - first, *self.parameter.shape[1:]),
        )

    @property
    def is_flat(self) -> bool:
        """Whether the file has its rows as others, so that factors do not multiply to them."""
        return self.piece is not None and self.piece.is_flat

    @property
    def is_all(self) -> bool:
        """Whether the module is the parameter as it stands."""
        return self.rows is None and not self.swapped

    def taken(self, weight: Tensor) -> Tensor:
        """Return the rows of a weight as the module has them."""
        part = weight if self.rows is None else weight[slice(*self.rows)]
        return torch.cat(part.chunk(2)[::-1]) if self.swapped else part

    def spread(self, part: Tensor) -> Tensor:
        """Return the module's rows as the weight has them, or its piece; zeros in its other rows."""
        part = torch.cat(part.chunk(2)[::-1]) if self.swapped else part
        result = part
        if self.rows is not None:
            result = part.new_zeros(self.parameter.shape[0], *part.shape[1:])
            result[slice(*self.rows)] = part
        if self.piece is None:
            return result
        result = result[slice(*self.piece.rows)]
        result = torch.cat(result.chunk(2)[::-1]) if self.piece.swapped else result
        result = result.mT if self.piece.turned else result
        # A table whose numbers the model has in a row, or an expert's weight, which is one of its stack.
        return result.reshape(self.piece.parameter.shape[0], -1) if self.is_flat else result

    @property
    def pieces(self) -> tuple[Seat, ...]:
        """The seats in the file's own tensors, of a parameter that it has in pieces; () of others."""
        first, last = self.rows or (0, self.parameter.shape[0])
        return tuple(
            replace(self, piece=piece)
            for piece in self.parameter.pieces
            if piece.rows[0] < last and first < piece.rows[1]
        )


def seats(
    modules: Collection[str], targets: Mapping[str, Parameter], names: Callable[[], ModelNames]
) -> dict[str, Seat]:
    """Return where each module lies; one that the checkpoint lacks is left out.

    Args:
        modules: Names as they stand in an adapter, of any naming.
        targets: The checkpoint's parameters by canonical target.
        names: Gives the model's names; called only if a module is not named as in the checkpoint.
    """
    found = {
        module: Seat(targets[target])
        for module, target in resolve(modules, targets).items()
        if target in targets
    }
    lost = [module for module in modules if module not in found]
    table = names() if lost else None
    for module in lost:
        place = table.place(module) if table is not None else None
        seat = _seat(place, targets) if place is not None else None
        if seat is not None:
            found[module] = seat
    return found


def _seat(place: ModelRows, targets: Mapping[str, Parameter]) -> Seat | None:
    whole = targets.get(place.native)
    if whole is None:
        return None
    if place.is_whole:
        return Seat(whole, swapped=place.swapped and _has_halves(place.native, targets))
    edges = [edge * whole.shape[0] for edge in (place.start, place.stop)]
    if any(edge.denominator > 1 for edge in edges):
        return None
    return Seat(whole, rows=(int(edges[0]), int(edges[1])))


def _has_halves(target: str, targets: Mapping[str, Parameter]) -> bool:
    """Whether a modulation has shift and scale alone: only then are its halves swapped."""
    weight = targets.get(target.removesuffix(BIAS))
    return weight is not None and len(weight.shape) == 2 and weight.shape[0] == 2 * weight.shape[1]


def bias_seat(seat: Seat, targets: Mapping[str, Parameter]) -> Seat | None:
    """Return where the bias beside a module's weight lies; None where the checkpoint has none."""
    bias = targets.get(seat.parameter.target + BIAS)
    return None if bias is None else replace(seat, parameter=bias)


def found_seats(
    modules: Collection[str],
    targets: Mapping[str, Parameter],
    names: Callable[[], ModelNames],
    *,
    adapter: str,
    checkpoint: str,
    allow_partial: bool | None = None,
) -> dict[str, Seat]:
    """Return where each module lies in a checkpoint, as `seats` does.

    Args:
        modules: Names as they stand in the adapter.
        targets: The checkpoint's parameters by canonical target.
        names: Gives the model's names.
        adapter: What messages call the adapter.
        checkpoint: What messages call the checkpoint.
        allow_partial: Whether some may be missing; None: they may not, and nobody can ask for it.

    Raises:
        TargetMismatchError: Two modules change the same rows, or the checkpoint lacks one.
    """
    found = seats(modules, targets, names)
    check_apart(found, adapter)
    lost = [module for module in modules if module not in found]
    if lost and not (allow_partial and found):
        can_go_on = bool(found) and allow_partial is not None
        raise _lost(lost, len(modules), targets, adapter, checkpoint, can_go_on=can_go_on)
    return found


def check_apart(found: Mapping[str, Seat], adapter: str) -> None:
    """Refuse modules of one adapter that change the same rows.

    Args:
        found: From `seats`.
        adapter: What messages call the adapter.

    Raises:
        TargetMismatchError: Two do; names them and the parameter.
    """
    by_target: dict[str, list[tuple[tuple[int, int], str]]] = {}
    for module, seat in found.items():
        rows = seat.rows or (0, max((1, *seat.parameter.shape[:1])))
        by_target.setdefault(seat.parameter.target, []).append((rows, module))
    for target, members in by_target.items():
        members.sort(key=lambda member: member[0])
        if any(behind[0] < rows[1] for (rows, _), (behind, _) in pairwise(members)):
            listed = ", ".join(f"`{module}`" for _, module in members)
            raise TargetMismatchError(
                f"{listed} of {adapter} all mean `{target}`; keep one of them", target=target
            )


def _lost(
    lost: Sequence[str],
    total: int,
    targets: Mapping[str, Parameter],
    adapter: str,
    checkpoint: str,
    *,
    can_go_on: bool,
) -> TargetMismatchError:
    spelled = {flat_name(target): target for target in targets}
    lines = [f"`{name}`, nearest: {_nearest(name, spelled)}" for name in lost[:3]]
    lacking = [
        f"it has no {COMPONENT_TITLES[part]}"
        for part in {component(name): None for name in lost}
        if not any(parameter.component == part for parameter in targets.values())
    ]
    way_out = "; `allow_partial=True` goes on with the others" if can_go_on else ""
    return TargetMismatchError(
        f"{len(lost)} of {counted(total, 'layer')} of {adapter} are not in "
        f"{checkpoint}: {'; '.join([*lines, *lacking])}; give the checkpoint that the LoRA was "
        f"made for{way_out}"
    )


def _nearest(name: str, spelled: Mapping[str, str]) -> str:
    """The target that is spelled most like a module, in backticks; names differ in their dots."""
    found = nearest(flat_name(name), spelled).strip("`")
    return f"`{spelled[found]}`" if found in spelled else "none"
