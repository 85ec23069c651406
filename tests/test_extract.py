"""Extraction: what comes back, what is reported, and that nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import math

import checkpoints
import oracles
import pytest
import torch
from checkpoints import (
    FLUX,
    MODELS,
    OPENCLIP,
    SD1,
    WAN,
    delta,
    grid,
    planted,
    source,
    target,
    trained,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import (
    FullLayer,
    LoraLayer,
    extract,
    extract_file,
    open_source,
    place,
    plan_extraction,
    plan_file,
)
from lorakit.lora_ops.errors import ArgumentError, MismatchError, NonFiniteError
from lorakit.lora_ops.extract import run

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
QUERY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
QUERY_KEY = f"model.{QUERY}.weight"


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


# --- What comes back ----------------------------------------------------------------------------


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
        assert layer.dora_scale is None
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


@pytest.mark.parametrize("factors", list(oracles.ROUNDING))
def test_reported_errors_are_those_of_the_numbers_written(tmp_path, factors):
    """After rounding to the factors' dtype; recomputed in float64 from the file."""
    base = grid(FLUX, torch.float32)
    tuned = trained(base)
    report = to_file(tmp_path, base, tuned, "6", dtype=factors)
    written = load_file(tmp_path / "out.safetensors")
    lost = whole = 0.0
    for layer in report.layers:
        true = delta(base, tuned, layer.target.removeprefix("diffusion_model.") + ".weight")
        up, down = (written[f"{layer.target}.lora_{side}.weight"] for side in "BA")
        assert up.dtype == down.dtype == factors
        change = oracles.change(up, down, float(written[f"{layer.target}.alpha"]))
        error, norm = oracles.error_of(true, change), float(true.norm())
        assert layer.error == pytest.approx(error / norm, rel=1e-5)
        assert layer.norm == pytest.approx(norm, rel=1e-6)
        assert layer.energy == pytest.approx(1 - (error / norm) ** 2, abs=1e-5)
        lost, whole = lost + error**2, whole + norm**2
    assert report.error == pytest.approx(math.sqrt(lost / whole), rel=1e-5)
    assert report.energy == pytest.approx(1 - lost / whole, abs=1e-5)


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


