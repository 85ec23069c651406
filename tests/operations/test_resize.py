"""Resize against LAPACK in float64, kohya's formulas, and the promises about strength and size."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import adapters
import oracles
import pytest
import torch
from adapters import ALPHAS, DTYPES, FORMATS, SHAPES, Part, adapter, delta, read
from bits import raw
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, best_error, error_of, singular_values

from lorakit.lora_ops.adapters.layers import FullLayer, LoraLayer
from lorakit.lora_ops.errors import (
    ArgumentError,
    MismatchError,
    NonFiniteError,
    UnknownFormatError,
    UnsupportedLayerError,
)
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.operations.resize.resize import Resizing, resize, run_resize
from lorakit.lora_ops.run.devices import place

# What float32 arithmetic may add to an error, as a share of the change.
FLOOR = 1e-6
LOADABLE = {torch.float64: torch.float32, torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}  # fmt: skip
HOLD_ALPHA = ("kohya", "comfy")
RULES = [
    *("energy=0.9", "energy=0.5", "fro=0.9", "error=0.3", "error=0.05"),
    *("cumulative=0.8", "ratio=3", "ratio=1.1", "threshold=9", "threshold=0.01", "knee"),
]


def only(adapter):
    (layer,) = adapter.layers.values()
    return layer


def best(before, rank):
    return best_error(before.flatten(1), rank)


# --- Ranks ---------------------------------------------------------------------------------------


def defined(change, text, count):
    """The rank that a rule's definition gives for the leading singular values of a change."""
    kind, _, value = text.partition("=")
    values = singular_values(change.flatten(1))[:count].tolist()
    return oracles.RULES[kind](values, float(value or 0))


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("form", SHAPES)
def test_a_rule_gives_the_rank_that_its_definition_gives(form, text):
    before = adapter([Part(form, 8, alpha=5.0, seed=3)])
    _, report = resize(before, text)
    assert [layer.rank for layer in report.layers] == [defined(delta(only(before)), text, 8)]


@pytest.mark.parametrize("text", RULES)
def test_a_rule_sees_as_many_values_as_the_weight_can_have(text):
    """A factor of rank 30 beside a weight of 12 rows: 18 zeros more would move the knee."""
    before = adapter([Part(rank=30, shape=(12, 40), seed=3)])
    _, report = resize(before, text)
    assert [layer.rank for layer in report.layers] == [defined(delta(only(before)), text, 12)]


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("text", ["fro=0.9", "fro=0.5", "cumulative=0.6", "ratio=2", "ratio=1.01"])
def test_the_rank_is_one_less_than_kohya_keeps(form, text):
    before = adapter([Part(form, 8, seed=4)])
    kind, _, value = text.partition("=")
    expected = oracles.kohya(singular_values(delta(only(before)).flatten(1)), kind, float(value))
    _, report = resize(before, text)
    assert report.layers[0].rank == expected - 1


def test_limits_and_kernels_have_their_say():
    _, report = resize(adapter(), "energy=0.01,min=2,conv=3")
    ranks = {layer.kind: layer.rank for layer in report.layers}
    assert ranks == {"linear": 2, "conv 1x1": 2, "conv 3x3": 3, "conv3d 3x1x1": 3}
    _, report = resize(adapter(), "energy=1,max=2")
    assert {layer.rank for layer in report.layers} == {2}


def test_no_rank_is_spent_on_rounding():
    """A layer of rank 8 whose change has rank 3."""
    three = Part(rank=3).factors()
    mix = torch.randn(3, 8, dtype=torch.float64)
    up, down = (three["up"].double() @ mix).float(), torch.linalg.pinv(mix) @ three["down"].double()
    before = replace(adapter(), layers={"blocks.0.q": LoraLayer(up, down.float(), 8.0)})
    after, report = resize(before, "7")
    assert report.layers[0].rank == only(after).rank == 3
    assert error_of(delta(only(before)), delta(only(after))) <= 1e-6 * report.layers[0].norm


