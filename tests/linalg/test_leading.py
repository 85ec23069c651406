"""The leading eigenvectors of a Gram matrix alone, against all of them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import best_error, error_of, power, with_spectrum
from torch import Tensor

from lorakit.lora_ops.linalg import gram, gram_svd, leading
from lorakit.lora_ops.linalg.leading import leading_vectors

SIDE, RANK, SPARE = 1024, 16, 24


def matrix_of(values: Tensor) -> Tensor:
    return with_spectrum(1100, SIDE, values).float()


@pytest.mark.parametrize("exponent", [0.02, 0.2, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_hold_what_the_largest_eigenvalues_do(exponent: float, dtype: torch.dtype) -> None:
    matrix = matrix_of(power(SIDE, exponent)).to(dtype)
    square = matrix.mT @ matrix
    rows = leading_vectors(square, RANK, SPARE)
    assert rows is not None
    assert rows.shape == (SPARE, SIDE)
    wide = rows.double()
    assert torch.allclose(wide @ wide.mT, torch.eye(SPARE).double(), atol=1e-5)
    known = np.linalg.eigvalsh(square.double().numpy())[::-1]
    held = (wide[:RANK] @ square.double() @ wide[:RANK].mT).trace()
    # What is missed, as a share of the squared error of the best truncation.
    assert known[:RANK].sum() - float(held) <= 1e-7 * known[RANK:].sum()


def test_the_truncation_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def watched(*arguments: object) -> Tensor | None:
        rows = leading_vectors(*arguments)  # type: ignore[arg-type]
        found.append(rows is not None)
        return rows

    monkeypatch.setattr(gram, "leading_vectors", watched)
    stack = torch.stack([matrix_of(power(SIDE, p)) for p in (0.1, 0.5)]).mT
    svds = gram_svd(stack, RANK)
    assert found == [True, True]
    for index, matrix in enumerate(stack):
        svd, best = svds[index], best_error(matrix, RANK)
        error = error_of(matrix, (svd.u.double() * svd.s) @ svd.vh.double())
        assert best * (1 - 1e-9) <= error <= best * (1 + 1e-7)


def test_an_eigenvalue_that_was_overlooked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them but the largest pass for the leading ones by their residuals: there is none."""
    matrix = matrix_of(power(SIDE, 0.3))
    square = matrix.mT @ matrix
    assert leading._are_largest(square, *_pairs(square, 0))
    assert not leading._are_largest(square, *_pairs(square, 1))
    monkeypatch.setattr(leading, "_are_largest", lambda *_: False)
    assert leading_vectors(square, RANK, SPARE) is None


def _pairs(square: Tensor, first: int) -> tuple[Tensor, Tensor, float]:
    """Leading eigenvectors from that one on, as rows, their eigenvalues, and the least one wanted."""
    values, vectors = torch.linalg.eigh(square)
    values, rows = values.flip(-1)[first:SPARE], vectors.flip(-1).mT[first:SPARE]
    return rows, values, float(values[RANK - 1 - first])


@pytest.mark.parametrize("values", [torch.ones(20), torch.cat([torch.ones(40), torch.zeros(984)])])
def test_what_is_small_or_leaves_nothing_is_done_otherwise(values: Tensor) -> None:
    side = len(values)
    matrix = with_spectrum(side, side, values.double()).float()
    assert (
        leading_vectors(matrix.mT @ matrix, 8 if side < 100 else 48, 16 if side < 100 else 56)
        is None
    )


def test_a_gram_matrix_by_parts_is_that_matrix() -> None:
    for shape in ((300, 5), (700, 600), (2, 400, 300), (1100, 1030)):
        tall = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
        assert torch.allclose(gram._gram(tall), tall.mT @ tall)
