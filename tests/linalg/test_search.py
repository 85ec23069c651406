"""Directions searched in bfloat16 and in float32: as good as stated, never where that cannot tell, and said so."""

from __future__ import annotations

import pytest
import torch
from oracles import best_error, error_of, power, with_spectrum
from searches import EXCESS, check_as_good_as_float32, excess, searched
from torch import Tensor

from lorakit.lora_ops.linalg import frobenius
from lorakit.lora_ops.linalg import krylov as module
from lorakit.lora_ops.linalg.precision import has_bf16_units, has_int8_units, search_dtypes

SIDE = 512


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with bfloat16 units; others compute the same, slowly."""
    monkeypatch.setattr(module, "search_dtypes", lambda _: (torch.bfloat16,))


def spiked(height: float) -> Tensor:
    values = power(SIDE, 0.1)
    values[0] = height
    return values


ROUGH = {
    "i^-0.02": power(SIDE, 0.02),
    "i^-0.1": power(SIDE, 0.1),
    "i^-0.35": power(SIDE, 0.35),
    "i^-0.8": power(SIDE, 0.8),
    "one far above": spiked(10),
    "all equal": torch.ones(SIDE).double(),
    "slowly exponential": torch.exp(-0.005 * torch.arange(SIDE)).double(),
}


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize(
    ("name", "rank"),
    # Of i^-0.8 too little is left at rank 32: below.
    [(name, rank) for name in ROUGH for rank in (8, 32) if (name, rank) != ("i^-0.8", 32)],
)
def test_a_search_in_bfloat16_is_as_good_as_one_in_float32(name: str, rank: int) -> None:
    shape = (640, SIDE) if rank == 8 else (SIDE, 700)
    matrix = with_spectrum(*shape, ROUGH[name]).float()
    svd = searched(matrix, rank)
    assert svd.search == (torch.bfloat16,)
    assert len(svd.s) == rank
    check_as_good_as_float32(matrix, svd)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ROUGH)
def test_a_search_in_float32_needs_no_other(
    name: str, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "search_dtypes", lambda _: (torch.float32,))
    monkeypatch.delattr(module, "_Spaces")
    matrix = with_spectrum(1100, SIDE, ROUGH[name]).float()
    svd = searched(matrix.mT.contiguous().mT if turned else matrix, 16)
    assert svd.search == (torch.float32,)
    check_as_good_as_float32(matrix, svd)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_directions_of_very_different_lengths_are_not_searched_twice(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block whose rows are of lengths 100 apart is orthogonal to a hundredth, if it is made so once."""
    monkeypatch.setattr(module, "search_dtypes", lambda _: (dtype,))
    monkeypatch.delattr(module, "_Spaces")
    matrix = with_spectrum(640, 640, power(640, 0.9), seed).float()
    svd = searched(matrix, 32)
    assert svd.search == (dtype,)
    check_as_good_as_float32(matrix, svd)


def low_rank(rank: int, rest: float) -> Tensor:
    values = torch.full((SIDE,), rest).double()
    values[:rank] = 1
    return values


STEEP = {
    "exact rank": low_rank(20, 0),
    "exact rank, and fp16's rounding": low_rank(20, 1e-2),
    "i^-1.5": power(SIDE, 1.5),
    "exponential": torch.exp(-0.1 * torch.arange(SIDE)).double(),
    "one very far above": spiked(1000),
}


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("name", STEEP)
def test_what_bfloat16_cannot_resolve_is_searched_in_float32(name: str) -> None:
    matrix = with_spectrum(640, SIDE, STEEP[name]).float()
    svd = searched(matrix, 32)
    assert svd.search == (torch.float32,)
    error = error_of(matrix, (svd.u.double() * svd.s) @ svd.vh.double())
    allowed = best_error(matrix, 32) * (1 + EXCESS) + 1e-6 * float(frobenius(matrix))
    assert error <= allowed


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("size", [1e-14, 1e-6, 1e14])
def test_the_size_of_the_numbers_changes_nothing(size: float) -> None:
    matrix = (with_spectrum(640, SIDE, power(SIDE, 0.3)) * size).float()
    assert excess(matrix, searched(matrix, 16)) <= EXCESS


@pytest.mark.usefixtures("units")
def test_the_same_inputs_give_the_same_bytes() -> None:
    matrix = with_spectrum(SIDE, 640, power(SIDE, 0.3)).float()
    one, again, other = (searched(matrix, 16, seed) for seed in (0, 0, 1))
    for ours, theirs in zip(one.factors(), again.factors(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(one.u, other.u)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("turned", [False, True])
def test_each_matrix_of_a_stack_has_its_own_precision(turned: bool) -> None:
    spectra = (power(SIDE, 0.2), low_rank(20, 1e-2), power(SIDE, 0.02))
    stack = torch.stack([with_spectrum(640, SIDE, s, i).float() for i, s in enumerate(spectra)])
    svds = searched(stack.mT if turned else stack, 32)
    found = [svds[i].mT if turned else svds[i] for i in range(3)]
    low, full = torch.bfloat16, torch.float32
    assert svds.search == (low, full, low)
    for matrix, svd, dtype in zip(stack, found, (low, full, low), strict=True):
        assert svd.search == (dtype,)
        assert svd.truncate(8).search == (dtype,)
        assert excess(matrix, svd) <= EXCESS


def test_only_large_matrices_on_processors() -> None:
    low = (torch.int8,) if has_int8_units() else ()
    low = (*low, torch.bfloat16 if has_bf16_units() else torch.float32)
    assert search_dtypes(torch.empty(512, 600)) == low
    assert search_dtypes(torch.empty(2, 900, 512)) == low
    assert search_dtypes(torch.empty(900, 511)) == ()
    assert search_dtypes(torch.empty(600, 600, device="meta")) == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_spectrum_with_a_shoulder_keeps_the_bound(seed: int) -> None:
    """Gains that shrink by ever less: their last rate, taken for all that follow, stops too early."""
    values = torch.exp(-0.005 * torch.arange(330)).double()
    matrix = with_spectrum(400, 330, values, seed).float()
    svd = searched(matrix, 8, seed)
    assert svd.search == (torch.float32,)
    assert excess(matrix, svd) <= EXCESS