# --- Error ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_the_least_there_is(form, dtype, rank):
    before = adapter([Part(form, 6, 0.7, dtype)])
    after, report = resize(before, rank)
    first, second, layer = delta(only(before)), delta(only(after)), report.layers[0]
    assert second.shape == first.shape
    assert only(after).dtype == LOADABLE.get(dtype, dtype)
    error, rounding = error_of(first, second), ROUNDING[only(after).dtype] * float(first.norm())
    assert best(first, rank) * (1 - 1e-7) - FLOOR <= error
    assert error <= best(first, rank) * (1 + 1e-5) + rounding
    # What is reported is the error of the numbers that are written.
    assert layer.norm == pytest.approx(float(first.norm()), rel=1e-6)
    assert layer.residual == pytest.approx(error, rel=1e-5, abs=FLOOR * layer.norm)
    assert (layer.was, layer.rank) == ((6,), rank)


def test_twin_the_first_columns_are_not_the_best():
    before = only(adapter([Part(rank=8, seed=3)]))
    cut = LoraLayer(before.up[:, :3], before.down[:3], None)
    first = delta(before)
    assert error_of(first, delta(cut)) > 1.05 * best(first, 3)
    after, _ = resize(adapter([Part(rank=8, seed=3)]), 3)
    assert error_of(first, delta(only(after))) <= best(first, 3) * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_another_dtype_is_rounded_to_once(dtype):
    before = adapter([Part(form, 6, 0.7) for form in SHAPES])
    after, _ = resize(before, 3, dtype=dtype)
    for target, layer in after.layers.items():
        assert layer.up.dtype == layer.down.dtype == dtype
        first = delta(before.layers[target])
        rounding = ROUNDING[dtype] * float(first.norm())
        assert error_of(first, delta(layer)) <= best(first, 3) * (1 + 1e-5) + rounding
    kept, _ = resize(before, 64, dtype=dtype)
    for layer in kept.layers.values():
        assert layer.up.dtype == layer.down.dtype == dtype


@pytest.mark.parametrize(("out", "into"), [(5, 40), (40, 5), (5, 5)])
@pytest.mark.parametrize("rank", [3, 5, 8])
def test_a_rank_above_the_size_of_the_weight(out, into, rank):
    before = adapter([Part(rank=16, shape=(out, into), alpha=0.7)])
    after, report = resize(before, rank)
    first = delta(only(before))
    assert report.layers[0].rank == min(rank, 5)
    allowed = best(first, rank) * (1 + 1e-5) + FLOOR * float(first.norm())
    assert error_of(first, delta(only(after))) <= allowed


def kohya_resize(up, down, alpha, rank):
    """Kohya's way: multiply out, full SVD, the values into up, alpha in proportion to the rank."""
    u, s, vh = torch.linalg.svd(up.double().flatten(1) @ down.double().flatten(1))
    first = u[:, :rank] @ torch.diag(s[:rank])
    return (alpha / down.shape[0]) * (first @ vh[:rank]).reshape(len(up), *down.shape[1:])


@pytest.mark.parametrize("form", [form for form in SHAPES if form != "tucker"])
def test_the_change_is_the_one_that_kohya_makes(form):
    before = adapter([Part(form, 8, alpha=4.0)])
    layer = only(before)
    after, _ = resize(before, 3)
    theirs = kohya_resize(layer.up, layer.down, layer.alpha, 3)
    assert error_of(theirs, delta(only(after))) <= 1e-5 * float(theirs.norm())


def test_a_core_is_folded_into_down():
    before = adapter([Part("tucker", 6, alpha=3.0)])
    after, report = resize(before, 64)  # not even the whole rank keeps it: loaders gain by it
    layer = only(after)
    assert layer.mid is None
    assert layer.down.shape == (6, 12, 3, 3)
    assert error_of(delta(only(before)), delta(layer)) <= 1e-6 * report.layers[0].norm


# --- Strength ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "wanted"),
    [*((format, None) for format in FORMATS), *itertools.product(HOLD_ALPHA, (1.0, 16.0))],
)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("rank", [3, 6])
def test_strength_is_the_same_before_and_after(format, alpha, wanted, rank):
    """The best approximation D of a change C has <C, D> = <D, D>; any other strength has not."""
    before = adapter([Part(form, 6, ALPHAS[alpha]) for form in SHAPES], format)
    after, _ = resize(before, rank, alpha=wanted)
    for target, layer in after.layers.items():
        old, new = delta(before.layers[target]), delta(layer)
        assert float((old * new).sum() / (new * new).sum()) == pytest.approx(1, rel=1e-6)
        # Twin: the alpha of the old rank over the new one.
        if rank < 6 and layer.alpha is not None and wanted is None:
            stale = layer.alpha / layer.rank * 6 / layer.rank * new
            assert float((old * stale).sum() / (stale * stale).sum()) != pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("format", HOLD_ALPHA)
