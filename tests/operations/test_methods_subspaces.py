"""What CtM and LoRA-LEGO are solved by, against the loops that they stand for, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lorakit.lora_ops.operations.methods.factored.clusters import clustered
from lorakit.lora_ops.operations.methods.factored.subspaces import common_subspaces

SHAPES = [
    *((3, 20, 20, 5), (2, 12, 9, 4), (4, 30, 50, 10), (2, 40, 40, 1), (3, 48, 48, 16)),
    *((2, 8, 8, 8), (3, 9, 5, 5), (3, 5, 9, 5), (1, 6, 6, 3), (2, 1, 4, 1)),
]


def matrices(count: int, rows: int, columns: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, columns, generator=source, dtype=torch.float64)


def leading(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -rank:]


def alternated(given: Tensor, rank: int, tolerance: float) -> float:
    """The energy that alternating eigenproblems keep, from the HOSVD on, until one gains less than the share."""
    right, kept = leading((given.mT @ given).sum(0), rank), 0.0
    for _ in range(4000):
        seen = given @ right
        left = leading((seen @ seen.mT).sum(0), rank)
        seen = given.mT @ left
        right = leading((seen @ seen.mT).sum(0), rank)
        now = float((left.mT @ given @ right).square().sum())
        if now - kept <= tolerance * float(given.square().sum()):
            break
        kept = now
    return now


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_subspaces_keep_what_endless_alternation_keeps(shape, seed: int) -> None:
    count, rows, columns, rank = shape
    given = matrices(count, rows, columns, seed)
    left, right = common_subspaces(given, rank)
    assert torch.allclose(left.mT @ left, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(right.mT @ right, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    kept = float((left.mT @ given @ right).square().sum())
    total = float(given.square().sum())
    assert kept >= alternated(given, rank, 1e-9) - 1e-8 * total
    assert kept >= alternated(given, rank, 1e-13) - 1e-7 * total


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_planted_subspaces_are_found_whatever_the_size(size: float) -> None:
    source = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(40, 6, generator=source, dtype=torch.float64))[0]
        for _ in range(2)
    )
    given = size * left @ matrices(3, 6, 6, 1) @ right.mT
    for wanted, found in zip((left, right), common_subspaces(given, 6), strict=True):
        assert torch.allclose(found @ found.mT, wanted @ wanted.mT, atol=1e-7)
    found, _ = common_subspaces(given, 8)  # more than there are
    assert torch.allclose(found @ (found.mT @ left), left, atol=1e-7)


def test_matrices_of_nothing_have_some_subspace() -> None:
    left, right = common_subspaces(torch.zeros(2, 5, 4, dtype=torch.float64), 2)
    assert torch.allclose(left.mT @ left, torch.eye(2, dtype=torch.float64))
    assert torch.allclose(right.mT @ right, torch.eye(2, dtype=torch.float64))


def by_loops(points: np.ndarray, count: int, key: int) -> np.ndarray:
    """k-means of points themselves: starts and steps one after another, distances as they are defined."""
    source = np.random.Generator(np.random.Philox(key=key))
    best, least = None, np.inf
    for _ in range(10):
        centres = [points[int(source.integers(len(points)))]]
        while len(centres) < count:
            squares = np.array([min(((p - c) ** 2).sum() for c in centres) for p in points])
            centres.append(points[int(source.choice(len(points), p=squares / squares.sum()))])
        labels = None
        for _ in range(300):
            apart = np.array([[((p - c) ** 2).sum() for c in centres] for p in points])
            found = apart.argmin(1)
            for centre in range(count):
                if not (found == centre).any():
                    counts = np.bincount(found, minlength=count)
                    own = np.where(counts[found] > 1, apart[np.arange(len(points)), found], -1)
                    found[own.argmax()] = centre
            if labels is not None and (found == labels).all():
                break
            labels = found
            centres = [points[labels == centre].mean(0) for centre in range(count)]
        within = sum(((points[labels == c] - centres[c]) ** 2).sum() for c in range(count))
        if within < least:
            best, least = labels, within
    return best


@pytest.mark.parametrize(("size", "count"), [(12, 3), (20, 7), (30, 12), (9, 9), (8, 1)])
@pytest.mark.parametrize("key", [1, 2, 77])
def test_clusters_are_those_of_the_loops(size: int, count: int, key: int) -> None:
    points = np.random.default_rng(size + key).standard_normal((size, 6))
    labels = clustered(points @ points.T, count, key)
    assert labels.tolist() == by_loops(points, count, key).tolist()
    assert set(labels.tolist()) == set(range(count))


def test_equal_points_still_fill_all_clusters() -> None:
    points = np.ones((6, 3))
    assert set(clustered(points @ points.T, 4, 5).tolist()) == {0, 1, 2, 3}
