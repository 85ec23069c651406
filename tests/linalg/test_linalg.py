"""Decompositions against LAPACK in float64, and the cheap variants that must fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import DECAYS, best_error, error_of, power, singular_values, steps, with_spectrum
from torch import Tensor

from lorakit.lora_ops.linalg import (
    Svd,
    frobenius,
    gram_svd,
    krylov_svd,
    residual_,
    spectrum,
    truncated_svd,
)

# What the default is allowed above the best possible error, as a share of it.
EXCESS = 1e-3
# Below this share of the norm, float32 products resolve nothing.
FLOOR = 1e-5

SHAPES = [(640, 320), (320, 640), (512, 512), (300, 40), (40, 300), (16, 16), (1, 5), (5, 1)]
METHODS = ["gram", "krylov", "default"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decompose(method: str, matrix: Tensor, rank: int, seed: int = 0) -> Svd:
    total = frobenius(matrix).square()
    if method == "gram":
        return gram_svd(matrix, rank)
    if method == "krylov":
        return krylov_svd(matrix, rank, total, seed)
    return truncated_svd(matrix, rank, total, seed)


def product(svd: Svd) -> Tensor:
    return (svd.u.double() * svd.s.unsqueeze(-2)) @ svd.vh.double()


def tail(values: Tensor, rank: int) -> float:
    """The best possible error of that rank, where the singular values are known."""
    return math.sqrt(float(values[rank:].square().sum()))


def excess(matrix: Tensor, values: Tensor, svd: Svd) -> float:
    """How much worse than the best of that rank, as a share of the best."""
    best = tail(values, len(svd.s))
    return (error_of(matrix, product(svd)) - best) / best


def matrix_of(out: int, into: int, values: Tensor, seed: int = 0) -> Tensor:
    return with_spectrum(out, into, values, seed).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_properties_of_a_decomposition(method, shape):
    matrix = torch.randn(shape)
    rank = min(8, *shape)
    svd = decompose(method, matrix, rank)
    assert (svd.u.shape, svd.s.shape, svd.vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    assert (svd.u.dtype, svd.s.dtype, svd.vh.dtype) == (torch.float32, torch.float64, torch.float32)
    eye = torch.eye(rank)
    assert torch.allclose(svd.u.mT @ svd.u, eye, atol=3e-6)
    assert torch.allclose(svd.vh @ svd.vh.mT, eye, atol=3e-6)
    assert bool((svd.s.diff() <= 0).all())
    assert bool((svd.s > 0).all())
    # Eckart and Young: the error is the tail, and what is kept and what is lost are orthogonal.
    error = error_of(matrix, product(svd))
    assert error >= best_error(matrix, rank) * (1 - 1e-6)
    kept = math.sqrt(math.fsum(svd.s.tolist()[i] ** 2 for i in range(rank)))
    assert math.isclose(math.hypot(error, kept), float(matrix.double().norm()), rel_tol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_entry_of_each_left_vector_is_positive(method):
    matrix = torch.randn(320, 300)
    svd = decompose(method, matrix, 8)
    largest = svd.u.abs().argmax(dim=0)
    assert bool((svd.u[largest, torch.arange(8)] > 0).all())


def test_a_sign_is_no_accident_of_the_start():
    matrix = matrix_of(400, 320, power(320, 0.8))
    ours, others = (decompose("krylov", matrix, 4, seed) for seed in (0, 1))
    assert torch.allclose(ours.u, others.u, atol=1e-2)
    flipped = gram_svd(-matrix, 4)
    assert torch.allclose(flipped.u, ours.u, atol=1e-2)
    assert torch.allclose(flipped.vh, -ours.vh, atol=1e-2)


@pytest.mark.parametrize("exponent", [*DECAYS, "steps"])
@pytest.mark.parametrize(("rank", "shape"), [(4, (640, 384)), (16, (320, 480)), (64, (640, 768))])
def test_the_default_is_as_good_as_the_best(exponent, rank, shape):
    side = min(shape)
    values = steps(side) if exponent == "steps" else power(side, exponent)
    matrix = matrix_of(*shape, values)
    for method in METHODS:
        assert excess(matrix, values, decompose(method, matrix, rank)) <= EXCESS


@pytest.mark.parametrize("exponent", [0.2, 0.5])
def test_twin_few_subspace_iterations_are_not_good_enough(exponent):
    values = power(384, exponent)
    matrix = matrix_of(384, 512, values)
    assert excess(matrix, values, decompose("krylov", matrix, 32)) <= EXCESS
    for iterations in (0, 1):
        u, s, v = torch.svd_lowrank(matrix, q=32, niter=iterations)
        assert excess(matrix, values, Svd(u, s.double(), v.mT)) > EXCESS


def test_twins_a_loose_tolerance_and_a_wrong_total_are_not_good_enough():
    """With a total far too large the tail looks long, and hardly any gain seems worth a step."""
    values = torch.exp(-0.005 * torch.arange(640)).double()
    matrix = matrix_of(640, 768, values)
    total = frobenius(matrix).square()
    assert excess(matrix, values, krylov_svd(matrix, 32, total)) <= EXCESS
    loose = krylov_svd(matrix, 32, total, tolerance=1e6)
    wrong = krylov_svd(matrix, 32, 1e6 * total)
    assert excess(matrix, values, loose) > EXCESS
    assert excess(matrix, values, wrong) > EXCESS


@pytest.mark.parametrize("shape", [(512, 400), (400, 512), (300, 300), (200, 90)])
@pytest.mark.parametrize("true_rank", [1, 3, 10, 16])
@pytest.mark.parametrize("method", METHODS)
def test_an_exact_rank_below_the_one_asked_for_comes_back_to_rounding(method, true_rank, shape):
    low = torch.randn(shape[0], true_rank) @ torch.randn(true_rank, shape[1])
    rows, columns = torch.zeros(shape), torch.zeros(shape)
    rows[:true_rank] = torch.randn(true_rank, shape[1])  # all other rows, or columns, are zero
    columns[:, -true_rank:] = torch.randn(shape[0], true_rank)
    for matrix in (low, rows, columns):
        svd = decompose(method, matrix, 16)
        assert error_of(matrix, product(svd)) <= 1e-5 * float(matrix.norm())
        assert int((svd.s > 1e-5 * svd.s[0]).sum()) == true_rank
        held = svd.s > 0
        for vectors in (svd.u.mT[held], svd.vh[held]):
            assert torch.allclose(vectors @ vectors.mT, torch.eye(len(vectors)), atol=1e-4)


def test_columns_of_nothing():
    """Of sparse matrices: a direction without any number is no direction, however small its share looks."""
    source = torch.Generator().manual_seed(0)
    for seed in range(40):
        matrix = torch.randn(24, 16, generator=source)
        matrix *= torch.rand(24, 16, generator=source) < 0.3
        matrix[:, seed % 16] = 0
        for rank in (8, 15, 16):
            svd = gram_svd(matrix, rank)
            best = torch.linalg.svdvals(matrix.double())[rank:].norm()
            error = ((svd.u * svd.s) @ svd.vh.double() - matrix).norm()
            assert error <= 1.0001 * best + 1e-5 * matrix.norm()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_almost_nothing(method):
    nothing = torch.zeros(320, 300)
    svd = decompose(method, nothing, 16)
    assert not bool(svd.s.any())
    assert not bool(product(svd).any())
    one = nothing.clone()
    one[7, 11] = -2.0
    svd = decompose(method, one, 16)
    assert error_of(one, product(svd)) <= 2e-5
    assert svd.s[0] == pytest.approx(2)
    assert not bool((svd.s[1:] > 2e-5).any())


@pytest.mark.parametrize("shape", [(400, 300), (120, 160)])
@pytest.mark.parametrize("spread", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("method", METHODS)
def test_ill_conditioned_matrices_are_resolved_down_to_float32(method, spread, shape):
    values = torch.cat([torch.ones(8).double(), spread * power(min(shape) - 8, 0.5)])
    matrix = matrix_of(*shape, values)
    svd = decompose(method, matrix, 16)
    allowed = tail(values, 16) * (1 + EXCESS) + FLOOR * float(matrix.norm())
    assert error_of(matrix, product(svd)) <= allowed
    assert np.allclose(svd.s[:8], 1, atol=1e-6)


@pytest.mark.parametrize("exponent", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_steep_spectra(method, exponent):
    values = power(300, exponent)
    matrix = matrix_of(400, 300, values)
    svd = decompose(method, matrix, 32)
    allowed = tail(values, 32) * (1 + EXCESS) + FLOOR * float(matrix.norm())
    assert error_of(matrix, product(svd)) <= allowed


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (320, 400)])
def test_spectrum_against_numpy(shape):
    matrix = matrix_of(*shape, power(min(shape), 0.8))
    found, known = spectrum(matrix), singular_values(matrix)
    assert found.dtype == torch.float64
    assert np.allclose(found, known, rtol=1e-4, atol=0)
    assert spectrum(torch.zeros(shape)).tolist() == [0.0] * min(shape)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (320, 400)])
@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_its_matrices_one_by_one(method, shape):
    values = power(min(shape), 0.8)
    stack = torch.stack([matrix_of(*shape, values, seed) for seed in range(3)])
    norms, svd = frobenius(stack), decompose(method, stack, 8)
    assert (norms.shape, svd.u.shape, svd.vh.shape) == ((3,), (3, shape[0], 8), (3, 8, shape[1]))
    for index, matrix in enumerate(stack):
        alone = decompose(method, matrix, 8)
        assert float(norms[index]) == pytest.approx(float(frobenius(matrix)), rel=1e-7)
        # A stack takes as many steps as its slowest matrix, so an iteration may be a little better.
        assert torch.allclose(svd[index].s, alone.s, rtol=1e-3 if method == "krylov" else 1e-5)
        assert abs(excess(matrix, values, svd[index])) <= EXCESS
        assert torch.allclose(spectrum(stack)[index], spectrum(matrix), rtol=1e-4)


def test_a_stack_waits_for_its_slowest_matrix():
    flat = power(384, 0.2)
    slow, quick = matrix_of(512, 384, flat, 1), matrix_of(512, 384, power(384, 3), 2)
    svd = decompose("krylov", torch.stack([quick, slow]), 16)
    assert excess(slow, flat, svd[1]) <= EXCESS


def test_factors_share_the_singular_values_evenly():
    matrix = matrix_of(60, 90, power(60, 0.8))
    svd = gram_svd(matrix, 8)
    up, down = svd.factors()
    assert error_of(product(svd), up @ down) <= 1e-6 * float(matrix.norm())
    roots = svd.s.sqrt().float()
    assert torch.allclose(up.norm(dim=0), roots, rtol=1e-5)
    assert torch.allclose(down.norm(dim=1), roots, rtol=1e-5)


def test_truncation_keeps_the_leading_ones():
    svd = gram_svd(torch.randn(60, 90), 8)
    few = svd.truncate(3)
    assert torch.equal(few.s, svd.s[:3])
    assert torch.equal(few.u, svd.u[:, :3])
    assert torch.equal(few.vh, svd.vh[:3])


def test_the_same_seed_gives_the_same_bytes_and_another_the_same_quality():
    values = power(512, 0.5)
    matrix = matrix_of(640, 512, values)
    first, again, other = (decompose("krylov", matrix, 16, seed) for seed in (0, 0, 1))
    for ours, theirs in zip(first.factors(), again.factors(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.u, other.u)
    assert excess(matrix, values, first) <= EXCESS
    assert excess(matrix, values, other) <= EXCESS


@pytest.mark.parametrize("method", METHODS)
def test_the_global_generator_and_the_matrix_are_untouched(method):
    matrix = torch.randn(640, 512)
    before, copy = torch.get_rng_state(), matrix.clone()
    decompose(method, matrix, 16)
    spectrum(matrix)
    frobenius(matrix)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(matrix, copy)


def test_residual_sees_what_the_identity_of_inner_products_cannot():
    up, down = torch.randn(300, 8), torch.randn(8, 400)
    clean = (up.double() @ down.double()).float()
    norm = float(clean.double().norm())
    noise = torch.randn(300, 400)
    delta = clean + noise * (1e-6 * norm / float(noise.norm()))
    truth = error_of(delta, up.double() @ down.double())
    assert 0.9e-6 * norm < truth < 1.2e-6 * norm

    approximation = up @ down
    three = delta.square().sum() - 2 * (delta * approximation).sum() + approximation.square().sum()
    twin = math.sqrt(max(0.0, float(three)))
    assert abs(twin - truth) > truth / 2

    kept = delta.clone()
    assert float(residual_(delta, up, down)) == pytest.approx(truth, rel=0.2)
    assert not torch.equal(delta, kept)  # the memory of the difference is used


def test_residual_of_a_stack():
    delta, up, down = torch.randn(3, 60, 90), torch.randn(3, 60, 4), torch.randn(3, 4, 90)
    known = [error_of(d, u.double() @ w.double()) for d, u, w in zip(delta, up, down, strict=True)]
    assert np.allclose(residual_(delta.clone(), up, down), known, rtol=1e-6)


def test_a_norm_of_thirty_million_entries():
    """In 120 MB; one float32 sum over all of them, the twin, is off in the third digit."""
    matrix = torch.empty(3000, 10_000).normal_(generator=seeded()).add_(1)
    known = math.sqrt(math.fsum(float(row.double().square().sum()) for row in matrix))
    assert float(frobenius(matrix)) == pytest.approx(known, rel=1e-7)
    assert float(frobenius(matrix.reshape(1, -1))) == pytest.approx(known, rel=1e-7)
    halves = frobenius(matrix.reshape(2, 1, -1))  # of a stack each its own
    assert math.hypot(*halves.tolist()) == pytest.approx(known, rel=1e-7)
    assert float(torch.linalg.vector_norm(matrix)) != pytest.approx(known, rel=1e-4)
