"""Geometry of vectors of which only the inner products are known; all float64."""

from __future__ import annotations

import torch
from torch import Tensor

#: A length below this share of the inputs' is rounding: squares cannot tell it from nothing.
LENGTH = 1e-7


def scaled(gram: Tensor, strengths: Tensor) -> Tensor:
    """Inner products of the scaled deltas."""
    return gram * strengths * strengths[:, None]


def turned(gram: Tensor, strengths: Tensor) -> Tensor:
    """Inner products of the deltas, turned around where the strength is negative."""
    return scaled(gram, strengths.sign())


def shares(strengths: Tensor) -> Tensor:
    """Shares of the absolute strengths; all zero if those are."""
    total = strengths.abs().sum()
    return strengths.abs() / torch.where(total > 0, total, 1)


def directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (T,) and cosines (T, T); a zero vector has the cosine 0 with all, itself included."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    there = norms > 0
    safe = torch.where(there, norms, 1)
    cosines = (gram / safe / safe[:, None]).clamp(-1, 1)
    return norms, torch.where(there & there[:, None], cosines, 0)


def coordinates(gram: Tensor) -> Tensor:
    """Vectors (T, T), one a row, that have these inner products."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def norm(combination: Tensor, gram: Tensor) -> Tensor:
    """Norm of a combination of vectors of which the inner products are given."""
    return (combination @ gram @ combination).clamp(min=0).sqrt()
