"""The default truncation: a randomised block Krylov method that stops when it has measured enough.

Block Lanczos on `A.mT @ A`, never formed, with full reorthogonalisation on the short side of A only;
the long side is touched by two thin products a step and one at the end. Compared with subspace
iteration at equal products (`svd_lowrank` and its kin) a Krylov space keeps all earlier blocks, and
its error falls with the square of the exponent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._shapes import Float
from .gram import gram_svd
from .orthonormal import orthonormal, wide
from .svd import Svd, svd_from_right

# Share of the short side that the basis may fill: beyond it the exact way is cheaper, and taken.
MOST = 0.75


def krylov_svd(
    matrix: Float[Tensor, "*batch out in"],
    rank: int,
    total: Tensor,
    generator: torch.Generator,
    *,
    tolerance: float = 5e-4,
) -> Svd:
    """Return `rank` leading singular triplets whose truncation is close to the best possible one.

    A spectrum so flat that this would take a basis of nearly full size is decomposed exactly.
    Stops when one more step is expected to lower the error of the truncation by less than
    `tolerance` of itself, judged from the gains of the last two steps.

    Args:
        matrix: (..., out, in), float32.
        rank: 1 to min(out, in).
        total: (...), float64: the squared Frobenius norm of each matrix.
        generator: Where the random start comes from: on the CPU whatever the device, and the same
            for all matrices of a batch, so that a result does not depend on its neighbours.
        tolerance: Excess error accepted, as a share of the best error. The Eckart-Young error is a
            lower bound; measured excess stays under twice this value.

    Source: Musco & Musco (2015), Randomized block Krylov methods; one-sided reorthogonalisation,
        Simon & Zha (2000).
    """
    if matrix.ndim > 2:  # each stops at its own step: a result does not depend on its neighbours
        return _stacked(matrix, rank, total, generator, tolerance)
    return _stacked(matrix[None], rank, total[None], generator, tolerance)[0]


def _stacked(
    matrix: Tensor, rank: int, total: Tensor, generator: torch.Generator, tolerance: float
) -> Svd:
    if matrix.shape[-2] < matrix.shape[-1]:
        flipped = _stacked(matrix.mT, rank, total, generator, tolerance)
        return Svd(flipped.vh.mT, flipped.s, flipped.u.mT)
    (count, _, side), block = matrix.shape, block_width(rank)
    start = torch.linalg.qr(torch.randn((side, block), generator=generator))[0]
    basis = newest = start.to(matrix.device).expand(count, side, block)
    newest_image = matrix @ newest
    # Squares of singular values 2^12 apart do not fit in float32: from here on it is float64.
    image = wide(newest_image)
    ritz = image.mT @ image
    captured: list[Tensor] = []
    found: dict[int, Svd] = {}
    while True:
        if basis.shape[-1] >= rank + block:
            captured.append(torch.linalg.eigvalsh(ritz)[..., -rank:].sum(-1))
            for index in _converged(captured, total, tolerance):
                if index not in found:
                    found[index] = _leading(image[index], basis[index], ritz[index], rank)
        if len(found) == count:
            break
        if basis.shape[-1] + block > MOST * side:
            found |= {i: gram_svd(matrix[i], rank) for i in range(count) if i not in found}
            break
        newest = orthonormal(matrix.mT @ newest_image, basis)
        newest_image = matrix @ newest
        basis = torch.cat([basis, newest], dim=-1)
        image = torch.cat([image, wide(newest_image)], dim=-1)
        ritz = _bordered(ritz, image.mT @ image[..., -block:])
    parts = [found[index] for index in range(count)]
    return Svd(
        *(torch.stack(factor) for factor in zip(*((p.u, p.s, p.vh) for p in parts), strict=True))
    )


def _leading(image: Tensor, basis: Tensor, ritz: Tensor, rank: int) -> Svd:
    vectors = torch.linalg.eigh(ritz)[1][:, -rank:]
    return svd_from_right(image @ vectors, basis @ vectors.to(basis.device, basis.dtype))


def block_width(rank: int) -> int:
    """Half the rank, in multiples of 16: narrow blocks reach further a product, wide ones multiply faster."""
    return max(16, -(-rank // 32) * 16)


def _converged(captured: list[Tensor], total: Tensor, tolerance: float) -> list[int]:
    """The matrices whose energy still to be gained is below what `tolerance` allows."""
    if len(captured) < 3:
        return []
    before, last, now = captured[-3:]
    gain, earlier = (now - last).clamp(min=0), (last - before).clamp(min=0)
    # Gains shrink geometrically once the basis exceeds the rank; never believe in a ratio above 1/2.
    ratio = (gain / earlier.clamp(min=torch.finfo(gain.dtype).tiny)).clamp(max=0.5)
    ahead = gain * ratio / (1 - ratio)
    tail = (total - now).clamp(min=0)
    # d(error)/error is half of d(error squared)/(error squared); the second term is float32's floor.
    done = ahead <= 2 * tolerance * tail + 1e-12 * total
    return done.nonzero()[:, 0].tolist()


def _bordered(ritz: Tensor, coefficients: Tensor) -> Tensor:
    """Extend the symmetric projection `basis.mT @ A.mT @ A @ basis` by its newest block column."""
    size, block = coefficients.shape[-2:]
    extended = ritz.new_empty((*ritz.shape[:-2], size, size))
    extended[..., : size - block, : size - block] = ritz
    extended[..., :, size - block :] = coefficients
    extended[..., size - block :, :] = coefficients.mT
    corner = coefficients[..., size - block :, :]
    extended[..., size - block :, size - block :] = (corner + corner.mT) / 2
    return extended
