"""Truncation weighted by second moments, against dense float64 definitions by numpy."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.linalg.moments import (
    DAMPING,
    Gathered,
    check_weighs,
    moment_of,
    weighted_factors,
)
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.linalg.ranks.rules import RankRule

OUT, INTO = 40, 24


def inputs(rows: int, width: int = INTO, seed: int = 1) -> torch.Tensor:
    """Inputs whose directions differ in size by a thousand."""
    return oracles.with_spectrum(
        rows, width, torch.logspace(2, -1, min(rows, width)).double(), seed
    )


def change(out: int = OUT, width: int = INTO) -> torch.Tensor:
    return oracles.with_spectrum(out, width, oracles.power(min(out, width), 0.3), 2)


def damped(x: torch.Tensor) -> np.ndarray:
    """X with rows that add the damping to its Gram matrix: what COALA regularises by."""
    x = x.double().numpy()
    extra = np.sqrt(DAMPING * (x**2).sum() / x.shape[1])
    return np.concatenate([x, extra * np.eye(x.shape[1])])


def least(d: torch.Tensor, x: np.ndarray, rank: int) -> float:
    """The least |(D - D') X^T| of any D' of that rank: that of the truncated SVD of D X^T."""
    return oracles.best_error(torch.from_numpy(d.double().numpy() @ x.T), rank)


def missed(d: torch.Tensor, up: torch.Tensor, down: torch.Tensor, x: np.ndarray) -> float:
    rest = d.double().numpy() - up.double().numpy() @ down.double().numpy()
    return float(np.linalg.norm(rest @ x.T))


def forms(x: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    gram = x.mT @ x
    lift = 1e-12 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    return {
        "gram": {"gram": gram},
        "cholesky": {"cholesky": torch.linalg.cholesky(gram + lift)},
        "sketch": {"sketch": x, "diagonal": gram.diagonal()},
    }


@pytest.mark.parametrize("form", ["gram", "cholesky", "sketch"])
@pytest.mark.parametrize("rows", [300, 10])
@pytest.mark.parametrize("shape", [(OUT, INTO), (16, INTO)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_no_change_of_that_rank_leaves_less_of_the_output(form, rows, shape, rank):
    """Also where there are fewer inputs than directions, so that the Gram matrix is singular."""
    x, d = inputs(rows), change(*shape).float()
    up, down = weighted_factors(d, moment_of(**forms(x)[form]), RankRule("rank", rank), exact=True)
    assert up.shape == (shape[0], rank)
    assert down.shape == (rank, INTO)
    goal = damped(x)
    assert missed(d, up, down, goal) == pytest.approx(least(d, goal, rank), rel=2e-5)


def test_the_error_by_a_moment_is_that_of_the_output():
    x, d = inputs(300), change().float()
    true = float(np.linalg.norm(d.double().numpy() @ x.numpy().T))
    for told in forms(x).values():
        assert moment_of(**told).norm(d) == pytest.approx(true, rel=1e-5)


def test_of_a_diagonal_columns_are_weighed():
    x, d = inputs(300), change().float()
    lengths = torch.linalg.vector_norm(x, dim=0)
    found = moment_of(diagonal=lengths.square())
    goal = damped(torch.diag(lengths))
    up, down = weighted_factors(d, found, RankRule("rank", 4), exact=True)
    assert missed(d, up, down, goal) == pytest.approx(least(d, goal, 4), rel=2e-5)


def test_equal_inputs_give_the_plain_truncation():
    d = change().float()
    up, down = weighted_factors(d, moment_of(gram=torch.eye(INTO)), RankRule("rank", 6), exact=True)
    assert missed(d, up, down, np.eye(INTO)) == pytest.approx(oracles.best_error(d, 6), rel=2e-5)
    assert torch.linalg.vector_norm(up, dim=0).numpy() == pytest.approx(
        torch.linalg.vector_norm(down, dim=1).numpy(), rel=1e-4
    )


def test_a_rule_chooses_by_the_weighted_change():
    """Inputs along one direction: by weights 0.9 of the change are many ranks, by the output a few."""
    x = torch.zeros(50, INTO).double()
    x[:, 3] = 1.0
    d = change().float()
    up, _ = weighted_factors(d, moment_of(gram=x.mT @ x), RankRule("energy", 0.9))
    assert up.shape[1] == 1


def test_a_sketch_is_within_its_bound_and_never_more():
    """Nystrom's, whatever the blocks: 0 <= X^T X - B^T B, and here far less than |X|^2 / keep."""
    x = inputs(500, 60, seed=5)
    gathered = Gathered(60, 0, 10, torch.device("cpu"))
    for block in x.float().split(37):
        gathered.add(block)
    told = gathered.tensors()
    sketch, diagonal = told["sketch"].double().numpy(), told["diagonal"].double().numpy()
    assert sketch.shape == (10, 60)
    assert told["count"] == 500
    true = x.numpy().T @ x.numpy()
    assert diagonal == pytest.approx(true.diagonal(), rel=1e-5)
    apart = np.linalg.eigvalsh(true - sketch.T @ sketch)
    assert apart[0] >= -1e-6 * np.trace(true)
    assert apart[-1] <= np.trace(true) / 10


def test_a_gram_matrix_is_that_of_all_rows():
    x = inputs(500, 60, seed=5)
    gathered = Gathered(60, 60, 10, torch.device("cpu"))
    for block in x.float().split(37):
        gathered.add(block)
    true = x.numpy().T @ x.numpy()
    assert np.abs(gathered.tensors()["gram"].numpy() - true).max() <= 1e-5 * np.abs(true).max()


@pytest.mark.parametrize("rule", ["size=1mb", "mean=8", "total_error=0.3", "noise", "8,conv=noise"])
def test_rules_that_do_not_combine_are_refused(rule):
    with pytest.raises(ArgumentError, match="give a rank"):
        check_weighs(parse_rule(rule, stored=True))
