"""The true change of a weight, formed once and measured: what extraction and verification share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..linalg import frobenius
from ..linalg.rounding import Grid
from ..source import TensorSource
from .architectures import Parameter
from .grids import parameter_grid, parameter_reach
from .pairing import Pair, is_candidate

_PART = 1 << 20  # elements
_CACHED = 1 << 18  # of which two copies in float32 stay in a core's cache


@dataclass(frozen=True, slots=True)
class Sides:
    """The two checkpoints that are compared.

    Attributes:
        base: The checkpoint that training started from.
        tuned: The checkpoint that came out of it.
    """

    base: TensorSource
    tuned: TensorSource

    def read(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Read one parameter from both, as stored."""
        return self.read_base(pair), read_parameter(self.tuned, pair.tuned)

    def read_base(self, pair: Pair) -> Tensor:
        """Read one parameter from the base, as stored."""
        return read_parameter(self.base, pair.base)

    def is_free(self, pair: Pair) -> bool:
        """Whether the tuned tensor that was read is nobody else's: it may be written into."""
        one = pair.tuned
        return not one.pieces and self.tuned.makes(one.key)

    def grids(self, pair: Pair) -> tuple[Grid, Grid]:
        """How far apart the numbers of one parameter can be stored on both sides."""
        return parameter_grid(self.base, pair.base), parameter_grid(self.tuned, pair.tuned)

    def reaches(self, pair: Pair) -> tuple[Grid, Grid]:
        """How far apart two programs may have stored the numbers of one parameter, on both sides."""
        return parameter_reach(self.base, pair.base), parameter_reach(self.tuned, pair.tuned)

    def coarse(self, pair: Pair) -> str | None:
        """What the coarser side is stored as, if that is in 8 bits a number or fewer; else None."""
        found: dict[str, float] = {}
        for source, parameter in ((self.base, pair.base), (self.tuned, pair.tuned)):
            for key in _keys(parameter):
                count = max(1, math.prod(source.shape(key)))
                found[source.storage(key)] = source.stored_size(key) * 8 / count
        name = min(found, key=found.__getitem__)
        # Scales are told apart from numbers by this: nothing between them is in use.
        return name if found[name] < 16 else None


def _keys(parameter: Parameter) -> Iterator[str]:
    """The tensors that a parameter is made of."""
    if not parameter.pieces:
        yield parameter.key
    for piece in parameter.pieces:
        yield from _keys(piece.parameter)


def read_parameter(source: TensorSource, parameter: Parameter) -> Tensor:
    """Read a parameter as the model has it: its rows of a fused tensor, the right way round, joined."""
    if parameter.pieces:
        tensor = _joined(source, parameter)[slice(*parameter.rows or (None,))]
    else:
        tensor = _stored(source, parameter)
    return tensor.mT.contiguous() if parameter.transposed else tensor


def _stored(source: TensorSource, parameter: Parameter) -> Tensor:
    """The tensor of a parameter, or those of its rows that are asked for."""
    key = parameter.key
    if parameter.rows is None:
        return source.tensor(key)
    first, last = parameter.rows
    if not source.has_ranges(key):
        return source.tensor(key)[first:last]
    row = source.shape(key)[1:]
    rows = torch.empty((last - first, *row), dtype=source.dtype(key))
    source.read_into(key, first * math.prod(row), rows)
    return rows


def _joined(source: TensorSource, parameter: Parameter) -> Tensor:
    """All rows of a parameter that another program has in pieces."""
    parts: list[Tensor] = []
    for piece in parameter.pieces:
        part = read_parameter(source, piece.parameter)
        part = part.mT if piece.turned else part
        parts.append(torch.cat(part.chunk(2)[::-1]) if piece.swapped else part)
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1:  # eight bits are not promoted; float32 holds all that are narrower
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        parts = [part.to(wide) for part in parts]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(-1, *parameter.shape[1:])


