"""Scale: strength is linear in float64, bits stay where alpha can hold it, and the faulty ways fail."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import adapters
import pytest
import torch
from adapters import ALPHAS, DTYPES, FORMATS, SHAPES, Part, adapter, delta, read
from bits import raw
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, error_of
from safetensors import safe_open
from safetensors.torch import load_file

from lorakit.lora_ops.adapters.layers import FullLayer
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import (
    ArgumentError,
    MismatchError,
    NonFiniteError,
    UnknownFormatError,
    UnsupportedLayerError,
)
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.operations.scale.scale import scale

HOLD_ALPHA, FOLD = ("kohya", "comfy"), ("peft", "diffusers")
STRENGTHS = (0.8, -1.0, -0.3, 2.0, 1.0, 1e-3)
FULL = {
    "diffusion_model.norm.diff": torch.tensor([1.0, -2.0, 0.5]),
    "diffusion_model.proj.diff_b": torch.tensor([3.0, 4.0]).half(),
}


def parts(alpha=0.7, dtype=torch.float32):
    return [Part(form, 6, alpha, dtype, seed=n) for n, form in enumerate(SHAPES)]


def off(found, expected):
    """How far a change is from what it should be, as a share of that."""
    return error_of(found, expected) / float(expected.norm())


# --- Linearity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", HOLD_ALPHA)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_strength_goes_into_alpha_and_leaves_the_bits(format, strength, alpha):
    before = adapter(parts(ALPHAS[alpha]), format)
    after, report = scale(before, strength)
    for target, layer in after.layers.items():
        kept = before.layers[target]
        assert raw(layer.up) == raw(kept.up)
        assert raw(layer.down) == raw(kept.down)
        assert off(delta(layer), strength * delta(kept)) <= 1e-14
        stored = 6.0 if ALPHAS[alpha] is None else ALPHAS[alpha]
        if strength == 1:
            assert layer.alpha == kept.alpha
        else:
            assert layer.alpha == pytest.approx(strength * stored, rel=1e-7)
    assert report.error == 0
    assert {layer.coefficients for layer in report.layers} == {(strength,)}


@pytest.mark.parametrize("format", FOLD)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_strength_goes_into_up_where_no_alpha_is_read(format, strength, dtype):
    before = adapter(parts(None, dtype), format)
    after, report = scale(before, strength)
    for target, layer in after.layers.items():
        kept = before.layers[target]
        expected = strength * delta(kept)
        assert layer.alpha is None
        assert off(delta(layer), expected) <= ROUNDING.get(layer.dtype, 0)
        assert error_of(layer.down, kept.down) <= 1e-7 * float(kept.down.double().norm())
        if strength == 1:
            assert raw(layer.up) == raw(kept.up)
        else:
            assert layer.up.dtype in (torch.float32, torch.float16, torch.bfloat16)
        if layer.dtype == dtype:
            assert raw(layer.down) == raw(kept.down)
    # What is reported is what rounding took, and that alone.
    for layer in report.layers:
        expected = strength * delta(before.layers[layer.target])
        lost = error_of(delta(after.layers[layer.target]), expected)
        assert layer.residual == pytest.approx(lost, rel=1e-2, abs=1e-7 * layer.norm)
        assert layer.norm == pytest.approx(float(expected.norm()), rel=1e-6)


@pytest.mark.parametrize("format", FOLD)
def test_a_power_of_two_costs_nothing(format):
    before = adapter(parts(None, torch.float16), format)
    after, report = scale(before, -0.5)
    assert report.error == 0
    for target, layer in after.layers.items():
        assert torch.equal(delta(layer), -0.5 * delta(before.layers[target]))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(list(SHAPES)),
    st.sampled_from(FORMATS),
    st.sampled_from(list(ALPHAS.values())),
    st.floats(-4, 4).filter(lambda s: abs(s) > 1e-3),
    st.floats(-4, 4).filter(lambda s: abs(s) > 1e-3),
    st.integers(0, 100),
)
def test_scale_is_linear(form, format, alpha, first, second, seed):
    before = adapter([Part(form, 5, alpha, seed=seed)], format)
    (change,) = (delta(layer) for layer in before.layers.values())
    (once,) = (delta(layer) for layer in scale(before, first * second)[0].layers.values())
    twice = scale(scale(before, first)[0], second)[0]
    (after,) = (delta(layer) for layer in twice.layers.values())
    assert off(once, first * second * change) <= 2e-7
    assert off(after, first * second * change) <= 2e-7


@pytest.mark.parametrize("strength", [0.8, 2.0, 0.25])
def test_twin_strength_on_both_factors_is_its_square(strength):
    """Power-Merger, EasyLoRA: each factor is multiplied."""
    (layer,) = adapter([Part()]).layers.values()
    both = replace(layer, up=layer.up * strength, down=layer.down * strength)
    assert off(delta(both), strength * delta(layer)) > 0.15
    assert off(delta(both), strength**2 * delta(layer)) <= 1e-6


@pytest.mark.parametrize("strength", [0.8, 2.0, 0.25])
def test_twin_a_root_is_right_on_both_factors_and_wrong_on_the_product(strength):
    """supermerger: the root that belongs on each factor, on a dense path."""
    (layer,) = adapter([Part()]).layers.values()
    root = math.sqrt(strength)
    split = replace(layer, up=layer.up * root, down=layer.down * root)
    assert off(delta(split), strength * delta(layer)) <= 1e-6
    assert off(root * delta(layer), strength * delta(layer)) > 0.1


def test_strength_zero_leaves_layers_out():
    """And is not read as a strength that was not given."""
    with pytest.raises(MismatchError, match=r"no layer is left .5 layers strength 0"):
        scale(adapter(), 0)
    _, report = scale(adapter(), where=["attn1=0"])
    assert [skip.kind for skip in report.skips] == ["linear"]


def test_near_zero_is_nearly_nothing():
    """Continuous at 0: no floor, no default in its place."""
    before = adapter()
    for strength in (1e-2, 1e-4, 1e-8):
        after, report = scale(before, strength)
        for target, layer in after.layers.items():
            assert off(delta(layer), strength * delta(before.layers[target])) <= 1e-6
        assert not report.skips


# --- Rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_each_layer_gets_the_strength_of_its_rule(format):
    before = adapter(format=format)
    after, report = scale(
        before, 0.5, blocks="IN01=2", where=["attn1=-1", "/proj.in$/=0", "*third*=3"]
    )
    linear, conv1, conv3, conv3d, tucker = before.layers
    expected = {linear: -0.5, conv3: 1.0, conv3d: 1.5, tucker: 0.5}
    assert set(after.layers) == set(expected)
    assert [(skip.target, skip.reason) for skip in report.skips] == [(conv1, "strength 0")]
    assert {layer.target: layer.coefficients for layer in report.layers} == {
        target: (strength,) for target, strength in expected.items()
    }
    for target, strength in expected.items():
        assert off(delta(after.layers[target]), strength * delta(before.layers[target])) <= 1e-6


def test_what_is_left_out_is_counted():
    """A layer of strength 0 loses nothing that was wanted."""
    _, report = scale(adapter(), where=["attn1=0"])
    assert report.left_out == 0
    assert report.error == 0


def test_a_rule_that_fits_nothing_is_refused():
    with pytest.raises(ArgumentError, match="`te` fits none of 5 layers"):
        scale(adapter(), where=["te=0"])


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(ArgumentError, match="is not a finite number"):
        scale(adapter(), strength)


# --- Other kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.8, -2.0])
def test_full_differences_are_multiplied_too(strength):
    before = read(adapters.tensors([Part()], "comfy") | FULL)
    after, report = scale(before, strength)
    for target, layer in after.layers.items():
        rounding = ROUNDING[layer.dtype]
        assert off(delta(layer), strength * delta(before.layers[target])) <= rounding
        assert layer.dtype == before.layers[target].dtype
    assert sorted(layer.kind for layer in report.layers) == ["bias", "full", "linear"]
    bias = next(layer for layer in report.layers if layer.kind == "bias")
    exact = strength * FULL["diffusion_model.proj.diff_b"].double()
    assert bias.norm == pytest.approx(5 * abs(strength))
    assert bias.residual == pytest.approx(float((exact - exact.half().double()).norm()))


def test_strength_one_keeps_all_bits():
    before = read(adapters.tensors(parts(), "comfy") | FULL)
    after, report = scale(before, 1)
    for target, layer in after.layers.items():
        old, new = before.layers[target].tensors(), layer.tensors()
        assert {role: raw(tensor) for role, tensor in old.items()} == {
            role: raw(tensor) for role, tensor in new.items()
        }
    assert report.error == 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_dora_is_refused_by_name(format, strength):
    tensors = adapters.tensors([Part()], format)
    module = adapters.module_name(adapters.MODULES["linear"], format)
    tensors[f"{module}.dora_scale"] = torch.ones(40, 1)
    with pytest.raises(UnsupportedLayerError) as caught:
        scale(read(tensors), strength)
    assert f"layer `{module}` has DoRA magnitudes" in str(caught.value)
    assert "set the strength where the file is used" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("role", ["up", "down"])
def test_a_number_that_is_none_is_named(value, role):
    tensors = adapters.tensors([Part()])
    next(t for key, t in tensors.items() if f"lora_{role}" in key)[0, 0] = value
    with pytest.raises(NonFiniteError, match=f"the {role} of layer `lora_unet_.*attn1_to_q`"):
        scale(read(tensors), 0.5)


def test_a_number_that_is_none_in_a_full_difference_is_named():
    before = replace(adapter(), layers={"norm": FullLayer(torch.tensor([math.inf]))})
    with pytest.raises(NonFiniteError, match="the diff of layer `norm` holds 0 NaN and 1 infinite"):
        scale(before, 0.5)


def test_strengths_beyond_a_dtype_are_refused():
    with pytest.raises(NonFiniteError, match=r"an alpha of 4e\+38 does not fit float32"):
        scale(adapter([Part(alpha=4.0, size=1e-6)]), 1e38)
    with pytest.raises(NonFiniteError, match="do not fit float16"):
        scale(adapter([Part(dtype=torch.float16)], "peft"), 1e6)


def test_an_adapter_without_layers_is_refused():
    with pytest.raises(UnknownFormatError, match="holds no layers"):
        scale(replace(adapter(), layers={}), 0.5)


def test_the_adapter_is_left_as_it_was():
    tensors = adapters.tensors(parts(), "peft")
    kept = {key: tensor.clone() for key, tensor in tensors.items()}
    scale(read(tensors), -0.3)
    assert all(torch.equal(tensors[key], kept[key]) for key in kept)


def test_progress_counts_the_layers():
    seen = []
    before = adapter()
    scale(before, 0.5, progress=lambda *told: seen.append(told))
    assert seen == [(n, 5, target) for n, target in enumerate(before.layers, start=1)]


# --- Files -----------------------------------------------------------------------------------------


def scaled_file(tmp_path, tensors, strength, metadata=None, **rules):
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    adapters.written(path, tensors, metadata)
    with open_source(path) as source:
        report = scale_file(Ingredient(source, strength, **rules), out)
    with safe_open(out, "pt") as opened:
        return load_file(out), opened.metadata(), report


@pytest.mark.parametrize("format", HOLD_ALPHA)
@pytest.mark.parametrize("strength", [0.8, -1.5])
@pytest.mark.parametrize("alpha", ["absent", "fractional"])
def test_a_file_differs_in_its_alphas_alone(tmp_path, format, strength, alpha):
    tensors = adapters.tensors(parts(ALPHAS[alpha], torch.bfloat16), format)
    tensors["bundle_emb.word.string_to_param.*"] = torch.randn(2, 768)
    found, *_ = scaled_file(tmp_path, tensors, strength)
    alphas = {key for key in found if key.endswith(".alpha")}
    assert len(alphas) == 5
    assert set(found) == set(tensors) | alphas
    for key in found.keys() - alphas:
        assert (found[key].dtype, raw(found[key])) == (tensors[key].dtype, raw(tensors[key]))
    after = adapters.changes(found)
    for module, change in adapters.changes(tensors).items():
        assert off(after[module], strength * change) <= 1e-7


@pytest.mark.parametrize(("component", "format"), [("", "peft"), ("transformer", "diffusers")])
@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_a_peft_configuration_is_folded_and_made_true(tmp_path, component, format, strength):
    tensors = adapters.tensors(parts(None), format)
    metadata = adapters.peft_config(6, 24.0, component, rank_pattern={}, alpha_pattern={})
    found, told, _ = scaled_file(tmp_path, tensors, strength, metadata)
    prefix = f"{component}." if component else ""
    config = json.loads(told["lora_adapter_metadata"])
    assert (config[f"{prefix}r"], config[f"{prefix}lora_alpha"]) == (6, 6)
    assert not any(key.endswith(".alpha") for key in found)
    before, after = adapters.changes(tensors, 4.0), adapters.changes(found)
    for module, change in before.items():
        assert off(after[module], strength * change) <= 1e-6


def test_layers_of_strength_zero_are_not_in_the_file(tmp_path):
    found, _, report = scaled_file(tmp_path, adapters.tensors(), 1.0, where=("attn1=0",))
    assert not any("attn1" in key for key in found)
    assert len(report.skips) == 1
    assert len(adapters.changes(found)) == 4
