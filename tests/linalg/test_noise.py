"""What stands above noise, against noise that is drawn here: the edge, the strength, the error that is told."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from stored_pairs import change, errors_of_ranks, relative
from torch import Tensor

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.linalg.noise import (
    Profile,
    Reading,
    edge,
    evened,
    read_change,
    rounding_profile,
    sampled_variance,
    settle,
)
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.linalg.ranks.rules import RankRule, parse_rank
from lorakit.lora_ops.linalg.ranks.standing import standing
from lorakit.lora_ops.linalg.svd import Svd
from lorakit.lora_ops.spacing import spacing

SHAPES = [(192, 192), (96, 384), (512, 64)]
RULE = RankRule("noise")


def noise(shape: tuple[int, int], uneven: float, seed: int) -> tuple[Tensor, Profile]:
    """Independent noise, and its profile."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(n, generator=draw).mul(uneven).exp().double() for n in shape)
    drawn = torch.randn(shape, generator=draw)
    return (drawn * rows[:, None] * columns).float(), Profile(rows, columns)


def dense(reading: Reading) -> Tensor:
    assert reading.best is not None
    up, down = reading.best.factors(len(reading.best.s))
    return up @ down


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (40, 300), (256, 256)])
def test_noise_alone_hardly_ever_exceeds_the_edge(shape: tuple[int, int]) -> None:
    """One matrix in a thousand; twin: the edge of infinite matrices is exceeded all the time by small ones."""
    draw = torch.Generator().manual_seed(1)
    largest = torch.stack(
        [torch.linalg.matrix_norm(torch.randn(shape, generator=draw), 2) for _ in range(150)]
    )
    assert (largest > edge(shape)).sum() <= 1
    assert largest.mean() > 0.8 * edge(shape)
    if max(shape) <= 64:
        assert (largest > sum(math.sqrt(n) for n in shape)).sum() >= 10


