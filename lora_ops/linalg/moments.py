"""Second moments of a layer's input: what they make of an error, gathered row by row, and told in files.

For inputs as rows of X the error of the output is |E X^T|, and all that it takes of X is the Gram matrix
G = X^T X: |E X^T| = |E L| with any L of which L L^T = G. The best change of rank r under it is the truncated
SVD of D L, brought back: with its left vectors U, up = U and down = U^T D, for U U^T D L is that truncation.
Nothing is inverted, and so nothing is lost where inputs never leave a part of their space (COALA,
arXiv:2507.07580; SVD-LLM, arXiv:2403.07378, and EoRA, arXiv:2410.21271, invert L).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..text import human_size
from .factored import factored_svd, thinned
from .norms import frobenius
from .orthonormal import wide
from .ranks.budgets import Budget
from .ranks.rules import RankRule
from .ranks.truncation import truncated

#: Added to the diagonal of a Gram matrix, as a share of its mean: what the inputs do not tell apart, the plain
#: error does.
DAMPING = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """G = vectors @ diag(squares) @ vectors^T + diag(rest), float32 on the CPU.

    Attributes:
        vectors: (in, k), orthonormal columns; None where only the diagonal is known.
        squares: (k,), not negative; None likewise.
        rest: (in,), not negative; None where the vectors say all.
    """

    vectors: Tensor | None
    squares: Tensor | None
    rest: Tensor | None

    def image(self, matrix: Tensor, damping: float = 0.0) -> Tensor:
        """Return matrix @ L, (out, m), with L L^T = G + damping * mean(diag(G)) * I.

        Args:
            matrix: (out, in), float32 or float64, on any device.
            damping: A share of the mean of G's diagonal.
        """
        extra = damping * self.trace / matrix.shape[1]
        parts: list[Tensor] = []
        if self.vectors is not None and self.squares is not None:
            added = extra if self.rest is None else 0.0
            turned = matrix @ self.vectors.to(matrix)
            parts.append(turned * (self.squares + added).sqrt().to(matrix))
        if self.rest is not None:
            parts.append(matrix * (self.rest + extra).sqrt().to(matrix))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def norm(self, matrix: Tensor) -> float:
        """Return |matrix L|, the Frobenius norm of what a matrix makes of all inputs."""
        return float(frobenius(self.image(matrix)))

    @property
    def trace(self) -> float:
        """The squared norm of all inputs."""
        parts = (one for one in (self.squares, self.rest) if one is not None)
        return sum(float(one.double().sum()) for one in parts)


def moment_of(
    *,
    gram: Tensor | None = None,
    cholesky: Tensor | None = None,
    sketch: Tensor | None = None,
    diagonal: Tensor | None = None,
) -> Moment:
    """Return a second moment from one of the forms that files have it in.

    Args:
        gram: (in, in), G itself; of it only what is symmetric and not negative counts.
        cholesky: (in, in), L with L L^T = G, triangular or not.
        sketch: (k, in), rows B with B^T B below G; `diagonal` says what they leave of it.
        diagonal: (in,), of G.
    """
    if gram is not None:
        squares, vectors = torch.linalg.eigh(gram.double() / 2 + gram.double().mT / 2)
        return Moment(vectors.float(), squares.clamp(min=0).float(), None)
    root = cholesky if sketch is None else sketch.mT
    if root is None:
        return Moment(None, None, None if diagonal is None else diagonal.float().clamp(min=0))
    left, values, _ = torch.linalg.svd(root.double(), full_matrices=False)
    rest = None
    if sketch is not None and diagonal is not None:
        rest = (diagonal.double() - sketch.double().square().sum(0)).clamp(min=0).float()
    return Moment(left.float(), values.square().float(), rest)


def check_weighs(rule: RankRule | Budget) -> None:
    """Refuse a rule under which layers cannot be weighed by what goes into them.

    Raises:
        ArgumentError: A budget, or `noise`.
    """
    if isinstance(rule, Budget):
        raise ArgumentError(
            f"`{rule}` is a budget, which compares layers by their weights; what goes into one layer is not "
            "measured as that of another is: give a rank, or a rule such as energy=0.95"
        )
    if any(one is not None and one.is_noise for one in (rule, rule.conv)):
        raise ArgumentError(
            f"rank rule `{rule}` tells a change from the rounding of storage by its singular values, and "
            "weighted by activations they are no longer those of rounding: give a rank, or extract without them"
        )


def weighted_factors(
    delta: Tensor, moment: Moment, rule: RankRule, *, exact: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return up (out, r) and down (r, in), float32, that leave least of a change's effect on the inputs.

    The rule chooses by the singular values of the weighted change; rows of down and columns of up are brought
    to one length.

    Args:
        delta: (out, in), float32, not zero.
        moment: Of the inputs.
        rule: Of this layer.
        exact: Compute the exact truncation instead of one within 1e-3 of its error.
        seed: Of the random start.
    """
    image = moment.image(delta, DAMPING)
    total = frobenius(image).square()
    (svd,) = truncated(image[None], total[None], rule, exact=exact, seed=seed)
    up = svd.truncate(min(delta.shape)).u
    return balanced(up, up.mT @ delta)