def difference(base: Tensor, tuned: Tensor, into: Tensor | None = None) -> Tensor:
    """Return `tuned - base` in float32, fresh or in given memory, from the numbers as stored.

    New pages cost more than the subtraction: `into` may be `tuned` itself, where that is nobody else's.
    Float64 weights are subtracted in float64: their change may be below float32's spacing.
    """
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    if into is None or into.dtype != torch.float32 or not into.is_contiguous():
        into = torch.empty(tuned.shape, dtype=torch.float32, device=tuned.device)
    delta = into
    flat = (delta.view(-1), base.reshape(-1), tuned.reshape(-1))
    # In parts, so that the widened copies stay small enough to be used again from cache.
    size = _CACHED if delta.device.type == "cpu" else _PART
    for part, old, new in zip(*(tensor.split(size) for tensor in flat), strict=True):
        if wide is torch.float32:
            part.copy_(new).sub_(old.to(wide))
        else:
            part.copy_(new.to(wide) - old.to(wide))
    return delta


def check_finite(sides: Sides, pair: Pair, base: Tensor, tuned: Tensor) -> None:
    """Raise a NonFiniteError that says which file holds how many NaN or infinite values, and where.

    To be called when the norm of the difference is not finite.
    """
    way_out = f'`exclude="{pair.target}"` or ' if is_candidate(pair.base) else ""
    for source, tensor, key in (
        (sides.base, base, pair.base.key),
        (sides.tuned, tuned, pair.tuned.key),
    ):
        wide = tensor.float()
        nan, infinite = int(wide.isnan().sum()), int(wide.isinf().sum())
        if nan or infinite:
            raise NonFiniteError(
                f"`{key}` holds {nan} NaN and {infinite} infinite values out of {wide.numel()}; "
                f"the file is damaged, or its training diverged: {way_out}use another file",
                target=pair.target,
                path=source.name,
            )
    raise NonFiniteError(
        f"the change of `{pair.target}` is too large for float32; are these two of one family?",
        target=pair.target,
    )


def measured_difference(sides: Sides, pair: Pair) -> tuple[Tensor, float]:
    """Read a parameter from both sides, once, and return its change and the Frobenius norm of that.

    Raises:
        NonFiniteError: A side holds NaN or infinity.
    """
    return measured(sides, pair, *sides.read(pair))


def measured(sides: Sides, pair: Pair, base: Tensor, tuned: Tensor) -> tuple[Tensor, float]:
    """Return the change of a parameter that was read from both sides, and its Frobenius norm.

    Raises:
        NonFiniteError: See `measured_difference`.
    """
    delta = difference(base, tuned)
    norm = delta_norm(delta)
    if not math.isfinite(norm):
        check_finite(sides, pair, base, tuned)
    return delta, norm


def delta_norm(delta: Tensor) -> float:
    """Frobenius norm of a change, (out, *rest) or of any shape: summed by rows, where it has any, as extraction does."""
    return float(frobenius(delta.flatten(1) if delta.ndim > 1 else delta.reshape(1, -1)))


def are_floats(sides: Sides, pair: Pair) -> bool:
    """Whether both sides store floating point numbers: what can be subtracted and measured."""
    dtypes = (sides.base.dtype(pair.base.key), sides.tuned.dtype(pair.tuned.key))
    return all(dtype.is_floating_point for dtype in dtypes)


def change_norm(sides: Sides, pair: Pair) -> float:
    """Frobenius norm of the change of a parameter of any shape; 0 for what is not a float.

    Raises:
        NonFiniteError: A side holds NaN or infinity.
    """
    if not are_floats(sides, pair):
        return 0.0
    base, tuned = sides.read(pair)
    # In parts: a table of a hundred thousand rows would need a gigabyte in float32.
    parts = zip(base.reshape(-1).split(_PART), tuned.reshape(-1).split(_PART), strict=True)
    norm = math.hypot(*(float(frobenius(difference(*part).unsqueeze(0))) for part in parts))
    if not math.isfinite(norm):
        check_finite(sides, pair, base, tuned)
    return norm