@pytest.mark.parametrize("uneven", [0.0, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_noise_nothing_is_left(shape: tuple[int, int], uneven: float) -> None:
    for seed in range(5):
        drawn, profile = noise(shape, uneven, seed)
        reading = standing(drawn, profile, RULE)
        assert reading.best is None
        assert (reading.above, reading.change < 0.2 * reading.noise) == (0, True)
        assert reading.noise == pytest.approx(float(drawn.norm()), rel=0.1)


@pytest.mark.parametrize("strength", [1.5, 3.0])
@pytest.mark.parametrize("uneven", [0.0, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_planted_is_found(shape: tuple[int, int], uneven: float, strength: float) -> None:
    """Its rank, and with less error than the best cut that knows the truth; the error is as it is told."""
    drawn, profile = noise(shape, uneven, 7)
    even = change(shape, 4, strength * 2 * edge(shape))
    true = (even * profile.rows[:, None] * profile.columns).float()
    reading = standing(true + drawn, profile, RULE)
    assert reading.above == 4
    error = relative(dense(reading), true)
    assert error < float(errors_of_ranks(true + drawn, true).min())
    assert reading.missed / reading.change == pytest.approx(error, rel=0.4)
    assert reading.noise == pytest.approx(float(drawn.norm()), rel=0.15)


def test_without_shrinkage_or_with_a_wrong_floor_it_is_worse() -> None:
    """The cheap variants fail what the rule passes, by a good part."""
    shape = (192, 192)
    drawn, profile = noise(shape, 0.0, 3)
    true = change(shape, 12, 5.0 * edge(shape), decay=0.8)
    found = true + drawn
    error = relative(dense(standing(found, profile, RULE)), true)
    assert error <= float(errors_of_ranks(found, true).min())
    u, s, vh = torch.linalg.svd(found)
    above = int((s > edge(shape)).sum())
    kept = (u[:, :above] * s[:above]) @ vh[:above]
    assert relative(kept, true) > 1.05 * error
    svd = Svd(u[:, :100], s[:100].double(), vh[:100])
    low = read_change(svd, 100, 0.3, profile, float(found.norm()) ** 2)
    assert relative(dense(low), true) > 1.5 * error
    high = Profile(profile.rows * 1.6, profile.columns)
    u, s, vh = torch.linalg.svd(found / 1.6)
    above = int((s > edge(shape)).sum())
    few = read_change(
        Svd(u[:, :above], s[:above].double(), vh[:above]),
        above,
        1.0,
        high,
        float(found.norm()) ** 2,
    )
    assert relative(dense(few), true) > 1.1 * error


def test_at_equal_rows_each_is_as_long_as_gavish_and_donoho_say() -> None:
    """Their formula, element by element in float64, of singular values in units of the noise."""
    deviation = 0.4
    y = torch.tensor([9.0, 4.0, 2.5, 2.0], dtype=torch.float64)
    s = deviation * math.sqrt(90) * y
    profile = Profile(torch.ones(60).double(), torch.ones(90).double())
    svd = Svd(torch.eye(60)[:, :4], s, torch.eye(90)[:4])
    reading = read_change(svd, 4, deviation, profile, float(s.square().sum()) * 2)
    ratio = 60 / 90
    expected = [
        deviation * math.sqrt(90) * math.sqrt((v * v - ratio - 1) ** 2 - 4 * ratio) / v
        for v in y.tolist()
    ]
    assert reading.best is not None
    assert reading.best.s.tolist() == pytest.approx(expected, rel=1e-6)


def test_more_values_are_asked_for_until_one_is_below() -> None:
    s = torch.tensor([50.0, 40.0, 30.0, 1.0, 1.0], dtype=torch.float64)
    total = float(s.square().sum())
    assert settle(s[:2], total, (5, 5)) is None
    assert settle(s[:3], total, (5, 5)) is None
    found = settle(s[:4], total, (5, 5))
    assert found is not None
    assert found[0] == 3
    # 2 is left in 2 x 2 places.
    assert found[1] == pytest.approx(math.sqrt(2 / 4))


def test_what_storage_says_is_never_exceeded() -> None:
    """A bulk of change is no rounding, however much of it there is."""
    drawn, _ = noise((64, 64), 0.0, 2)
    s = torch.linalg.svdvals(5 * drawn).double()
    above, deviation = settle(s, float(s.square().sum()), (64, 64)) or (0, 0.0)
    assert deviation < 1.2
    assert above > 40


@pytest.mark.parametrize("uneven", [0.0, 0.7])
def test_the_iteration_finds_what_the_exact_way_finds(uneven: float) -> None:
    shape = (640, 600)
    drawn, profile = noise(shape, uneven, 5)
    even = change(shape, 70, 12.0 * edge(shape), decay=0.3)
    found = (even * profile.rows[:, None] * profile.columns).float() + drawn
    quick, exact = standing(found, profile, RULE), standing(found, profile, RULE, exact=True)
    assert quick.above == exact.above == 70
    assert relative(dense(quick), dense(exact)) < 0.02


def test_max_keeps_the_best_of_those_above_and_min_some_below() -> None:
    shape = (128, 128)
    drawn, profile = noise(shape, 0.0, 4)
    found = change(shape, 6, 8.0 * edge(shape)) + drawn
    free = standing(found, profile, RULE)
    most = standing(found, profile, RankRule("noise", most=2))
    least = standing(found, profile, RankRule("noise", least=9))
    assert free.above == most.above == least.above == 6
    assert free.best is not None
    assert least.best is not None
    assert len(least.best.s) == 9
    assert relative(dense(least), dense(free)) > 0.1
    nothing = standing(drawn, profile, RankRule("noise", least=9))
    assert nothing.best is None


def test_a_row_that_did_not_move_has_no_rounding() -> None:
    profile = Profile(torch.ones(3).double(), torch.ones(200).double())
    delta = torch.cat([torch.full((1, 200), 3.0), torch.full((1, 200), 0.1), torch.zeros(1, 200)])
    even, lowered = evened(delta, profile)
    assert lowered.rows.tolist()[:2] == pytest.approx([1.0, 0.1])
    assert even[1].square().mean().item() == pytest.approx(1.0)
    assert bool(even.isfinite().all())
    rebuilt = even.double() * lowered.rows[:, None] * lowered.columns
    torch.testing.assert_close(rebuilt.float(), delta)


@pytest.mark.parametrize("shape", [(300, 40), (7, 20000, 1, 1)])
def test_the_profile_is_that_of_drawn_rounding(shape: tuple[int, ...]) -> None:
    """Of numbers of two dtypes, against what rounding them has changed, as its spacing says."""
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(shape, generator=draw) * torch.logspace(-1, 1, shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )
    base, tuned = exact.bfloat16(), exact.to(torch.float8_e4m3fn)

    def grid(dtype: torch.dtype, values: Tensor, start: int) -> Tensor:
        assert values.numel() <= 1 << 20
        return spacing(values, dtype)

    grids = partial(grid, torch.bfloat16), partial(grid, torch.float8_e4m3fn)
    profile = rounding_profile(base, tuned, grids)
    rounding = (tuned.double() - base.double()).flatten(1)
    assert profile.shape == rounding.shape
    assert profile.energy == pytest.approx(float(rounding.square().sum()), rel=0.1)
    mean = (profile.rows.square()[:, None] * profile.columns.square()).mean(1)
    measured = rounding.square().mean(1)
    assert (mean / measured).log().abs().mean() < 0.35
    whole = float(profile.energy) / rounding.numel()
    assert sampled_variance(base, tuned, grids) == pytest.approx(whole, rel=2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("noise", RankRule("noise")),
        ("noise,max=64,min=2", RankRule("noise", least=2, most=64)),
        ("8,conv=noise", RankRule("rank", 8, conv=RankRule("noise"))),
        ("max=9,noise,conv=4", RankRule("noise", most=9, conv=RankRule("rank", 4))),
    ],
)
def test_text_forms(text: str, rule: RankRule) -> None:
    """Of extractions alone: others are told that they cannot follow it."""
    assert parse_rank(text, stored=True) == rule
    assert parse_rank(str(rule), stored=True) == rule
    for read in (parse_rank, parse_rule):
        for given in (text, rule):
            with pytest.raises(ArgumentError, match="`noise` asks how two checkpoints are stored"):
                read(given)


def test_it_has_no_number_and_does_not_choose_by_values_alone() -> None:
    with pytest.raises(ArgumentError, match="`noise=3`: give no value"):
        parse_rank("noise=3", stored=True)
    with pytest.raises(ArgumentError, match="did you mean `noise`"):
        parse_rank("nosie", stored=True)
    with pytest.raises(ArgumentError, match="`noise` asks how two checkpoints are stored"):
        RULE.choose(torch.ones(3).double(), 3.0, 3)
