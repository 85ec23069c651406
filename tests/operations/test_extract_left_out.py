"""Extraction: what is left out and why, and numbers that are none; nothing is lost on the way."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from checkpoints import (
    FLUX,
    OPENCLIP,
    SD1,
    delta,
    grid,
    planted,
    source,
    target,
    trained,
)

from lorakit.lora_ops import FullLayer, extract
from lorakit.lora_ops.errors import MismatchError, NonFiniteError

QUERY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
QUERY_KEY = f"model.{QUERY}.weight"


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
    with pytest.raises(NonFiniteError, match=f'`exclude="{QUERY}"`'):
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
    if f'`exclude="{name}"`' in str(error.value):
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
