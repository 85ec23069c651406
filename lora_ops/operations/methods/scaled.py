"""Methods that work on the scaled deltas, strength * delta."""

from __future__ import annotations

import torch
from torch import Tensor

from .inner import LENGTH, directions, norm, scaled

#: Radians, so near to which two directions are opposite.
OPPOSITE = 1e-4
#: An eigenvalue of the cosines of directions, up to which they depend on each other.
DEPENDENT = 1e-10


def scaled_sum(_gram: Tensor, strengths: Tensor) -> Tensor:
    """The scaled deltas added: task arithmetic (Ilharco et al., 2022, arXiv:2212.04089)."""
    return strengths


def slerp(gram: Tensor, strengths: Tensor, t: float) -> Tensor:
    """Along the great circle from the first scaled delta to the second (Shoemake, 1985).

    The direction is interpolated on the sphere and the norm linearly, as in sd-mecha; mergekit's is
    the same where the norms are. Between opposite directions, where no way round is the shortest,
    and to or from a zero delta it goes straight, as both of them do.
    """
    norms, cosines = directions(scaled(gram, strengths))
    line = torch.tensor([1 - t, t], dtype=gram.dtype)
    angle = cosines[0, 1].acos()
    if norms.min() == 0 or torch.pi - angle < OPPOSITE:
        return line * strengths
    arc = (line * angle).sin() / angle.sin() if angle > 0 else line
    return arc * (line @ norms) / norms * strengths


def orthogonalise(gram: Tensor, strengths: Tensor) -> Tensor:
    """The last scaled delta without its parts along all earlier ones.

    Least squares on the directions, so that earlier deltas may depend on each other; sd-mecha's
    perpendicular component, for any number. Zero where nothing else is left of the last one.
    """
    norms, cosines = directions(scaled(gram, strengths))
    values, vectors = torch.linalg.eigh(cosines[:-1, :-1])
    known = values > DEPENDENT
    inverse = torch.where(known, 1 / torch.where(known, values, 1), 0)
    along = vectors @ (inverse * (vectors.mT @ cosines[:-1, -1]))
    rest = torch.cat([-along, along.new_ones(1)])
    if norm(rest, cosines) <= LENGTH:
        return torch.zeros_like(strengths)
    return rest * norms[-1] / torch.where(norms > 0, norms, 1) * strengths


def energy(gram: Tensor, strengths: Tensor) -> Tensor:
    """All scaled deltas at one norm, the root mean square of what theirs are, and added.

    ComfyUI-LoRA-Optimizer's automatic strengths, keeping the signs and the summed energy. Zero
    deltas take no share.
    """
    norms = scaled(gram, strengths).diagonal().clamp(min=0).sqrt()
    there = norms > 0
    common = norms.square().sum().div(max(int(there.sum()), 1)).sqrt()
    return torch.where(there, common / torch.where(there, norms, 1), 0) * strengths
