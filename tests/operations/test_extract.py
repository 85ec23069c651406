"""Extraction: what comes back, in every dtype and for every kind of layer."""

from __future__ import annotations

import checkpoints
import oracles
import pytest
import torch
from checkpoints import (
    FLUX,
    MODELS,
    SD1,
    WAN,
    delta,
    grid,
    large,
    planted,
    source,
    target,
    trained,
)

from lorakit.lora_ops import LoraLayer, extract, place, plan_extraction
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.run.stream import stream

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def matrices(shapes):
    return [key for key, shape in shapes.items() if checkpoints.is_matrix(key, shape)]


def errors(layers, base, tuned, keys):
    """Relative error of each layer by target, recomputed in float64 from its tensors."""
    found = {}
    for key in keys:
        layer, true = layers[target(key)], delta(base, tuned, key)
        written = oracles.change(layer.up, layer.down, layer.alpha)
        found[target(key)] = oracles.error_of(true, written) / float(true.norm())
    return found


def clamped(layer: LoraLayer) -> LoraLayer:
    """kohya's way: entries beyond the 0.99 quantile of both factors are cut off."""
    both = torch.cat([layer.up.flatten(), layer.down.flatten()]).float()
    high = float(torch.quantile(both, 0.99))
    return LoraLayer(layer.up.clamp(-high, high), layer.down.clamp(-high, high), layer.alpha)


@pytest.mark.parametrize("factors", list(oracles.ROUNDING))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sd1", "flux", "wan"])
def test_a_change_of_exact_rank_comes_back_to_rounding(name, dtype, factors):
    """Linear, 1x1, 3x3 and 3-D kernels, in every dtype that weights are stored in."""
    base = grid(MODELS[name], dtype)
    tuned = planted(base, rank=3)
    keys = [key for key in matrices(MODELS[name]) if not target(key).startswith("vae.")]
    adapter, report = extract(source(base), source(tuned), 8, dtype=factors)
    assert set(adapter.layers) == {target(key) for key in keys}
    assert {layer.rank for layer in report.layers} == {3}
    found = errors(adapter.layers, base, tuned, keys)
    assert max(found.values()) <= oracles.ROUNDING[factors]
    assert report.error <= oracles.ROUNDING[factors]
    assert report.energy >= 1 - oracles.ROUNDING[factors] ** 2


def test_twin_clamping_the_factors_loses_a_change_of_exact_rank():
    base = grid(SD1, torch.float16)
    tuned = planted(base, rank=3)
    adapter, _ = extract(source(base), source(tuned), 8, dtype=torch.float32)
    cut = {name: clamped(layer) for name, layer in adapter.layers.items()}
    keys = [key for key in matrices(SD1) if target(key) in cut]
    assert min(errors(cut, base, tuned, keys).values()) > 1e-2


def test_one_side_in_fp8_and_one_in_bf16():
    base = grid(FLUX, torch.float8_e4m3fn)
    tuned = {key: weight.float().bfloat16() for key, weight in planted(base).items()}
    adapter, report = extract(source(base), source(tuned), 4, dtype=torch.float32)
    assert len(adapter.layers) == len(matrices(FLUX))
    assert report.error <= 1e-6


def test_a_change_below_the_spacing_of_float32():
    """Float64 weights are subtracted in float64: rounded first, nothing would be left of this."""
    key = "blocks.0.q.weight"
    base = grid({key: (60, 50)}, torch.float64)
    low = torch.randn(60, 2, dtype=torch.float64) @ torch.randn(2, 50, dtype=torch.float64)
    tuned = {key: base[key] + 1e-11 * low}
    assert torch.allclose(
        tuned[key].float()[base[key] != 0], base[key].float()[base[key] != 0], 0, 0
    )
    adapter, report = extract(source(base), source(tuned), 2)
    assert report.layers[0].rank == 2
    assert errors(adapter.layers, base, tuned, [key])[target(key)] <= 1e-4  # of 1e-11 of 1


def test_factors_have_the_form_of_their_weight():
    base = grid({**SD1, **WAN}, torch.float32)
    shapes = {
        target(key): shape for key, shape in base.items() if checkpoints.is_matrix(key, shape.shape)
    }
    adapter, report = extract(source(base), source(trained(base)), 5)
    for name, layer in adapter.layers.items():
        out, into, *kernel = shapes[name].shape
        rank = layer.rank
        assert tuple(layer.up.shape) == (out, rank, *(1 for _ in kernel))
        assert tuple(layer.down.shape) == (rank, into, *kernel)
        assert layer.alpha == float(rank)
        assert layer.scale == 1
        assert layer.mid is None
        assert not layer.needs_base
        assert layer.up.is_contiguous()
        assert layer.down.is_contiguous()
    assert {layer.rank for layer in report.layers} == {5}


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float8_e4m3fn, torch.float16),
    ],
)
def test_factors_take_the_dtype_of_the_tuned_weights(dtype, factors):
    base = grid(FLUX, dtype)
    adapter, _ = extract(source(base), source(planted(base)), 4)
    assert {layer.up.dtype for layer in adapter.layers.values()} == {factors}


