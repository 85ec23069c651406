"""Methods that make factors, against their definitions on whole matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.methods import FACTORED, Task, check_adding
from lorakit.lora_ops.operations.methods.factored.frame import framed

OUT, INTO = 70, 50
WEIGHTS = (1.0, -0.6, 0.3)
SCALES = (0.5, 1.0, 2.0)
RANKS = (4, 6, 3)


def pairs(seed=0, ranks=RANKS, out=OUT, into=INTO):
    source = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(out, rank, generator=source) * 0.3,
            torch.randn(rank, into, generator=source) * 0.2,
        )
        for rank in ranks
    ]


def frame_of(factors, scales=SCALES):
    up = torch.cat([one for one, _ in factors], dim=1)
    down = torch.cat([other for _, other in factors])
    return framed(up, down, [one.shape[1] for one, _ in factors], scales)


def changes(factors, scales=SCALES):
    """Whole changes, float64."""
    return torch.stack(
        [
            scale * one.double() @ other.double()
            for (one, other), scale in zip(factors, scales, strict=True)
        ]
    )


def solved(method, factors=None, weights=WEIGHTS, scales=SCALES, seed=0, **parameters):
    """The method's result multiplied out, float64, and its inner size."""
    factors = factors or pairs()
    told = check_adding(method, len(factors), parameters)
    shape = (factors[0][0].shape[0], factors[0][1].shape[1])
    task = Task(shape, tuple(weights), told, "a.weight", seed)
    up, down = FACTORED[method].solve(frame_of(factors, scales), task)
    assert up.dtype == down.dtype == torch.float32
    return up.double() @ down.double(), up.shape[1]


def near(found, wanted, tolerance=2e-6):
    return float((found - wanted).norm() / wanted.norm()) < tolerance


def bases(factors):
    """Left and right singular vectors of what is stacked: the frame of Core Space."""
    left = torch.linalg.svd(torch.cat([a.double() for a, _ in factors], 1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat([b.double() for _, b in factors]), full_matrices=False)[2]
    return left, right


def trimmed(tile, density):
    """The share of the elements that is largest."""
    kept = max(1, int(density * tile.numel()))
    bound = tile.abs().flatten().sort(descending=True).values[kept - 1]
    return tile * (tile.abs() >= bound)


def ties(tiles, weights, density):
    """The paper's three steps, element by element: trim, elect, disjoint mean."""
    weighed = torch.stack([w * trimmed(t, density) for w, t in zip(weights, tiles, strict=True)])
    sign = weighed.sum(0).sign()
    agrees = (weighed.sign() == sign) & (weighed != 0)
    return (weighed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


# --- The frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "into"), [(70, 50), (10, 50), (70, 8), (9, 8)])
def test_the_frame_loses_nothing(out, into):
    factors = pairs(out=out, into=into)
    frame = frame_of(factors)
    for core, whole in zip(frame.cores(), changes(factors), strict=True):
        up, down = frame.whole(core)
        assert near(up.double() @ down.double(), whole, 1e-5)
    assert frame.cores().shape[1] == min(sum(RANKS), out)


def test_the_directions_are_orthonormal():
    frame = frame_of(pairs())
    for side in (frame.left, frame.right):
        basis = side.made(torch.eye(side.back.shape[1], dtype=torch.float64))
        assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-5)


# --- Elements of the cores ----------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_ties_in_the_core_is_core_space_s(density):
    factors = pairs()
    left, right = bases(factors)
    cores = [left.mT @ whole @ right.mT for whole in changes(factors)]
    wanted = left @ ties(cores, WEIGHTS, density) @ right
    assert near(solved("ties", density=density)[0], wanted)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_magnitude_in_the_core(density):
    factors = pairs()
    left, right = bases(factors)
    cores = [trimmed(left.mT @ whole @ right.mT, density) for whole in changes(factors)]
    wanted = left @ sum(w * core for w, core in zip(WEIGHTS, cores, strict=True)) @ right
    assert near(solved("magnitude", density=density)[0], wanted)


@pytest.mark.parametrize("scope", ["core", "units"])
def test_the_mean_of_dare_over_seeds_is_the_sum(scope):
    total = sum(w * whole for w, whole in zip(WEIGHTS, changes(pairs()), strict=True))
    found = [solved("dare", scope=scope, density=0.5, seed=seed)[0] for seed in range(200)]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], solved("dare", scope=scope, density=0.5, seed=0)[0])
    # The mean of 200 has a fourteenth of one's spread, which is about the norm of the changes.
    assert float((torch.stack(found).mean(0) - total).norm() / total.norm()) < 0.2


