"""Methods on singular directions: TSV-M, Iso-C and NP-LoRA."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elements.work import Task
from .frame import FLOOR, Factors, Frame, weighed

# Squares of singular values this far apart give the polar factor to ten digits.
_APART = 1e-6


def task_singular_vectors(frame: Frame, task: Task) -> Factors:
    """TSV-M (Gargiulo et al., CVPR 2025, arXiv:2412.00081): directions of all changes, made orthogonal.

    Of each change the leading `min(out, in) // T` singular triplets are kept, which is all of them
    for LoRAs of usual ranks; the left vectors of all, side by side, are replaced by the nearest
    orthonormal ones (their polar factor), and so are the right ones. Directions that changes share
    exactly are shared out between them, so that equal changes give that change.
    """
    most = min(task.shape) // task.count
    lefts_, rights_ = frame.left.coordinates, frame.right.coordinates
    sides = zip(lefts_.split(frame.sizes, 1), rights_.split(frame.sizes, 1), strict=True)
    each = zip(task.weights, frame.scales, sides, strict=True)
    found = [_thin_triplets(w * scale * one, other, most) for w, scale, (one, other) in each]
    lefts, values, rights = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return frame.factors(_polar(lefts) * values, _polar(rights).mT)


def isotropic(frame: Frame, task: Task) -> Factors:
    """Iso-C (Marczak et al., ICML 2025, arXiv:2502.04959) on the directions of the sum.

    All singular values of the sum become their mean. The paper's mean is over all min(out, in)
    directions of the weight, most of which a sum of LoRAs does not have: this is over those that it has.
    """
    total = weighed(frame.cores(), task.weights)
    left, values, right = triplets(total, min(task.shape))
    return frame.factors(left * values.mean(), right.mT)


def null_space(frame: Frame, task: Task) -> Factors:
    """NP-LoRA (Chen et al., 2025, arXiv:2511.11051), equation 12: the first gives way to the second.

    The first change loses the share `mu / (1 + mu)` of what it does to the `directions` leading right
    singular directions of the second, and is added to it. `mu` 0 is the sum, a large one the hard
    projection; 0 directions are all of the second's, as in the paper.
    """
    first, second = frame.cores()
    count, mu = int(task.number("directions")), task.number("mu")
    _, _, right = triplets(second, count or len(second[0]))
    kept = first - mu / (1 + mu) * (first @ right) @ right.mT
    return frame.whole(task.weights[0] * kept + task.weights[1] * second)


def triplets(core: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triplets of a core that are more than rounding.

    Args:
        core: (k, k'), float64, not empty.
        most: How many at most.

    Returns:
        Left vectors (k, q), values (q,), right vectors (k', q).
    """
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    there = min(most, int((values > FLOOR * values[0]).sum()))
    return left[:, :there], values[:there], right[:there].mT


def _thin_triplets(left: Tensor, right: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of `left @ right.mT`, both of few columns, from the small matrix between their own directions."""
    if left.shape[1] >= min(len(left), len(right)):
        return triplets(left @ right.mT, most)
    (q, r), (other, s) = torch.linalg.qr(left), torch.linalg.qr(right)
    inner, values, outer = triplets(r @ s.mT, most)
    return q @ inner, values, other @ outer


def _polar(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; a partial isometry where they depend on each other."""
    values, vectors = torch.linalg.eigh(columns.mT @ columns)
    if float(values[0]) > _APART * float(values[-1]):
        return columns @ (vectors / values.sqrt()) @ vectors.mT
    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    there = values > FLOOR * values[0]
    return left[:, there] @ right[there]