def big():
    """Two layers so large that the default is an iteration, and a small one."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (600, 512), "b": (600, 512), "c": (50, 40)}
    base = {
        f"blocks.0.{key}.weight": torch.randn(s, generator=generator) for key, s in shapes.items()
    }
    tuned = dict(base)
    for (key, weight), power in zip(base.items(), (0.8, 0.3, 0.5), strict=True):
        spectrum = oracles.power(min(weight.shape), power)
        tuned[key] = (
            weight + oracles.with_spectrum(*weight.shape, spectrum, seed=len(tuned)).float()
        )
    return base, tuned


def test_the_default_is_within_its_tolerance_of_the_exact_and_the_exact_is_numpys():
    base, tuned = big()
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
    base, tuned = big()
    together, _ = extract(source(base), source(tuned), rule)
    for name, layer in together.layers.items():
        alone, _ = extract(source(base), source(tuned), rule, include=[name])
        assert torch.equal(alone.layers[name].up, layer.up)
        assert torch.equal(alone.layers[name].down, layer.down)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rule", ["32", "energy=0.5"])
def test_batches_change_nothing(rule, exact):
    """A cap on memory turns batches on: the two large layers are then one stack."""
    base, tuned = big()
    plan = plan_extraction(source(base), source(tuned), rule)
    batched = place("cpu", memory=1 << 30)
    assert [len(batch) for batch in batched.batches(plan.pairing.candidates, plan.most_ranks)] == [
        2,
        1,
    ]
    single = {one.pair.target: one for one in run(plan, exact=exact)}
    stacked = {one.pair.target: one for one in run(plan, exact=exact, placement=batched)}
    assert single.keys() == stacked.keys()
    for name, one in single.items():
        assert stacked[name].report.rank == one.report.rank
        assert stacked[name].report.error == pytest.approx(one.report.error, rel=1e-6)
        assert same(stacked[name].layer, one.layer, 1e-6 * one.report.norm)


def test_a_memory_cap_below_one_layer_is_an_error():
    base, tuned = big()
    plan = plan_extraction(source(base), source(tuned), 4)
    with pytest.raises(ArgumentError, match=r"`diffusion_model.blocks.0.a` needs .* MiB on cpu"):
        list(run(plan, placement=place("cpu", memory=1000)))
    with pytest.raises(ArgumentError, match="give a positive number"):
        place("cpu", memory=0)
    with pytest.raises(ArgumentError, match="`tpu` is not available; here are: auto, cpu"):
        place("tpu")


# --- What is left out ---------------------------------------------------------------------------


def reasons(report):
    return {skip.target: skip.reason for skip in report.skips}


def test_every_parameter_is_a_layer_or_a_skip_exactly_once():
    base = grid(SD1, torch.float32)
    tuned = trained(base)
    tuned[QUERY_KEY] = base[QUERY_KEY]
    rule = "4,conv=0"
    _, report = extract(source(base), source(tuned), rule, exclude=["*.mlp.fc1"])
    listed = [one.target for one in (*report.layers, *report.skips)]
    wanted = [target(key) for key in SD1 if not target(key).startswith(("vae.", "other."))]
    assert sorted(listed) == sorted(wanted)
    found = reasons(report)
    assert found[QUERY] == "unchanged"
    assert found["diffusion_model.input_blocks.1.0.in_layers.2"] == "rank 0 by the rule"
    assert (
        found["text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"] == "excluded"
    )
    assert found["diffusion_model.input_blocks.1.1.proj_in.bias"].startswith("no low-rank form")
    assert found[
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"
    ].startswith("no low-rank form")
    kinds = {skip.target: skip.kind for skip in report.skips}
    assert kinds["diffusion_model.input_blocks.1.0.in_layers.0"] == "norm"
    assert (
        kinds["text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"]
        == "embedding"
    )


def test_the_fused_projection_of_openclip_is_three_layers():
    base = grid(OPENCLIP, torch.float32)
    tuned = planted(base)
    generator = torch.Generator().manual_seed(9)
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    parts = [torch.randint(-1, 2, s, generator=generator) / 16.0 for s in ((96, 3), (3, 1280))]
    tuned[key] = base[key] + parts[0] @ parts[1]
    adapter, report = extract(source(base), source(tuned), 4)
    root = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn."
    true = delta(base, tuned, key)
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        layer = adapter.layers[root + name]
        rows = true[32 * index : 32 * (index + 1)]
        change = oracles.change(layer.up, layer.down, layer.alpha)
        assert oracles.error_of(rows, change) <= 1e-6 * float(rows.norm())
        assert reasons(report)[f"{root}{name}.bias"].startswith("no low-rank form")
    listed = [one.target for one in (*report.layers, *report.skips)]
    assert len(listed) == len(set(listed)) == len(OPENCLIP) + 2 + 2  # two keys are three each


def test_shares_of_what_is_left_out():
    base = grid(SD1, torch.float32)
    tuned = trained(base)
    _, report = extract(source(base), source(tuned), "4,conv=0")
    norms = {
        target(key): float(delta(base, tuned, key).norm())
        for key in SD1
        if not target(key).startswith(("vae.", "other."))
    }
    for one in (*report.layers, *report.skips):
        assert one.norm == pytest.approx(norms[one.target], rel=1e-5)
    whole = math.fsum(norm**2 for norm in norms.values())
    lost = math.fsum(norms[skip.target] ** 2 for skip in report.skips)
    assert report.left_out == pytest.approx(lost / whole, rel=1e-5)
    assert math.fsum(share for _, share in report.reasons().values()) == pytest.approx(lost / whole)
    assert sum(count for count, _ in report.reasons().values()) == len(report.skips)


def test_storage_rounding_is_no_change():
    generator = torch.Generator().manual_seed(3)
    base = {key: torch.randn(shape, generator=generator) for key, shape in FLUX.items()}
    tuned = {key: weight.bfloat16() for key, weight in base.items()}
    tuned["img_in.weight"] = (base["img_in.weight"] + 1).bfloat16()
    adapter, report = extract(source(base), source(tuned), 1)
    assert set(adapter.layers) == {"diffusion_model.img_in"}
    assert reasons(report)["diffusion_model.txt_in"] == "only storage rounding differs"


def test_nothing_differs():
    base = grid(FLUX, torch.float16)
    with pytest.raises(MismatchError, match=r"no layer differs between .* unchanged"):
        extract(source(base), source(dict(base)), 4)


def test_full_differences_keep_the_rest():
    base = grid(SD1, torch.float32)
    tuned = trained(base)
    adapter, report = extract(source(base), source(tuned), 4, full_differences=True)
    assert not report.skips
    for key in SD1:
        layer = adapter.layers.get(target(key))
        if isinstance(layer, FullLayer):
            assert oracles.error_of(delta(base, tuned, key), layer.diff) <= 1e-6
    assert isinstance(adapter.layers["diffusion_model.input_blocks.1.1.proj_in.bias"], FullLayer)


def test_integers_that_differ_are_not_called_unchanged():
    base = grid(FLUX, torch.float32) | {"blocks.0.steps": torch.arange(4)}
    tuned = trained(base) | {"blocks.0.steps": torch.arange(4) + 1}
    _, report = extract(source(base), source(tuned), 4)
    assert reasons(report)["diffusion_model.blocks.0.steps"] != "unchanged"


@pytest.mark.parametrize("only", ["base", "tuned"])
def test_a_bias_on_one_side_only_is_mentioned(only):
    base, extra = grid(FLUX, torch.float32), {"blocks.7.bias": torch.ones(4)}
    tuned = trained(base)
    sides = (base | extra, tuned) if only == "base" else (base, tuned | extra)
    _, report = extract(source(sides[0]), source(sides[1]), 4)
    mentioned = [*report.notes, *reasons(report)]
    assert any("diffusion_model.blocks.7.bias" in text for text in mentioned)


# --- Numbers that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("key", [QUERY_KEY, "model.diffusion_model.time_embed.0.bias"])
def test_numbers_that_are_none_name_layer_file_and_count(key, side, value):
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    damaged = {"base": base, "tuned": tuned}[side]
    damaged[key] = damaged[key].clone()
    damaged[key].view(-1)[:2] = value
    with pytest.raises(NonFiniteError) as error:
        extract(source(base, "base.safetensors"), source(tuned, "tuned.safetensors"), 4)
    counts = "2 NaN and 0 infinite" if math.isnan(value) else "0 NaN and 2 infinite"
    assert f"{side}.safetensors" in str(error.value)
    assert f"`{key}` holds {counts} values out of {damaged[key].numel()}" in str(error.value)
    assert error.value.target == target(key)


def test_a_damaged_layer_can_be_excluded_as_the_message_says():
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    tuned[QUERY_KEY] = torch.full_like(tuned[QUERY_KEY], math.nan)
    with pytest.raises(NonFiniteError, match=f"--exclude '{QUERY}'"):
        extract(source(base), source(tuned), 4)
    adapter, report = extract(source(base), source(tuned), 4, exclude=[QUERY])
    assert QUERY not in adapter.layers
    assert reasons(report)[QUERY] == "excluded"
    assert math.isfinite(report.error)


def test_the_way_out_that_is_offered_for_a_damaged_bias_exists():
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    name = "diffusion_model.time_embed.0.bias"
    tuned[f"model.{name}"] = torch.full_like(tuned[f"model.{name}"], math.nan)
    with pytest.raises(NonFiniteError) as error:
        extract(source(base), source(tuned), 4)
    if f"--exclude '{name}'" in str(error.value):
        extract(source(base), source(tuned), 4, exclude=[name])


def test_a_change_too_large_for_fp16_names_the_layer():
    base = {"blocks.0.q.weight": torch.zeros(20, 30), "blocks.0.k.weight": torch.zeros(20, 30)}
    tuned = {key: weight.clone() for key, weight in base.items()}
    tuned["blocks.0.q.weight"][0, 0] = 1e12
    with pytest.raises(
        NonFiniteError, match=r"`diffusion_model.blocks.0.q`: values up to 1e\+06 do"
    ):
        extract(source(base), source(tuned), 1, dtype=torch.float16)
    _, report = extract(source(base), source(tuned), 1, dtype=torch.bfloat16)
    assert report.error <= 8e-3


# --- Progress, inputs, files --------------------------------------------------------------------


def test_progress_reaches_the_total_and_inputs_are_left_alone():
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    before = [{key: weight.clone() for key, weight in side.items()} for side in (base, tuned)]
    steps: list[tuple[int, int, str]] = []
    state = torch.get_rng_state()
    extract(source(base), source(tuned), 4, progress=lambda *step: steps.append(step))
    done, totals, names = zip(*steps, strict=True)
    assert (
        done[-1]
        == totals[0]
        == sum(
            math.prod(shape)
            for key, shape in SD1.items()
            if not target(key).startswith(("vae.", "other."))
        )
    )
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert len(names) == len(set(names))
    for side, copy in zip((base, tuned), before, strict=True):
        assert all(torch.equal(side[key].double(), copy[key].double()) for key in side)
    assert torch.equal(torch.get_rng_state(), state)


def to_file(folder, base, tuned, rule, *, format="comfy", output="out.safetensors", **options):
    paths = [folder / "base.safetensors", folder / "tuned.safetensors"]
    for path, tensors in zip(paths, (base, tuned), strict=True):
        save_file(tensors, path)
    with open_source(paths[0]) as one, open_source(paths[1]) as two:
        plan = plan_file(one, two, rule, output=folder / output, **options)
        return extract_file(plan, one, two, folder / output, format=format, version="0.0")


@pytest.mark.parametrize("format", ["comfy", "kohya"])
def test_a_file_is_the_adapter_and_its_hash_is_true(tmp_path, format):
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    report = to_file(tmp_path, base, tuned, "8,conv=2", format=format)
    path = tmp_path / "out.safetensors"
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert report.size == len(raw)
    assert len(load_file(path)) == 3 * len(report.layers)
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "out"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "3"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert float(metadata["lorakit.error"]) == pytest.approx(report.error, rel=1e-5)
    assert float(metadata["lorakit.left_out"]) == pytest.approx(report.left_out, rel=1e-5)
    assert metadata["lorakit.rank"] == "rank=8,conv=rank=2"
    assert (
        metadata["lorakit.base_sha256"]
        == hashlib.sha256((tmp_path / "base.safetensors").read_bytes()).hexdigest()
    )
    layers = json.loads(metadata["lorakit.layers"])
    assert {name: rank for name, (rank, _) in layers.items()} == {
        layer.target: layer.rank for layer in report.layers
    }


def test_ranks_that_differ_are_dynamic(tmp_path):
    base = grid(FLUX, torch.float16)
    report = to_file(tmp_path, base, trained(base), "energy=0.7")
    assert len({layer.rank for layer in report.layers}) > 1
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"


def test_an_oracle_in_memory_and_a_file_agree(tmp_path):
    base, tuned = big()
    to_file(tmp_path, base, tuned, "32")
    adapter, _ = extract(source(base), source(tuned), "32")
    written: dict[str, Tensor] = load_file(tmp_path / "out.safetensors")
    for name, layer in adapter.layers.items():
        assert torch.equal(written[f"{name}.lora_B.weight"], layer.up)
        assert torch.equal(written[f"{name}.lora_A.weight"], layer.down)


def test_a_vae_can_be_extracted_and_verified():
    """Asked for, it is a component like the others."""
    base = grid(SD1, torch.float32)
    tuned = planted(base)
    adapter, report = extract(source(base), source(tuned), 4, components=["vae"])
    assert set(adapter.layers) == {"vae.decoder.conv_in"}
    assert report.error <= 1e-6