def test_dare_on_ranks_drops_whole_ranks():
    factors, scales = pairs(), (1.0, 1.0, 1.0)
    found, rank = solved("dare", scope="units", density=0.5, scales=scales)
    assert 0 < rank < sum(RANKS)
    units = [
        2 * w * one[:, i].double().outer(other[i].double())
        for (one, other), w in zip(factors, WEIGHTS, strict=True)
        for i in range(one.shape[1])
    ]
    # Which of the units are in it: least squares on all of them gives ones and zeros.
    matrix = torch.stack([unit.flatten() for unit in units], dim=1)
    shares = torch.linalg.lstsq(matrix, found.flatten().unsqueeze(1)).solution.squeeze()
    assert torch.allclose(shares, shares.round(), atol=1e-4)
    assert int(shares.round().sum()) == rank


# --- KnOTS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_knots_is_ties_in_the_left_singular_basis_of_all_changes(density):
    factors = pairs()
    whole = changes(factors)
    basis, values, _ = torch.linalg.svd(torch.cat(list(whole), dim=1), full_matrices=False)
    basis = basis[:, values > 1e-9 * values[0]]
    wanted = basis @ ties([basis.mT @ one for one in whole], WEIGHTS, density)
    found, rank = solved("knots", density=density)
    assert near(found, wanted)
    assert rank == sum(RANKS)


# --- Singular directions ------------------------------------------------------------------------


def polar(matrix):
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_tsv_is_the_paper_s():
    """As its authors compute it: triplets side by side, both sides replaced by their polar factors."""
    lefts, values, rights = [], [], []
    for w, whole, rank in zip(WEIGHTS, changes(pairs()), RANKS, strict=True):
        left, s, right = torch.linalg.svd(w * whole, full_matrices=False)
        keep = min(rank, min(OUT, INTO) // 3)
        lefts.append(left[:, :keep])
        values.append(s[:keep])
        rights.append(right[:keep])
    wanted = polar(torch.cat(lefts, 1)) * torch.cat(values) @ polar(torch.cat(rights))
    assert near(solved("tsv")[0], wanted)


def test_tsv_keeps_a_share_of_the_weight_s_directions():
    """Of 9 x 8 with three inputs that is two each, whatever their ranks."""
    assert solved("tsv", pairs(out=9, into=8))[1] == 6


def test_iso_has_the_sum_s_directions_at_their_mean():
    total = sum(w * whole for w, whole in zip(WEIGHTS, changes(pairs()), strict=True))
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    rank = sum(RANKS)
    assert float(values[rank - 1]) > 1e-3 > 1e-9 > float(values[rank])
    wanted = values[:rank].mean() * left[:, :rank] @ right[:rank]
    assert near(solved("iso")[0], wanted)


@pytest.mark.parametrize("directions", [0, 1, 3])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1e6])
def test_np_is_equation_12(directions, mu):
    factors, weights, scales = pairs()[:2], (1.2, -0.7), (0.5, 2.0)
    content, style = changes(factors, scales)
    right = torch.linalg.svd(style, full_matrices=False)[2][: directions or RANKS[1]]
    wanted = weights[1] * style + weights[0] * (
        content - mu / (1 + mu) * content @ right.mT @ right
    )
    found, _ = solved("np", factors, weights, scales, directions=directions, mu=mu)
    assert near(found, wanted)


def test_a_hard_projection_leaves_nothing_in_the_protected_directions():
    factors = pairs()[:2]
    content, style = changes(factors, (1.0, 1.0))
    found, _ = solved("np", factors, (1.0, 1.0), (1.0, 1.0), mu=1e6)
    right = torch.linalg.svd(style, full_matrices=False)[2][: RANKS[1]]
    assert float(((found - style) @ right.mT).norm()) < 1e-5 * float(content.norm())


# --- Of a given rank ----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 5, 13])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_ctm_keeps_the_common_subspace(rank, beta):
    factors = pairs()
    whole = changes(factors)
    norms = whole.flatten(1).norm(dim=1)
    level = whole * ((beta * norms + (1 - beta) * norms.mean()) / norms)[:, None, None]
    left = torch.linalg.svd(torch.cat(list(level), 1))[0][:, :rank]
    for _ in range(500):  # alternating eigenproblems, on the whole matrices
        right = torch.linalg.svd(torch.cat([left.mT @ one for one in level]))[2][:rank].mT
        left = torch.linalg.svd(torch.cat([one @ right for one in level], 1))[0][:, :rank]
    total = sum(w * one for w, one in zip(WEIGHTS, whole, strict=True))
    wanted = left @ left.mT @ total @ right @ right.mT
    found, size = solved("ctm", directions=rank, beta=beta)
    assert size == rank
    assert near(found, wanted, 1e-3)  # ours stops at a gain, not at the last digit


