"""Prevalence: which of two changes of a weight K-LoRA takes, at what progress of sampling.

After Ouyang, Li and Hou, K-LoRA (arXiv 2502.18461), as its authors' program computes it
(github.com/HVision-NKU/K-LoRA): per weight the sums of the K largest magnitudes of both changes are
compared, K the product of their ranks; the sizes of the two adapters are made equal by gamma, and the
style's sum grows with the progress of sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.layers import Layer
from ..errors import ArgumentError, UnsupportedLayerError
from ..run.devices import Placement, upload
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress

# Ratios of sizes from so many times their mean on do not count for it.
_OUTLIER = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Rivals:
    """Two changes of one weight; each of one layer, or of several that change some of its rows.

    Attributes:
        name: What messages call the weight.
        subject: Of the first adapter.
        style: Of the second.
    """

    name: str
    subject: tuple[Layer, ...]
    style: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Prevalence:
    """What K-LoRA knows of one weight, before it asks for the progress of sampling.

    Attributes:
        name: What messages call the weight.
        largest: Sums of the K largest magnitudes of the subject's change and of the style's.
        whole: Sums of all magnitudes of both.
        rank: K: the product of their ranks, at most all elements.
    """

    name: str
    largest: tuple[float, float]
    whole: tuple[float, float]
    rank: int

    def limit(self, gamma: float) -> float:
        """The style's scale from which on the style is taken; below it, it is the subject."""
        subject, style = self.largest
        return subject / gamma / style if style else math.inf


def prevalences(
    rivals: Sequence[Rivals],
    *,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> list[Prevalence]:
    """Return what K-LoRA compares, for each weight: a product at a time, none of them kept.

    Args:
        rivals: The weights that both adapters change.
        placement: Where to compute; None: the CPU.
        progress: Called after each weight.

    Raises:
        UnsupportedLayerError: A change depends on the base weight.
    """
    jobs = [Job(one.name, one, alike=one.name) for one in rivals]
    return list(stream(Work(jobs, _compute), placement, progress=progress))


def balance(found: Sequence[Prevalence]) -> float:
    """Return gamma: how much larger the subject's changes are than the style's.

    The mean over weights of the ratio of all magnitudes, without those that are three times that mean.

    Args:
        found: Of one weight at least whose style is not zero.

    Raises:
        ArgumentError: There is none, or the subject is zero everywhere.
    """
    ratios = [one.whole[0] / one.whole[1] for one in found if one.whole[1]]
    mean = math.fsum(ratios) / len(ratios) if ratios else 0.0
    if not mean:
        raise ArgumentError(
            "K-LoRA chooses between two LoRAs in the weights that both change, and here are none; give two "
            "for one model, neither of them zero"
        )
    kept = [one for one in ratios if one < _OUTLIER * mean]
    return math.fsum(kept) / len(kept)


def style_scale(progress: float, alpha: float, beta: float, *, wraps: bool = False) -> float:
    """Return what the style's sum is multiplied by: S, or with `wraps` S*.

    Args:
        progress: Of sampling: the share of steps that are done, 0 to 1.
        alpha: How much the scale grows; the paper's 1.5.
        beta: The scale at the beginning; the paper's 0.5, for S* 0.85 alpha.
        wraps: Whether it goes on from 0 where it reaches alpha, as the authors' S* does.
    """
    scale = alpha * progress + beta
    return math.fmod(scale, alpha) if wraps and alpha else scale


def _compute(rivals: Sequence[Rivals], placement: Placement) -> list[Prevalence]:
    return [_prevalence(one, placement) for one in rivals]


def _prevalence(rivals: Rivals, placement: Placement) -> Prevalence:
    ranks = [sum(layer.rank for layer in side) for side in (rivals.subject, rivals.style)]
    sizes = [_magnitudes(rivals.name, side, placement) for side in (rivals.subject, rivals.style)]
    count = max(1, min(math.prod(ranks), *(len(one) for one in sizes)))
    largest = [float(one.topk(count, sorted=False).values.double().sum()) for one in sizes]
    whole = [float(one.sum(dtype=torch.float64)) for one in sizes]
    return Prevalence(rivals.name, (largest[0], largest[1]), (whole[0], whole[1]), count)


def _magnitudes(name: str, layers: Sequence[Layer], placement: Placement) -> Tensor:
    """Of all elements of the change of a weight, float32, on the device."""
    if any(layer.needs_base for layer in layers):
        raise UnsupportedLayerError(
            f"layer `{name}`: what it changes depends on the base weight, which K-LoRA does not look at; "
            "make it a plain LoRA first, or use curves",
            target=name,
        )
    parts = [_dense(layer, placement) for layer in layers]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).abs_()


def _dense(layer: Layer, placement: Placement) -> Tensor:
    if layer.is_full or not layer.has_factors:
        return upload(layer.delta(), placement).flatten()
    up, down = (upload(one, placement) for one in layer.factors())
    return (up @ down).flatten()