def weighted_product(
    up: Tensor, down: Tensor, moment: Moment, rule: RankRule
) -> tuple[Tensor, Tensor]:
    """Return what `weighted_factors` does, exactly, of a change `up @ down` that is not multiplied out.

    Args:
        up: (out, q), float32.
        down: (q, in), float32; the product is not zero.
        moment: Of the inputs.
        rule: Of this layer; it leaves something.
    """
    svd = factored_svd(*thinned(up, moment.image(down, DAMPING)))
    s = svd.s.cpu()
    rank = rule.choose(s, float(s.square().sum()), len(s)) or len(s)
    held = max(1, min(rank, int((s > 0).sum())))
    left = (wide(svd.up) @ wide(svd.left[:, :held])).to(up)
    return balanced(left, (left.mT @ up) @ down)


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose columns and rows have equal lengths, for 16-bit formats."""
    lengths = torch.linalg.vector_norm(up, dim=0), torch.linalg.vector_norm(down, dim=1)
    ratio = (lengths[1] / lengths[0]).sqrt()
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
    return up * ratio, down / ratio[:, None]


class Gathered:
    """The Gram matrix of rows that come one block after another, or a sketch of it where it is too wide.

    A sketch is Nystrom's: of the Gram matrix its product with twice as many random directions is summed, which is
    two thin products a block, and in the end the best rows B of which B^T B is no more than it (Tropp et al.,
    2017, arXiv:1706.05736, algorithm 3); beside it the exact diagonal.

    Args:
        width: Length of a row.
        full: Up to which width the whole matrix is kept.
        directions: Rows of a sketch; 0 keeps the diagonal alone.
        device: Where; it moves to where rows come from.
    """

    def __init__(self, width: int, full: int, directions: int, device: torch.device) -> None:
        self.count = 0
        self._directions = 0 if width <= full else min(directions, width)
        kept = min(2 * self._directions, width)
        self._gram = torch.zeros(width, width, device=device) if width <= full else None
        self._diagonal = torch.zeros(0 if width <= full else width, device=device)
        self._image = torch.zeros(width, kept, device=device)
        self._random = _random(width, kept, device)

    @property
    def form(self) -> str:
        """What a file has of it: gram, sketch or diagonal."""
        return "gram" if self._gram is not None else "sketch" if self._directions else "diagonal"

    def move(self, device: torch.device) -> None:
        """Have it on another device."""
        if device != self._image.device:
            self._gram = None if self._gram is None else self._gram.to(device)
            self._diagonal, self._image = self._diagonal.to(device), self._image.to(device)
            width, kept = self._image.shape
            self._random = _random(width, kept, device)

    def add(self, rows: Tensor) -> None:
        """Take rows in, (n, width), of any float dtype."""
        self.move(rows.device)
        rows = rows.float()
        self.count += len(rows)
        if self._gram is not None:
            self._gram.addmm_(rows.mT, rows)
            return
        self._diagonal += rows.square().sum(0)
        if self._directions:
            self._image.addmm_(rows.mT, rows @ self._random)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it, on the CPU, by form; see `moment_of`."""
        if self._gram is not None:
            found = {"gram": self._gram.cpu().clone()}
        else:
            found = {"diagonal": self._diagonal.cpu().clone()}
        if self._directions:
            found["sketch"] = _sketch(self._image, self._random, self._directions)
        return {**found, "count": torch.tensor(self.count)}


def size_of(widths: Sequence[int], full: int, directions: int) -> int:
    """Bytes that recording inputs of these widths takes; see `Gathered`."""
    wide_ones = [width for width in widths if width > full]
    kept = {width: min(2 * directions, width) for width in wide_ones}
    whole = sum(width**2 for width in widths if width <= full)
    # Random directions are shared by all of one width.
    return 4 * (
        whole
        + sum(width * (1 + kept[width]) for width in wide_ones)
        + sum(width * many for width, many in kept.items())
    )


def fitting(widths: Sequence[int], memory: int, full: int, directions: int) -> tuple[int, int]:
    """Return `full` and `directions`, or less, with which inputs of these widths take no more than a memory.

    Directions are kept before whole matrices, and whole matrices of narrow inputs before those of wide ones.

    Args:
        widths: Of each layer's input.
        memory: Bytes.
        full: The widest of which the whole matrix may be kept.
        directions: The most.

    Raises:
        ArgumentError: The diagonals alone take more.
    """
    narrower = sorted({width for width in widths if width < full}, reverse=True)
    while True:
        for most in (full, *narrower, 0):
            if size_of(widths, most, directions) <= memory:
                return most, directions
        if not directions:
            raise ArgumentError(
                f"a memory of {human_size(memory)} is too small: the diagonals of {len(widths)} layers alone take "
                f"{human_size(4 * sum(widths))}; give more"
            )
        directions //= 2


# Random directions by width, number and device: layers of one width share them while any of them is recorded.
_drawn: WeakValueDictionary[tuple[int, int, torch.device], Tensor] = WeakValueDictionary()


def _random(width: int, many: int, device: torch.device) -> Tensor:
    known = _drawn.get((width, many, device))
    if known is None:
        generator = torch.Generator().manual_seed(width)
        known = torch.linalg.qr(torch.randn(width, many, generator=generator))[0].to(device)
        _drawn[width, many, device] = known
    return known


def _sketch(image: Tensor, random: Tensor, keep: int) -> Tensor:
    """Rows B (keep, in), float32 on the CPU, with B^T B at most G, of which `image` is G @ `random`."""
    y, omega = image.cpu().double(), random.cpu().double()
    shift = 10 * torch.finfo(torch.float32).eps * float(torch.linalg.vector_norm(y))
    if not shift or not math.isfinite(shift):
        return torch.full((keep, len(image)), shift)
    # G is shifted by more than what the sums rounded, so that there is a root; and shifted back.
    while True:
        shifted = y + shift * omega
        core = omega.mT @ shifted
        root, failed = torch.linalg.cholesky_ex((core + core.mT) / 2)
        if not failed:
            break
        shift *= 10
    half = torch.linalg.solve_triangular(root.mT, shifted, upper=True, left=False)
    left, values, _ = torch.linalg.svd(half, full_matrices=False)
    squares = (values.square() - shift).clamp(min=0)[:keep]
    return (squares.sqrt() * left[:, :keep]).mT.float().contiguous()
