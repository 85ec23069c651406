"""Methods that treat elements one by one, at work on small matrices in place of the weight.

TIES and the like were made for the elements of weights, where their result has no low rank. In a
common frame they act on the elements of the cores, and the result has factors by construction. That
is another method, which keeps less or more than the one on weights, and says so by its scope.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..elements.work import Task
from ..kinds import Element
from .frame import FLOOR, Factors, Frame


def in_core(frame: Frame, task: Task, *, how: Element) -> Factors:
    """The method on the cores: the space of Core Space (arXiv:2509.17786).

    Args:
        frame: The changes.
        task: Weights and parameters.
        how: The method.
    """
    return frame.whole(worked(frame.cores(), task, how))


def in_rows(frame: Frame, task: Task, *, how: Element) -> Factors:
    """KnOTS (Stoica et al., 2024, arXiv:2410.19735): the method on the changes in common output directions.

    With E the left singular vectors of `[change1 | change2 | ...]`, the method sees `E.mT change`
    (k, in). Its authors' code trims over the whole model; this trims weight by weight, as all of
    lorakit does.

    Args:
        frame: The changes.
        task: Weights and parameters.
        how: The method inside.
    """
    cores = frame.cores()
    values, basis = torch.linalg.eigh((cores @ cores.mT).sum(0))
    basis = basis[:, values > FLOOR**2 * values[-1]].flip(-1)
    lefts = (basis.mT @ frame.left.coordinates) * frame.columns([1.0] * len(frame.sizes))
    downs = frame.right.columns
    pairs = zip(lefts.split(frame.sizes, dim=1), downs.split(frame.sizes, dim=1), strict=True)
    # The turn itself is in float64; each change then is its own thin product.
    seen = torch.stack([one.to(downs) @ down.mT for one, down in pairs]).cpu()
    up = frame.left.made(basis)
    return up, worked(seen, task, how).to(up.device)


def worked(tiles: Tensor, task: Task, how: Element) -> Tensor:
    """Return a method's result on small matrices.

    Args:
        tiles: (T, rows, columns); not written into unless they are float32.
        task: Weights and parameters.
        how: The method.

    Returns:
        (rows, columns), of the same dtype. Thresholds and signs are found in float32.
    """
    small = tiles.float().contiguous()
    work = how.begin(replace(task, shape=tuple(small.shape[1:])))
    while work.passes:
        work = work.settle(work.observe(small, None, 0))
    return work.combine(small, None, 0).to(tiles)
