"""Methods of which the result has a given rank from the start: CtM and LoRA-LEGO."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ....linalg.random_bits import random_key
from ..elements.work import Task
from ..kinds import Element
from .elements import worked
from .frame import Factors, Frame, weighed

# The share of the energy that a step must add, and the most steps.
_TOLERANCE = 1e-9
_STEPS = 500
# Starts of the clustering, the best of which is taken, and the most steps of each; scikit-learn's.
_STARTS = 10
_MOVES = 300


def compress_then_merge(frame: Frame, task: Task, *, how: Element) -> Factors:
    """CtM (He et al., ICML 2026, arXiv:2606.03723): one subspace for all changes, then their sum in it.

    The two subspaces of `directions` directions that keep most of the energy of all changes together are
    found by alternating eigenproblems (a partial Tucker decomposition, HOSVD to begin with); `beta`
    1 lets each change count by its energy, 0 all of them alike. The changes, weighed, are then
    square matrices of that many rows, which are added (`merge=sum`) or merged by TIES.
    """
    cores = frame.cores()
    rank = min(int(task.number("directions")) or max(frame.sizes), *cores.shape[1:])
    norms = cores.square().sum((1, 2)).sqrt()
    beta = task.number("beta")
    level = beta * norms + (1 - beta) * norms.mean()
    left, right = _subspaces(cores * (level / norms.clamp(min=1e-300))[:, None, None], rank)
    small = left.mT @ cores @ right
    if task.choice("merge") == "ties":
        merged = worked(small, task, how)
    else:
        merged = weighed(small, task.weights)
    return frame.factors(left @ merged, right.mT)


def lego(frame: Frame, task: Task) -> Factors:
    """LoRA-LEGO (Zhao et al., ICLR 2025, arXiv:2409.16167): ranks as units, clustered.

    A unit is a column of up with its row of down. Units of all changes are put into `directions` clusters
    by k-means, the best of ten starts from `seed`; a cluster becomes its mean, stretched to the mean of its units'
    largest elements, and the whole is multiplied by the root of units over clusters (the paper's
    two reweightings, as CtM's authors have them in code). Strengths and alphas go into both factors
    by halves.
    """
    each = frame.columns(task.weights)
    half = each.abs().sqrt()
    lefts, rights = frame.left.coordinates * half * each.sign(), frame.right.coordinates * half
    units = torch.cat([lefts, rights]).mT
    count = min(int(task.number("directions")) or max(frame.sizes), len(units))
    labels = _clustered(units, count, random_key(task.seed, task.name))
    members = torch.nn.functional.one_hot(labels, count).double()
    means = members / members.sum(0)
    one, other = lefts @ means, rights @ means
    largest = _largest(frame, lefts, rights) @ means / _largest(frame, one, other)
    gain = largest * (len(units) / count) ** 0.25
    return frame.factors(one * gain, (other * gain).mT)


def _subspaces(cores: Tensor, rank: int) -> Factors:
    """Orthonormal (k, rank) and (k', rank) that keep most of the squares of `left.mT core right`."""
    total = cores.square().sum()
    left = _leading((cores @ cores.mT).sum(0), rank)
    right = _leading((cores.mT @ cores).sum(0), rank)
    kept = torch.zeros((), dtype=torch.float64)
    for _ in range(_STEPS):
        seen = cores @ right
        left = _leading((seen @ seen.mT).sum(0), rank)
        seen = cores.mT @ left
        right = _leading((seen @ seen.mT).sum(0), rank)
        now = (left.mT @ cores @ right).square().sum()
        if now - kept <= _TOLERANCE * total:
            break
        kept = now
    return left, right


def _leading(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(-1)


def _largest(frame: Frame, lefts: Tensor, rights: Tensor) -> Tensor:
    """The largest magnitude in each unit, of its column and its row; float64."""
    left, right = frame.left.made(lefts), frame.right.made(rights)
    return torch.maximum(left.abs().amax(0), right.abs().amax(0)).cpu().double()


def _clustered(points: Tensor, count: int, key: int) -> Tensor:
    """The cluster of each point (N, d), by Lloyd's iterations from k-means++ starts."""
    source = np.random.Generator(np.random.Philox(key=key))
    found = [_moved(points, _started(points, count, source)) for _ in range(_STARTS)]
    return min(found, key=lambda one: one[1])[0]


def _started(points: Tensor, count: int, source: np.random.Generator) -> Tensor:
    """Centres (count, d), each far from those before it by chance (Arthur & Vassilvitskii, 2007)."""
    centres = points[[int(source.integers(len(points)))]]
    while len(centres) < count:
        squares = _distances(points, centres).amin(1)
        total = float(squares.sum())
        shares = squares / total if total > 0 else torch.full_like(squares, 1 / len(squares))
        centres = torch.cat([centres, points[[int(source.choice(len(points), p=shares.numpy()))]]])
    return centres


def _moved(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Labels once no point changes its cluster, none of them empty, and the sum of squares."""
    labels = torch.full((len(points),), -1)
    for _ in range(_MOVES):
        squares = _distances(points, centres)
        nearest = _without_empty(squares)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        members = torch.nn.functional.one_hot(labels, len(centres)).double()
        centres = (members.mT @ points) / members.sum(0).unsqueeze(-1)
    return labels, float(_distances(points, centres).gather(1, labels[:, None]).sum())


def _without_empty(squares: Tensor) -> Tensor:
    """The nearest centre of each point; a centre that has none takes the point farthest from its own."""
    labels = squares.argmin(1)
    counts = torch.bincount(labels, minlength=squares.shape[1])
    for centre in (counts == 0).nonzero().flatten().tolist():
        counts = torch.bincount(labels, minlength=squares.shape[1])
        own = squares.gather(1, labels[:, None]).squeeze(1)
        labels[torch.where(counts[labels] > 1, own, -1.0).argmax()] = centre
    return labels


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, count)."""
    squares = points.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (squares - 2 * points @ centres.mT).clamp(min=0)
