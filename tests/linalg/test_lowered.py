"""Matrices in fewer bits: products near those of the matrix, and directions as good as those of float32."""

from __future__ import annotations

import pytest
import torch
from oracles import best_error, error_of, power, with_spectrum
from searches import EXCESS, check_as_good_as_float32, excess, searched
from torch import Tensor

from lorakit.lora_ops.linalg import frobenius, precision
from lorakit.lora_ops.linalg import krylov as module
from lorakit.lora_ops.linalg.lowered import lowered
from lorakit.lora_ops.linalg.precision import has_bf16_units, has_int8_units, search_dtypes

SIDE = 512
BOTH = (torch.int8, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    not precision._multiplies_int8(), reason="this torch does not multiply whole numbers of 8 bits"
)


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with units for both; others compute the same, slowly."""
    monkeypatch.setattr(module, "search_dtypes", lambda _: BOTH)


def matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 200, generator=generator) * torch.logspace(-3, 3, 300)[:, None]
    return [one, one.mT.contiguous().mT]


@pytest.mark.parametrize("matrix", matrices(), ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", BOTH)
def test_products_are_near_those_of_the_matrix(matrix: Tensor, dtype: torch.dtype) -> None:
    matrix = matrix if dtype == torch.bfloat16 else matrix / matrix.norm(dim=-1, keepdim=True)
    low = lowered(matrix, float(frobenius(matrix).square()), (dtype,))
    assert low is not None
    assert low.dtype == dtype
    generator = torch.Generator().manual_seed(1)
    for rows, found, exact in (
        (one := torch.randn(16, 300, generator=generator), low.times(one), matrix),
        (one := torch.randn(16, 200, generator=generator), low.image(one), matrix.mT),
    ):
        expected = rows.double() @ exact.double()
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.015


def test_whole_numbers_are_multiplied_exactly_on_any_number_of_threads() -> None:
    """Rows of which the largest is 127 are their own codes."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(-127, 128, (640, 512), generator=generator).float()
    rows = torch.randint(-127, 128, (32, 512), generator=generator).float()
    matrix[:, 0] = rows[:, 0] = 127
    expected = (rows.long() @ matrix.long().mT).float()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            low = lowered(matrix, float(frobenius(matrix).square()), (torch.int8,))
            assert low is not None
            torch.testing.assert_close(low.image(rows), expected, rtol=3e-7, atol=0)
            assert torch.equal(low.image(rows), low.image(rows))
    finally:
        torch.set_num_threads(threads)


def spiky() -> Tensor:
    """One number in each row thirty times the others: 8 bits have no room for those."""
    matrix = with_spectrum(640, SIDE, power(SIDE, 0.2)).float()
    columns = torch.randint(0, SIDE, (640,), generator=torch.Generator().manual_seed(2))
    matrix[torch.arange(640), columns] = 40 * matrix.square().mean().sqrt()
    return matrix


def test_what_is_too_coarse_in_8_bits_is_not() -> None:
    matrix, total = spiky(), float(frobenius(spiky()).square())
    assert lowered(matrix, total, (torch.int8,)) is None
    low = lowered(matrix, total, BOTH)
    assert low is not None
    assert low.dtype == torch.bfloat16


ROUGH = {
    "i^-0.02": power(SIDE, 0.02),
    "i^-0.1": power(SIDE, 0.1),
    "i^-0.35": power(SIDE, 0.35),
    "i^-0.8": power(SIDE, 0.8),
    "all equal": torch.ones(SIDE).double(),
    "slowly exponential": torch.exp(-0.005 * torch.arange(SIDE)).double(),
}


@pytest.mark.usefixtures("int8")
@pytest.mark.parametrize(
    ("name", "rank"),
    # Of equal values rounding makes some that are larger, which the matrix does not confirm.
    [(name, rank) for name in ROUGH for rank in (8, 32) if (name, rank) != ("all equal", 32)],
)
def test_a_search_in_8_bits_is_as_good_as_one_in_float32(name: str, rank: int) -> None:
    shape = (640, SIDE) if rank == 8 else (SIDE, 700)
    matrix = with_spectrum(*shape, ROUGH[name]).float()
    svd = searched(matrix, rank)
    assert svd.search == (torch.int8,)
    assert len(svd.s) == rank
    check_as_good_as_float32(matrix, svd)


@pytest.mark.usefixtures("int8")
def test_a_matrix_with_outliers_is_searched_in_bfloat16() -> None:
    matrix = spiky()
    svd = searched(matrix, 16)
    assert svd.search == (torch.bfloat16,)
    assert excess(matrix, svd) <= EXCESS


@pytest.mark.usefixtures("int8")
@pytest.mark.parametrize(
    "spectrum",
    [
        power(SIDE, 1.5),
        torch.exp(-0.1 * torch.arange(SIDE)).double(),
        torch.ones(SIDE).double(),  # see above
    ],
)
def test_what_8_bits_cannot_resolve_is_searched_in_float32(spectrum: Tensor) -> None:
    matrix = with_spectrum(640, SIDE, spectrum).float()
    svd = searched(matrix, 32)
    assert svd.search == (torch.float32,)
    error = error_of(matrix, (svd.u.double() * svd.s) @ svd.vh.double())
    assert error <= best_error(matrix, 32) * (1 + EXCESS) + 1e-6 * float(frobenius(matrix))


@pytest.mark.usefixtures("int8")
def test_a_matrix_does_not_depend_on_its_batch() -> None:
    stack = torch.stack(
        [with_spectrum(640, SIDE, power(SIDE, p), i).float() for i, p in enumerate((0.2, 0.5))]
    )
    together = searched(stack, 16)
    for index, matrix in enumerate(stack):
        alone = searched(matrix, 16)
        assert torch.equal(together[index].u, alone.u)
        assert torch.equal(together[index].s, alone.s)


def test_the_fewest_bits_that_the_processor_has_units_for() -> None:
    wide = torch.bfloat16 if has_bf16_units() else torch.float32
    first = torch.int8 if has_int8_units() else wide
    assert search_dtypes(torch.empty(512, 600))[0] == first