@pytest.mark.parametrize(
    "rule",
    [
        "energy=0.8",
        "error=0.5",
        "fro=0.9",
        "cumulative=0.6",
        "ratio=4",
        "knee",
        "threshold=0.05",
        "energy=0.99,max=7",
        "ratio=2,min=9",
    ],
)
def test_ranks_are_those_of_the_true_spectrum(rule):
    base = grid(FLUX, torch.float32)
    tuned = trained(base)
    _, report = extract(source(base), source(tuned), rule, exact=True)
    name, _, rest = rule.partition("=")
    value, *limits = rest.split(",")
    bounds = {"min": 1, "max": 10**6} | {
        k: int(v) for k, _, v in (x.partition("=") for x in limits)
    }
    for layer in report.layers:
        true = delta(base, tuned, layer.target.removeprefix("diffusion_model.") + ".weight")
        s = oracles.singular_values(true).tolist()
        wanted = oracles.RULES[name](s, float(value or 0))
        assert layer.rank == min(max(wanted, bounds["min"]), bounds["max"])


def test_min_raises_a_fixed_rank():
    base = grid(FLUX, torch.float32)
    _, report = extract(source(base), source(trained(base)), "2,min=5")
    assert {layer.rank for layer in report.layers} == {5}


def test_a_rank_above_the_matrix_is_lowered_and_said():
    base = grid(FLUX, torch.float32)
    tuned = trained(base)
    adapter, report = extract(source(base), source(tuned), 1000)
    assert {layer.rank for layer in report.layers} <= {48, 40}
    assert max(errors(adapter.layers, base, tuned, matrices(FLUX)).values()) <= 1e-6
    count = len(report.layers)
    assert any(note.startswith(f"rank 1000 lowered in {count} layers") for note in report.notes)


def test_the_default_is_within_its_tolerance_of_the_exact_and_the_exact_is_numpys():
    base, tuned = large()
    plain = extract(source(base), source(tuned), 32)[1]
    exact = extract(source(base), source(tuned), 32, exact=True)[1]
    for ours, best in zip(plain.layers, exact.layers, strict=True):
        true = delta(base, tuned, ours.target.removeprefix("diffusion_model.") + ".weight")
        known = oracles.best_error(true, 32) / float(true.norm())
        assert best.error == pytest.approx(known, rel=1e-5, abs=1e-6)
        assert best.error * (1 - 1e-5) <= ours.error <= best.error * (1 + 1e-3)


def same(first: LoraLayer, second: LoraLayer, tolerance: float) -> bool:
    return torch.allclose(first.delta(), second.delta(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rule", ["32", "energy=0.5"])
def test_a_layer_does_not_depend_on_the_others(rule):
    base, tuned = large()
    together, _ = extract(source(base), source(tuned), rule)
    for name, layer in together.layers.items():
        alone, _ = extract(source(base), source(tuned), rule, include=[name])
        assert torch.equal(alone.layers[name].up, layer.up)
        assert torch.equal(alone.layers[name].down, layer.down)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rule", ["32", "energy=0.5"])
def test_batches_change_nothing(rule, exact):
    """A cap on memory turns batches on: the two large layers are then one stack."""
    base, tuned = large()
    plan = plan_extraction(source(base), source(tuned), rule)
    batched = place("cpu", memory=1 << 30)
    work = extraction_work(plan, exact=exact)
    batches = batched.batches(work.jobs)
    assert [len(batch) for batch in batches] == [2, 1]
    single = {one.name: one for one in stream(work)}
    stacked = {one.name: one for one in stream(work, batched)}
    assert single.keys() == stacked.keys()
    for name, one in single.items():
        assert stacked[name].report.rank == one.report.rank
        assert stacked[name].report.error == pytest.approx(one.report.error, rel=1e-6)
        assert same(stacked[name].value, one.value, 1e-6 * one.report.norm)


def test_a_memory_cap_below_one_layer_is_an_error():
    base, tuned = large()
    plan = plan_extraction(source(base), source(tuned), 4)
    with pytest.raises(ArgumentError, match=r"`diffusion_model.blocks.0.a` needs .* MB on cpu"):
        list(stream(extraction_work(plan), place("cpu", memory=1000)))
    with pytest.raises(ArgumentError, match="give a positive number"):
        place("cpu", memory=0)
    with pytest.raises(ArgumentError, match="`tpu` is not available; here are: auto, cpu"):
        place("tpu")


def test_a_vae_can_be_extracted_and_verified():
    """Asked for, it is a component like the others."""
    base = grid(SD1, torch.float32)
    tuned = planted(base)
    adapter, report = extract(source(base), source(tuned), 4, components=["vae"])
    assert set(adapter.layers) == {"vae.decoder.conv_in"}
    assert report.error <= 1e-6