@pytest.mark.parametrize("given", ALPHAS)
def test_the_alpha_that_is_stored(format, given):
    before = adapter([Part(form, 6, ALPHAS[given]) for form in SHAPES], format)
    lower, _ = resize(before, 3)
    assert {layer.alpha for layer in lower.layers.values()} == {None if given == "absent" else 3.0}
    chosen, _ = resize(before, 3, alpha=16)
    assert {layer.alpha for layer in chosen.layers.values()} == {16.0}
    # Even where the rank stays, and the factors must make up for it.
    same, _ = resize(before, 6, alpha=16)
    for target, layer in same.layers.items():
        assert layer.alpha == 16
        change = delta(before.layers[target])
        assert error_of(change, delta(layer)) <= 1e-6 * float(change.norm())


@pytest.mark.parametrize("format", ["peft", "diffusers"])
def test_a_format_without_alpha_stores_none(format):
    before = adapter([Part(form, 6, 0.7) for form in SHAPES], format)
    for rank in (3, 6):
        after, _ = resize(before, rank)
        assert {layer.alpha for layer in after.layers.values()} == {None}
    with pytest.raises(ArgumentError, match="no place for an alpha"):
        resize(before, 3, alpha=8)


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises(ArgumentError, match="give a number above 0"):
        resize(adapter(), 3, alpha=alpha)


def test_a_negative_alpha_keeps_its_sign():
    before = adapter([Part(rank=6, alpha=-2.0)])
    for rank, alpha in ((3, None), (6, 16.0), (6, None)):
        after, _ = resize(before, rank, alpha=alpha)
        first = delta(only(before))
        assert error_of(first, delta(only(after))) <= best(first, rank) + 1e-6 * float(first.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["6", "7", "64", "6,conv=9"])
def test_what_is_not_lowered_keeps_its_bits(dtype, rule):
    parts = [Part(form, 6, 0.7, dtype) for form in SHAPES if form != "tucker"]
    before = adapter(parts)
    after, report = resize(before, rule)
    for target, layer in after.layers.items():
        kept = before.layers[target]
        assert (raw(layer.up), raw(layer.down)) == (raw(kept.up), raw(kept.down))
        assert (layer.alpha, layer.dtype) == (kept.alpha, dtype)
    assert report.error == 0


@pytest.mark.parametrize(
    ("rule", "layers"),
    [("6", 0), ("7", 5), ("64,max=6", 0), ("64,max=8", 5), ("6,conv=9", 3), ("7,conv=6", 2),
     ("energy=1,conv=64", 3), ("energy=1", 0), ("mean=6", 0)],
)  # fmt: skip
def test_a_rank_that_cannot_grow_is_told(rule, layers):
    _, report = resize(adapter(), rule)
    assert report.notes == (
        (f"{layers} layers had less than the rank asked for: a higher one gains nothing, "
         "so the rank stays",) if layers else ()
    )  # fmt: skip


def test_a_note_counts_what_it_says():
    """Twin: differences, which have no rank to speak of, and ranks that were lowered."""
    more = {
        "lora_unet_norm.diff_b": torch.ones(5),
        "lora_unet_table.diff": torch.ones(3, 4),
    }
    tensors = adapters.tensors([Part(rank=7, shape=(5, 40)), Part("conv1x1", 6)]) | more
    _, report = resize(read(tensors), 8)
    assert [note.split(" ")[0] for note in report.notes] == ["1"]


# --- Composition ---------------------------------------------------------------------------------

LAYERS = st.builds(
    Part,
    form=st.sampled_from(list(SHAPES)),
    rank=st.integers(1, 9),
    alpha=st.sampled_from(list(ALPHAS.values())),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
)


@settings(deadline=None, max_examples=40)
@given(LAYERS, st.integers(1, 9), st.integers(1, 9))
def test_resize_of_a_resize_is_the_smaller_resize(part, first, second):
    before = adapter([part])
    twice, _ = resize(resize(before, first)[0], second)
    change, rank = delta(only(before)), min(first, second, part.rank)
    assert only(twice).rank == rank
    allowed = best(change, rank) * (1 + 1e-5) + FLOOR * float(change.norm())
    assert error_of(change, delta(only(twice))) <= allowed


