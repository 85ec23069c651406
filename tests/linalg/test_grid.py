"""How coarsely a source stores decides what is rounding: also where its dtype does not tell."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor

from lorakit.lora_ops import DictSource, extract
from lorakit.lora_ops.errors import MismatchError
from lorakit.lora_ops.models.architectures import Parameter
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.models.grids import parameter_grid
from lorakit.lora_ops.models.parameter import Piece
from lorakit.lora_ops.source import TensorSource
from lorakit.lora_ops.spacing import spacing

KEY = "diffusion_model.blocks.0.q.weight"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_spacing_is_the_gap_to_the_next_number(dtype: torch.dtype) -> None:
    """Against the table of all numbers of the dtype, zero and the subnormal ones among them."""
    values = oracles.finite_values(dtype).double()
    values = values[values >= 0].unique()
    gaps = values[1:] - values[:-1]
    assert torch.equal(spacing(values[:-1], dtype), gaps)
    assert torch.equal(spacing(-values[:-1], dtype), gaps)
    between = values[:-1] + 0.4 * gaps
    assert torch.equal(spacing(between, dtype), gaps)


def test_spacing_of_wide_numbers_is_numpys() -> None:
    exponents = torch.arange(-1074.0, 1023, 7, dtype=torch.float64)
    values = torch.ldexp(torch.tensor(1.37, dtype=torch.float64), exponents)
    assert spacing(values, torch.float64).tolist() == np.spacing(values.numpy()).tolist()
    single = values.float()[values.float().isfinite()]
    expected = np.spacing(single.numpy()).astype(np.float64).tolist()
    assert spacing(single, torch.float32).tolist() == expected


def test_spacing_of_what_is_no_float() -> None:
    assert spacing(torch.tensor([0, -7]), torch.int8).tolist() == [1, 1]
    found = spacing(torch.tensor([math.inf, -math.inf, math.nan]), torch.float16)
    assert bool(found.isnan().all())


class Places(TensorSource):
    """Its numbers are their own places, and so is what it says of its grid."""

    name = "places"

    def __init__(self, *shape: int) -> None:
        self._shape = shape

    def keys(self) -> list[str]:
        return ["a"]

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shape

    def dtype(self, key: str) -> torch.dtype:
        return torch.float64

    def tensor(self, key: str) -> Tensor:
        return torch.arange(math.prod(self._shape), dtype=torch.float64).reshape(self._shape)

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        return torch.arange(start, start + values.numel()).double().reshape(values.shape)


def part(first: int, last: int, swapped: bool = False) -> Piece:
    """Some rows of the tensor, of 4 columns or 5."""
    columns = 5 if last - first == 3 and not swapped else 4
    inner = Parameter("n", "a", (last - first, columns), rows=(first, last))
    return Piece(inner, (0, last - first), swapped)


TURNED = Parameter("n", "a", (9, 4), transposed=True)


@pytest.mark.parametrize(
    ("stored", "parameter"),
    [
        ((4, 6), Parameter("n", "a", (4, 6))),
        ((9, 5, 2), Parameter("n", "a", (3, 5, 2), rows=(3, 6))),
        ((4, 6), Parameter("n", "a", (6, 4), transposed=True)),
        ((9, 5), Parameter("n", "a", (5, 3), rows=(3, 6), transposed=True)),
        ((7,), Parameter("n", "a", (3,), rows=(4, 7))),
        ((), Parameter("n", "a", ())),
        ((9, 5), Parameter("n", "a", (9, 5), pieces=(part(3, 6), part(0, 3), part(6, 9)))),
        ((9, 4), Parameter("n", "a", (7, 4), pieces=(part(5, 9, True), part(0, 3, True)))),
        ((9, 4), Parameter("n", "a", (9, 2, 2), pieces=(part(4, 9), part(0, 4)))),
        ((4, 9), Parameter("n", "a", (9, 4), pieces=(Piece(TURNED, (0, 9), True),))),
        ((9, 4), Parameter("n", "a", (3, 4), rows=(2, 5), pieces=(part(4, 9), part(0, 4)))),
    ],
)
def test_a_parameter_has_the_grid_of_its_place_in_the_tensor(
    stored: tuple[int, ...], parameter: Parameter
) -> None:
    source = Places(*stored)
    expected = read_parameter(source, parameter).reshape(-1)
    grid = parameter_grid(source, parameter)
    assert math.prod(parameter.shape) == len(expected)
    for start in range(len(expected)):
        for end in range(start + 1, len(expected) + 1):
            found = grid(torch.zeros(end - start, dtype=torch.float64), start)
            assert torch.equal(found, expected[start:end])


class Rowwise(DictSource):
    """A matrix in 8-bit integers, of a scale a row, as float32: what a quantised file will be."""

    def __init__(self, weight: Tensor, top: float) -> None:
        self.scales = weight.abs().amax(1, keepdim=True) / top
        super().__init__({KEY: (weight / self.scales).round() * self.scales})

    def storage(self, key: str) -> str:
        return "int8 by rows"

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        rows = torch.arange(start, start + values.numel()) // self.shape(key)[1]
        return self.scales[rows, 0].double().reshape(values.shape)


def test_what_was_only_quantised_again_is_rounding() -> None:
    weight = torch.randn(96, 64) * torch.logspace(-3, 0, 96)[:, None]
    one, other = Rowwise(weight, 127), Rowwise(weight, 111)
    with pytest.raises(MismatchError, match="1 only storage rounding differs"):
        extract(one, other, 4)
    # By the dtype alone it would be a change, and so it is where a number lies further away.
    plain = DictSource({KEY: other.tensor(KEY)})
    assert len(extract(DictSource({KEY: one.tensor(KEY)}), plain, 4)[0].layers) == 1
    moved = Rowwise(weight, 111)
    moved.tensor(KEY)[-1, -1] += 2.5 * float(moved.scales[-1])
    assert len(extract(one, moved, 4)[0].layers) == 1
