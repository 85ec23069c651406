"""Methods of which the result has a given rank from the start: CtM and LoRA-LEGO."""

from __future__ import annotations

import torch
from torch import Tensor

from ....linalg.random_bits import random_key
from ..elements.work import Task
from ..kinds import Element
from .clusters import clustered
from .elements import worked
from .frame import Factors, Frame, weighed
from .subspaces import common_subspaces


def compress_then_merge(frame: Frame, task: Task, *, how: Element) -> Factors:
    """CtM (He et al., ICML 2026, arXiv:2606.03723): one subspace for all changes, then their sum in it.

    The two subspaces of `directions` directions are those that keep most of the energy of all changes together (a
    partial Tucker decomposition; the authors alternate eigenproblems from the HOSVD on); `beta` 1 lets each change
    count by its energy, 0 all of them alike. The changes, weighed, are then square matrices of that many rows, which
    are added (`merge=sum`) or merged by TIES.
    """
    cores = frame.cores()
    rank = min(int(task.number("directions")) or max(frame.sizes), *cores.shape[1:])
    norms = cores.square().sum((1, 2)).sqrt()
    beta = task.number("beta")
    level = beta * norms + (1 - beta) * norms.mean()
    left, right = common_subspaces(cores * (level / norms.clamp(min=1e-300))[:, None, None], rank)
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
    labels = torch.from_numpy(
        clustered((units @ units.mT).numpy(), count, random_key(task.seed, task.name))
    )
    members = torch.nn.functional.one_hot(labels, count).double()
    means = members / members.sum(0)
    one, other = lefts @ means, rights @ means
    # A unit is a stored column of up, and a row of down, times what it counts by.
    own = torch.maximum(*(_largest(side.columns) for side in (frame.left, frame.right))) * half
    made = torch.maximum(_largest(frame.left.made(one)), _largest(frame.right.made(other)))
    largest = own @ means / made
    gain = largest * (len(units) / count) ** 0.25
    return frame.factors(one * gain, (other * gain).mT)


def _largest(columns: Tensor) -> Tensor:
    """The largest magnitude in each column; float64, on the CPU."""
    least, most = torch.aminmax(columns, dim=0)
    return torch.maximum(-least, most).cpu().double()