@settings(deadline=None, max_examples=40)
@given(LAYERS, st.integers(0, 3))
def test_the_whole_rank_changes_nothing(part, more):
    before = adapter([part])
    after, report = resize(before, part.rank + more)
    change = delta(only(before))
    assert error_of(change, delta(only(after))) <= FLOOR * float(change.norm())
    assert report.error <= FLOOR


@settings(deadline=None, max_examples=30)
@given(LAYERS, st.integers(1, 8), st.integers(0, 100))
def test_no_other_layer_of_that_rank_is_nearer(part, rank, seed):
    before = adapter([part])
    after, _ = resize(before, rank)
    change, layer = delta(only(before)).flatten(1), only(after)
    # The best that any layer with rows close to ours can do.
    rows = layer.down.double().flatten(1)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)).double()
    nearby = torch.linalg.qr((rows + 0.1 * float(rows.norm()) / rows.numel() ** 0.5 * noise).mT)[0]
    error = error_of(change, delta(layer).flatten(1))
    assert error <= error_of(change, change @ nearby @ nearby.mT) + FLOOR * float(change.norm())


# --- Layers that are left out or kept ------------------------------------------------------------


def test_layers_of_rank_zero_are_left_out_and_listed():
    after, report = resize(adapter(), "3,conv=0")
    assert len(after.layers) == len(report.layers) == 2
    assert {skip.kind for skip in report.skips} == {"conv 3x3", "conv3d 3x1x1"}
    assert {skip.reason for skip in report.skips} == {"rank 0 by the rule"}
    lost = [delta(adapter().layers[skip.target]).norm() for skip in report.skips]
    assert [skip.norm for skip in report.skips] == pytest.approx([float(norm) for norm in lost])
    with pytest.raises(MismatchError, match=r"no layer is left .5 layers rank 0 by the rule"):
        resize(adapter(), "0")


@pytest.mark.parametrize("rule", ["3", "64", "energy=0.9", "mean=3", "3,conv=0"])
def test_layers_that_change_nothing_are_left_out_and_listed(rule):
    before = adapter([Part(), Part("conv1x1", size=0.0)])
    after, report = resize(before, rule)
    assert len(after.layers) == 1
    assert [(skip.kind, skip.reason, skip.norm) for skip in report.skips] == [
        ("conv 1x1", "changes nothing", 0.0)
    ]


# --- Budgets -------------------------------------------------------------------------------------


def test_a_mean_is_the_mean():
    parts = [Part(rank=16, seed=s, size=10.0**s, module=f"blocks.{s}.q") for s in range(-2, 3)]
    _, report = resize(adapter(parts), "mean=6")
    ranks = [layer.rank for layer in report.layers]
    assert sum(ranks) + 0 * len(report.skips) == 6 * len(parts)
    assert ranks == sorted(ranks)  # the large changes get them


@pytest.mark.parametrize("limit", [0.5, 0.1, 0.02])
def test_the_total_error_is_kept_and_true(limit):
    before = adapter([Part(form, 8, 0.7, seed=n) for n, form in enumerate(SHAPES)])
    after, report = resize(before, f"total_error={limit}")
    change = [delta(layer) for layer in before.layers.values()]
    lost = [
        error_of(old, delta(after.layers[target]) if target in after.layers else 0 * old)
        for target, old in zip(before.layers, change, strict=True)
    ]
    true = math.hypot(*lost) / math.hypot(*(float(old.norm()) for old in change))
    assert true <= limit * (1 + 1e-6)
    assert true > limit / 3
    if not report.skips:
        assert report.error == pytest.approx(true, rel=1e-5)


def test_weights_decide_who_gets_the_ranks():
    parts = [Part(rank=12, seed=s, module=f"blocks.{s}.q") for s in range(2)]
    before = adapter(parts)
    first, second = before.layers
    for heavy, light in ((first, second), (second, first)):
        _, report = resize(before, "mean=6", weights={heavy: 100.0, light: 1.0})
        ranks = {layer.target: layer.rank for layer in report.layers}
        assert ranks.get(heavy) == 12
        assert ranks.get(light) is None


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["3", "mean=3", "64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "suffix", [".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".alpha"]
)
def test_a_number_that_is_none_is_named(rule, value, suffix):
    tensors = adapters.tensors([Part(), Part("tucker", alpha=1.0)])
    key = next(key for key in tensors if "2_0" in key and key.endswith(suffix))
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[-1] = value
    before = read(tensors)
    with pytest.raises(NonFiniteError) as caught:
        resize(before, rule)
    role = suffix.removeprefix(".").removeprefix("lora_").removesuffix(".weight")
    assert f"the {role} of layer `lora_unet_input_blocks_2_0_in_layers_2`" in str(caught.value)
    assert caught.value.target == "lora_unet_input_blocks_2_0_in_layers_2"
    assert ("1 NaN and 0" in str(caught.value)) == math.isnan(value)


