"""The arithmetic of a bake: one tensor, in tiles of rows small enough to stay in cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.layers import Convention, LoraLayer
from ...errors import NonFiniteError
from ...linalg.storage import spelled
from ...models.differences import read_parameter
from ...models.pairing import parameter_kind
from ...report import LayerReport, Skip
from .plan import BakePlan
from .terms import Change, Share

NO_CHANGE = "the layer is zero"

# Elements: larger ones leave the cache, smaller ones wait for each other between operations.
_TILE = 1 << 19


@dataclass(frozen=True, slots=True)
class BakedLayer(LayerReport):
    """One parameter that was changed: `norm` is of the change as meant, `residual` of what is lost.

    Attributes:
        cosine: Of the change as stored (baked - base) with the change as meant; 1 where it survived
            the rounding, 0 where nothing is left of it.
    """

    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class Baked:
    """One tensor of the result.

    Attributes:
        key: Its key, which is the checkpoint's.
        tensor: Shape as in the checkpoint, dtype as planned.
        reports: Of the parameters in it that changed, or that a layer of zeros left as they were.
    """

    key: str
    tensor: Tensor
    reports: tuple[BakedLayer | Skip, ...] = ()


def bake_tensor(plan: BakePlan, key: str, *, fresh: bool = False) -> Baked:
    """Compute one tensor of the result.

    Args:
        plan: What becomes of it.
        key: Its key.
        fresh: Whether the checkpoint hands out new memory, which may be written into.

    Raises:
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
    """
    stored = plan.checkpoint.tensor(key)
    dtype, changes = plan.dtypes[key], plan.changes.get(key, ())
    if dtype == stored.dtype and not changes:
        return Baked(key, stored)
    result = stored if dtype == stored.dtype and fresh else _converted(stored, dtype, key)
    reports = tuple(_apply(change, stored, result, plan) for change in changes)
    return Baked(key, result, reports)


def matrix(tensor: Tensor) -> Tensor:
    """A weight as (out, in), the kernel on the input side; a vector as a column."""
    return tensor.reshape(len(tensor) if tensor.ndim else 1, -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Delta:
    """A change as a matrix, the kernel on the input side: up @ down, and dense parts beside it.

    Attributes:
        up: (out, r), strengths and scales included.
        down: (r, in).
        whole: (out, in), or None.
        rank: Of all layers together.
    """

    up: Tensor
    down: Tensor
    whole: Tensor | None
    rank: int

    @staticmethod
    def of(
        shares: Sequence[Share], base: Tensor, dtype: torch.dtype, convention: Convention
    ) -> _Delta:
        """Read layers and join them; the products of a LoRA's factors are not formed.

        Args:
            shares: The layers.
            base: What layers that are made from the weight are made from: as the model has it.
            dtype: What to compute in.
            convention: Whose.
        """
        ups: list[Tensor] = []
        downs: list[Tensor] = []
        whole: Tensor | None = None
        rank = 0
        for share, seat in ((one, one.seat) for one in shares if one.seat is not None):
            layer = share.read()
            rank += layer.rank
            if isinstance(layer, LoraLayer) and dtype == torch.float32:
                up, down = layer.factors(share.strength)
                ups.append(seat.spread(up))
                downs.append(down)
                continue
            if layer.needs_base:
                own = seat.taken(base)
                change = matrix(layer.change(own, share.strength, dtype, convention))
            else:
                change = matrix(layer.delta(dtype)) * share.strength
            change = seat.spread(change)
            whole = change if whole is None else whole.add_(change)
        if whole is not None:  # the product may have no columns, but must have a shape
            ups.append(whole.new_empty(len(whole), 0))
            downs.append(whole.new_empty(0, whole.shape[1]))
        return _Delta(torch.cat(ups, 1), torch.cat(downs), whole, rank)

    @property
    def transposed(self) -> _Delta:
        """The same for a weight that is stored (in, out)."""
        whole = None if self.whole is None else self.whole.mT
        return _Delta(self.down.mT, self.up.mT, whole, self.rank)

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """Compute some rows of the change into memory for them."""
        torch.mm(self.up[part], self.down, out=out)
        return out if self.whole is None else out.add_(self.whole[part])


def _converted(stored: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """The numbers in a dtype, in new contiguous memory. NaN and infinity may stay, not arise."""
    result = torch.empty(stored.shape, dtype=dtype).copy_(stored)
    if dtype == stored.dtype:
        return result
    wide = _wide(stored.dtype, dtype)
    for before, after in zip(
        stored.reshape(-1).split(_TILE), result.view(-1).split(_TILE), strict=True
    ):
        numbers = before.to(wide)
        lost = numbers.isfinite() & ~after.to(wide).isfinite()
        if bool(lost.any()):
            raise _overflow(f"tensor `{key}`", numbers[lost], dtype)
    return result


def _apply(change: Change, stored: Tensor, result: Tensor, plan: BakePlan) -> BakedLayer | Skip:
    """Add a change to what the result holds: the stored numbers, maybe in the same memory."""
    parameter, dtype = change.parameter, result.dtype
    wide = _wide(stored.dtype, dtype)
    rows = slice(*parameter.rows) if parameter.rows else slice(None)
    base, baked = matrix(stored)[rows], matrix(result)[rows]
    own = (base.mT if parameter.transposed else base).reshape(parameter.shape)
    seat = change.shares[0].seat
    if seat is not None and seat.piece is not None and change.needs_base:
        own = read_parameter(plan.checkpoint, seat.parameter)  # with its other pieces
    delta = _Delta.of(change.shares, own, wide, plan.dora)
    if parameter.transposed:
        delta = delta.transposed
    height = max(1, _TILE // max(1, base.shape[1]))
    # Three tiles of memory serve all tiles.
    memory = torch.empty(3, min(height, len(base)), base.shape[1], dtype=wide)
    norms = [(0.0, 0.0, 0.0)]
    for old, new, start in zip(
        base.split(height), baked.split(height), range(0, len(base), height), strict=True
    ):
        d, w, x = memory[:, : len(old)]
        norm = _norm(delta.rows(slice(start, start + height), d))
        if norm == 0:
            continue  # a minus zero plus a zero would be a zero
        w.copy_(old)
        new.copy_(torch.add(w, d, out=x))
        moved = _norm(x.copy_(new).sub_(w))
        lost = _norm(x.sub_(d))
        if not math.isfinite(lost):
            raise _not_finite(change, w, d, dtype)
        norms.append((norm, moved, lost))
    norm, moved, lost = (math.hypot(*tiles) for tiles in zip(*norms, strict=True))
    kind = parameter_kind(parameter)
    if norm == 0:
        return Skip(parameter.target, parameter.component, kind, NO_CHANGE, norm)
    return BakedLayer(
        target=parameter.target,
        component=parameter.component,
        kind=kind,
        shape=parameter.shape,
        rank=delta.rank,
        norm=norm,
        residual=lost,
        cosine=_cosine(norm, moved, lost),
    )


def _norm(tile: Tensor) -> float:
    """Frobenius norm of a contiguous tile; a BLAS product reads it faster than a reduction does."""
    flat = tile.view(-1)
    return math.sqrt(float(torch.dot(flat, flat)))


def _cosine(one: float, other: float, distance: float) -> float:
    """Of the angle between two sides of a triangle; 0 where the other has no length."""
    if other == 0:
        return 0.0
    cosine = (one**2 + other**2 - distance**2) / (2 * one * other)
    return max(-1.0, min(1.0, cosine))


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """What to compute in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _not_finite(change: Change, base: Tensor, delta: Tensor, dtype: torch.dtype) -> NonFiniteError:
    """The error for a tile in which something is not finite: whose fault it is."""
    parameter = change.parameter
    names = " and ".join(dict.fromkeys(share.source.name for share in change.shares))
    for numbers, what in (
        (base, f"`{parameter.key}` of the checkpoint"),
        (delta, f"the change of `{parameter.target}` by {names}"),
    ):
        nan, infinite = int(numbers.isnan().sum()), int(numbers.isinf().sum())
        if nan or infinite:
            return NonFiniteError(
                f"{what} holds {nan} NaN and {infinite} infinite values; the file is damaged, or "
                "its training diverged: use another file, or strength 0 for that layer",
                target=parameter.target,
            )
    return _overflow(f"layer `{parameter.target}`", base + delta, dtype)


def _overflow(what: str, numbers: Tensor, dtype: torch.dtype) -> NonFiniteError:
    return NonFiniteError(
        f"{what}: values up to {float(numbers.abs().max()):.3g} do not fit {spelled(dtype)}, which "
        f"ends at {torch.finfo(dtype).max:.5g}; use --dtype bf16 or fp32, or less strength"
    )
