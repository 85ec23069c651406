"""The forms of one truncation that docs/activations.md compares: what they agree on, and what inverting costs."""

from __future__ import annotations

import oracles
import pytest
import torch
from make_forms import FORMS, excess

OUT, INTO = 30, 24


def change() -> torch.Tensor:
    return oracles.with_spectrum(OUT, INTO, oracles.power(INTO, 0.3), 2).double()


def inputs(rows: int, least: float) -> torch.Tensor:
    """Inputs whose directions differ in size as told, as powers of ten."""
    return oracles.with_spectrum(rows, INTO, torch.logspace(0, least, min(rows, INTO)).double(), 1)


@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("name", FORMS)
def test_of_inputs_in_all_directions_every_form_is_the_best(name: str, rank: int) -> None:
    bound = 1e-3 if "here" in name else 1e-9  # with what is added to the diagonal
    assert abs(excess(FORMS[name], change(), inputs(200, -2), rank, torch.float64)) < bound


def test_where_inputs_leave_directions_out_there_is_a_result_without_a_root_to_invert() -> None:
    seen = inputs(200, -2)
    seen[:, 3:7] = 0
    assert int(torch.linalg.cholesky_ex(seen.float().mT @ seen.float()).info) > 0
    for name in ("COALA", "COALA, 0.001 on the diagonal (here)"):
        assert excess(FORMS[name], change(), seen, 5, torch.float32) < 1e-3