def test_a_number_that_is_none_in_a_full_difference_is_named():
    before = replace(adapter(), layers={"norm": FullLayer(torch.tensor([1.0, math.nan]))})
    with pytest.raises(NonFiniteError, match="the diff of layer `norm` holds 1 NaN"):
        resize(before, 3)


def test_values_beyond_the_dtype_are_refused():
    with pytest.raises(NonFiniteError, match=r"do not fit float16, .* use `dtype=` bf16 or fp32"):
        resize(adapter([Part(size=1e12)]), 3, dtype=torch.float16)


@pytest.mark.parametrize("rule", ["3", "64", "mean=3"])
def test_dora_is_refused_by_name(rule):
    tensors = adapters.tensors([Part()])
    tensors["lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.dora_scale"] = torch.ones(
        40, 1
    )
    before = read(tensors)
    with pytest.raises(
        UnsupportedLayerError, match=r"attn1_to_q` has DoRA magnitudes.*bake it into its checkpoint"
    ):
        resize(before, rule)


@pytest.mark.parametrize("rule", ["3", "mean=3"])
def test_an_adapter_without_layers_is_refused(rule):
    with pytest.raises(UnknownFormatError, match="holds no layers"):
        resize(replace(adapter(), layers={}), rule)


def test_the_adapter_is_left_as_it_was():
    tensors = adapters.tensors([Part(form, 6, 0.7) for form in SHAPES])
    kept = {key: tensor.clone() for key, tensor in tensors.items()}
    before = read(tensors)
    for rule in ("3", "64", "mean=3"):
        resize(before, rule, alpha=8)
    assert all(torch.equal(tensors[key], kept[key]) for key in kept)


# --- Batches ---------------------------------------------------------------------------------------


def many():
    """Three layers of each form, a zero one, one of a rank above its size, and two differences."""
    parts = [
        Part(form, 6, 0.7, seed=n, module=f"blocks.{n}.{form}")
        for form in SHAPES for n in range(3)
    ]  # fmt: skip
    odd = [Part(rank=6, size=0.0, module="zero"), Part(rank=40, shape=(40, 24), module="wide")]
    full = {"lora_unet_norm.diff": torch.ones(5), "lora_unet_other.diff": torch.ones(3, 2)}
    return read(adapters.tensors([*parts, *odd]) | full)


@pytest.mark.parametrize("rule", ["3", "energy=0.8", "mean=3", "64"])
@pytest.mark.parametrize("memory", [1_000_000, 200_000])
def test_batches_give_what_layers_alone_give(rule, memory):
    before = many()
    resizing = Resizing(parse_rule(rule))
    seen = []
    batched = list(
        run_resize(
            before,
            resizing,
            placement=place("cpu", memory=memory),
            progress=lambda *told: seen.append(told),
        )
    )
    alone = {one.name: one for one in run_resize(before, resizing, placement=place("cpu"))}
    assert {one.name for one in batched} == set(before.layers) == set(alone)
    assert [told[:2] for told in seen] == [(n, len(alone)) for n in range(1, len(alone) + 1)]
    for one in batched:
        other = alone[one.name]
        assert (one.value is None) == (other.value is None)
        if one.value is None or other.value is None:
            assert one.report == other.report
            continue
        assert one.value.rank == other.value.rank
        close = error_of(delta(one.value), delta(other.value))
        assert close <= 1e-5 * float(delta(other.value).norm())
        assert one.report.residual == pytest.approx(other.report.residual, rel=1e-4, abs=1e-5)


def test_a_memory_that_holds_no_layer_is_refused():
    with pytest.raises(ArgumentError, match="raise `memory=`"):
        list(run_resize(many(), Resizing(parse_rule("3")), placement=place("cpu", memory=1000)))