def test_ctm_with_all_directions_is_the_sum():
    total = sum(w * whole for w, whole in zip(WEIGHTS, changes(pairs()), strict=True))
    assert near(solved("ctm", directions=13)[0], total)


def test_lego_puts_like_units_together():
    """Two inputs of the same units in another order: each cluster is a unit twice, at root two."""
    (one, other), *_ = pairs(ranks=(3,))
    order = [2, 0, 1]
    found, rank = solved(
        "lego", [(one, other), (one[:, order], other[order])], (1.0, 1.0), (1.0, 1.0), directions=3
    )
    assert rank == 3
    assert near(found, math.sqrt(2) * one.double() @ other.double())


def test_lego_of_as_many_clusters_as_units_is_the_sum():
    total = sum(w * whole for w, whole in zip(WEIGHTS, changes(pairs()), strict=True))
    assert near(solved("lego", directions=13)[0], total)


def test_lego_s_clusters_are_a_fixed_point():
    """Means of members, stretched to the mean of their largest elements, times the root of units over clusters."""
    factors, scales, weights = pairs(ranks=(4, 4)), (1.0, 1.0), (1.0, 1.0)
    found, _ = solved("lego", factors, weights, scales, directions=2)
    units = torch.cat([torch.cat([one, other.mT]).mT for one, other in factors]).double()
    best = None
    for mask in range(1, 2**7):  # every way to put eight units into two clusters
        chosen = torch.tensor([bool(mask >> i & 1) for i in range(8)])
        parts = [units[chosen], units[~chosen]]
        spread = sum(float((part - part.mean(0)).square().sum()) for part in parts)
        if best is None or spread < best[0]:
            best = (spread, parts)
    wanted = torch.zeros(OUT, INTO, dtype=torch.float64)
    for part in best[1]:
        mean = part.mean(0)
        mean = mean * part.abs().amax(1).mean() / mean.abs().max()
        wanted += math.sqrt(8 / 2) * mean[:OUT].outer(mean[OUT:])
    assert near(found, wanted)


# --- Identities ---------------------------------------------------------------------------------

SAME = {"ties": {"density": 1}, "dare": {"density": 1}, "knots": {"density": 1}, "tsv": {}}


@pytest.mark.parametrize(("method", "factor"), [("ties", 1), ("knots", 1), ("tsv", 2), ("dare", 2)])
def test_equal_inputs(method, factor):
    """The mean of equal inputs is the input; what adds gives it twice."""
    factors = pairs(ranks=(4,)) * 2
    found, _ = solved(method, factors, (1.0, 1.0), (1.0, 1.0), **SAME[method])
    one = changes(factors, (1.0, 1.0))[0]
    assert near(found, (factor if method != "tsv" else 1) * one, 1e-5)


@pytest.mark.parametrize(
    "method",
    [name for name in FACTORED if name not in ("np", "dare", "dare_ties", "della", "lego")],
)
def test_the_order_of_the_inputs_does_not_matter(method):
    order = [2, 0, 1]
    factors = pairs()
    one, _ = solved(method, factors)
    other, _ = solved(
        method,
        [factors[i] for i in order],
        [WEIGHTS[i] for i in order],
        [SCALES[i] for i in order],
    )
    assert near(one, other, 1e-5)


@pytest.mark.parametrize("method", FACTORED)
def test_the_result_is_the_same_twice(method):
    factors = pairs()[:2]
    one = solved(method, factors, WEIGHTS[:2], SCALES[:2])[0]
    assert bool(one.isfinite().all())
    assert torch.equal(one, solved(method, factors, WEIGHTS[:2], SCALES[:2])[0])


# --- What cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "inputs", "parameters", "told"),
    [
        ("np", 3, {}, "takes 2 inputs, not 3"),
        ("ties", 2, {"density": 2.0}, "give a number from 0 to 1"),
        ("ties", 2, {"scope": "units"}, "it is one of core, element"),
        ("tsv", 2, {"density": 0.5}, "has no parameter `density`"),
        ("tvs", 2, {}, "did you mean `tsv`"),
        ("sum", 2, {"density": 0.5}, "has no parameter `density`"),
        ("slerp", 2, {"t": "half"}, "give a number"),
    ],
)
def test_bad_requests_say_what_is_wrong(method, inputs, parameters, told):
    with pytest.raises(ArgumentError, match=told):
        check_adding(method, inputs, parameters)


def test_elements_without_a_rank_are_refused():
    with pytest.raises(ArgumentError, match="no LoRA holds"):
        check_adding("ties", 2, {"scope": "element"}, recompresses=False)
