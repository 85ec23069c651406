"""Element-wise products of two matrices of low rank, against the definition in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorakit.lora_ops.linalg.hadamard import nearest_hadamard, solve_rows


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def product(found):
    return (found.up_1 @ found.down_1) * (found.up_2 @ found.down_2)


def test_each_row_is_its_least_squares_solution():
    matrix, other, down = normal(7, 11), normal(7, 11, seed=1), normal(3, 11, seed=2)
    solved = solve_rows(matrix, other, down)
    for i in range(7):
        x = torch.linalg.lstsq((down * other[i]).T, matrix[i]).solution
        torch.testing.assert_close(solved[i], x, rtol=1e-8, atol=1e-8)


def test_a_row_of_zeros_has_a_solution():
    other = normal(4, 9, seed=1)
    other[2] = 0
    solved = solve_rows(normal(4, 9), other, normal(2, 9, seed=2))
    assert torch.isfinite(solved).all()
    assert float(solved[2].abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_that_it_says_is_the_error(dtype):
    matrix = normal(30, 40).to(dtype)
    found = nearest_hadamard(matrix, 3)
    left = float((matrix.double() - product(found).double()).norm())
    assert found.residual == pytest.approx(left, rel=1e-5)
    assert found.sweeps > 1


@pytest.mark.parametrize("seed", range(3))
def test_every_sweep_lessens_the_error(monkeypatch, seed):
    matrix, errors = normal(24, 36, seed=seed), []
    for sweeps in range(8):
        monkeypatch.setattr("lorakit.lora_ops.linalg.hadamard._SWEEPS", sweeps)
        found = nearest_hadamard(matrix, 3)
        assert found.sweeps == sweeps
        errors.append(found.residual)
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_its_end_is_a_stationary_point(monkeypatch):
    """The gradient of the squared error is zero there, for all four factors."""
    monkeypatch.setattr("lorakit.lora_ops.linalg.hadamard._SWEEPS", 3000)
    monkeypatch.setattr("lorakit.lora_ops.linalg.hadamard._GAIN", 1e-12)
    matrix = normal(12, 15)
    found = nearest_hadamard(matrix, 2)
    factors = [
        one.clone().requires_grad_() for one in (found.up_1, found.down_1, found.up_2, found.down_2)
    ]
    up_1, down_1, up_2, down_2 = factors
    ((up_1 @ down_1) * (up_2 @ down_2) - matrix).square().sum().backward()
    sizes = [float(one.grad.norm()) for one in factors if one.grad is not None]
    assert len(sizes) == 4
    assert max(sizes) < 1e-3 * float(matrix.norm())


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_it_is_better_than_the_truncation_of_its_rank(rank):
    """Each half alone can be that truncation."""
    planted = (normal(40, 3) @ normal(3, 50, seed=1)) * (
        normal(40, 3, seed=2) @ normal(3, 50, seed=3)
    )
    for matrix in (planted, normal(40, 50, seed=4)):
        tail = torch.linalg.svdvals(matrix)[rank:]
        assert nearest_hadamard(matrix, rank).residual < 0.97 * float(tail.norm())


def test_the_numbers_of_both_pairs_stay_of_one_size():
    found = nearest_hadamard(normal(20, 30) * 1e-4, 4)
    for up, down in ((found.up_1, found.down_1), (found.up_2, found.down_2)):
        assert 0.2 < float(up.norm() / down.norm()) < 5
