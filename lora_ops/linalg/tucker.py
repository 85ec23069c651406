"""Tucker's form of a kernel: two thin matrices at its channels, and a core between them that has its taps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .decompose import truncated_svd
from .norms import frobenius


@dataclass(frozen=True, slots=True, eq=False)
class Tucker:
    """The best core for given channels: `sum_pq up[:, p] core[p, q, ...] down[q, :]`.

    Attributes:
        up: (out, r), orthonormal columns.
        core: (r, r, *kernel).
        down: (r, in), orthonormal rows.
    """

    up: Tensor
    core: Tensor
    down: Tensor

    @property
    def kept(self) -> float:
        """Squared Frobenius norm of the approximation; that of the kernel less this is its squared error."""
        return float(frobenius(self.core.flatten(1)).square())


def outputs(kernel: Tensor) -> Tensor:
    """Return the unfolding by output channel, (out, in * taps)."""
    return kernel.flatten(1)


def inputs(kernel: Tensor) -> Tensor:
    """Return the unfolding by input channel, (in, out * taps)."""
    return kernel.transpose(0, 1).flatten(1)


def tucker(kernel: Tensor, rank: int, *, exact: bool = False, seed: int = 0) -> Tucker:
    """Return a Tucker decomposition by the leading channels on either side, refined once if that gains.

    Args:
        kernel: (out, in, *taps), float32, not zero.
        rank: Of both sides, 1 to min(out, in).
        exact: Compute exact truncations instead of some within 1e-3 of their error.
        seed: Of the random start.

    Source: De Lathauwer, De Moor and Vandewalle (2000), A multilinear singular value decomposition (HOSVD), and
        On the best rank-1 and rank-(R1, ..., RN) approximation (one step of their iteration, HOOI).
    """

    def leading(unfolded: Tensor) -> Tensor:
        total = frobenius(unfolded).square()
        found = truncated_svd(unfolded, min(rank, *unfolded.shape), total, seed, exact=exact).u
        # A side of lower rank has zeros in place of vectors: they stay, and cost nothing in the sum.
        return torch.nn.functional.pad(found, (0, rank - found.shape[1]))

    def core(up: Tensor, down: Tensor) -> Tucker:
        middle = torch.einsum("oi...,op,iq->pq...", kernel, up, down)
        return Tucker(up, middle, down.T.contiguous())

    up, down = leading(outputs(kernel)), leading(inputs(kernel))
    first = core(up, down)
    up = leading(torch.einsum("oi...,iq->oq...", kernel, down).flatten(1))
    down = leading(inputs(torch.einsum("oi...,op->pi...", kernel, up)))
    refined = core(up, down)
    return refined if refined.kept > first.kept else first
