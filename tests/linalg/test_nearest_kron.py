"""The nearest Kronecker product against the definition, in float64."""

from __future__ import annotations

import pytest
import torch

from lorakit.lora_ops.linalg.nearest_kron import nearest_kron, nearest_thin_kron, rearranged

SHAPES = [((3, 4), (5, 6)), ((1, 4), (7, 3)), ((4, 1), (1, 8)), ((6, 6), (6, 6))]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blocks(matrix, outer, inner):
    """Every block as a row, by loops."""
    (a, b), (c, n) = outer, inner
    return torch.stack(
        [
            matrix[i * c : (i + 1) * c, j * n : (j + 1) * n].flatten()
            for i in range(a)
            for j in range(b)
        ]
    )


def error(matrix, first, second):
    made = torch.kron(first.double().contiguous(), second.double().contiguous())
    return float((matrix.double() - made).norm())


@pytest.mark.parametrize(("outer", "inner"), SHAPES)
def test_blocks_become_rows(outer, inner):
    matrix = normal(outer[0] * inner[0], outer[1] * inner[1])
    assert torch.equal(rearranged(matrix, outer), blocks(matrix, outer, inner))


@pytest.mark.parametrize(("outer", "inner"), SHAPES)
def test_its_error_is_the_tail_of_the_rearranged_matrix(outer, inner):
    matrix = normal(outer[0] * inner[0], outer[1] * inner[1])
    first, second = nearest_kron(matrix, outer)
    assert first.shape == outer
    assert second.shape == inner
    tail = torch.linalg.svdvals(blocks(matrix, outer, inner).double())[1:]
    assert error(matrix, first, second) == pytest.approx(float(tail.norm()), abs=1e-5)


@pytest.mark.parametrize(("outer", "inner"), SHAPES)
def test_a_kronecker_product_comes_back(outer, inner):
    first, second = normal(*outer, seed=1), normal(*inner, seed=2)
    matrix = torch.kron(first, second)
    assert error(matrix, *nearest_kron(matrix, outer)) <= 1e-5 * float(matrix.norm())


def test_no_product_near_it_is_nearer():
    matrix = normal(12, 20)
    first, second = nearest_kron(matrix, (3, 4))
    best = error(matrix, first, second)
    for seed in range(20):
        step = 0.05 * normal(3, 4, seed=seed + 10), 0.05 * normal(4, 5, seed=seed + 50)
        assert error(matrix, first + step[0], second + step[1]) > best


def test_a_product_with_a_thin_second_comes_back():
    low = normal(8, 2, seed=3) @ normal(2, 10, seed=4)
    matrix = torch.kron(normal(3, 4, seed=5), low)
    first, svd = nearest_thin_kron(matrix, nearest_kron(matrix, (3, 4))[0], 2)
    up, down = svd.factors()
    assert error(matrix, first, up @ down) <= 1e-5 * float(matrix.norm())
    assert float(first.norm()) == pytest.approx(1, abs=1e-6)


def test_taking_turns_is_better_than_cutting_the_nearest_product():
    """Twin: the second matrix of the nearest product, cut, is no best answer."""
    gained = []
    for seed in range(5):
        matrix = normal(24, 30, seed=seed)
        first, second = nearest_kron(matrix, (3, 3))
        u, s, vh = torch.linalg.svd(second)
        cut = error(matrix, first, (u[:, :2] * s[:2]) @ vh[:2])
        turned, svd = nearest_thin_kron(matrix, first, 2)
        up, down = svd.factors()
        gained.append(cut - error(matrix, turned, up @ down))
    assert min(gained) > 1e-3
