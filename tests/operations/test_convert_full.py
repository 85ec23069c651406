"""Full differences through a conversion: LyCORIS writes them in kohya's naming, ComfyUI loads both."""

from __future__ import annotations

import math

import pytest
import torch
from commands import lorakit_here
from kinds import numbers
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.errors import UnsupportedLayerError
from lorakit.lora_ops.models.architectures import architecture_named
from lorakit.lora_ops.operations.convert.convert import convert

SD1 = architecture_named("sd1")
#: By native target, kohya's names, as LyCORIS 4.1.3 spells a full module, and ComfyUI's.
NAMES = {
    "linear": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    ),
    "conv": (
        "lora_unet_mid_block_resnets_0_conv1",
        "diffusion_model.middle_block.0.in_layers.2",
    ),
}
WEIGHTS = {"linear": (8, 8), "conv": (8, 8, 3, 3)}


def tensors(spelling: int) -> dict[str, torch.Tensor]:
    found = {}
    for name, shape in WEIGHTS.items():
        module = NAMES[name][spelling]
        found[f"{module}.diff"] = numbers(*shape)
        found[f"{module}.diff_b"] = numbers(8, seed=1)
    return found


def written(adapter) -> dict[str, torch.Tensor]:
    return {
        adapter.keys[name][role]: tensor
        for name, layer in adapter.layers.items()
        for role, tensor in layer.tensors().items()
    }


@pytest.mark.parametrize("here", [0, 1])
@pytest.mark.parametrize("there", [0, 1])
def test_a_full_difference_has_a_name_in_both_formats(here, there):
    adapter = decode(DictSource(tensors(here)))
    result, report = convert(adapter, ("kohya", "comfy")[there], architecture=SD1)
    expected = tensors(there)
    found = written(result)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert report.skips == ()


def beside_factors() -> dict[str, torch.Tensor]:
    """Full differences and one LoRA whose scale is 1, so that nothing of it has to be computed."""
    module = NAMES["linear"][0].replace("to_q", "to_k")
    pair = {"lora_up.weight": numbers(8, 2, seed=2), "lora_down.weight": numbers(2, 8, seed=3)}
    pair |= {"alpha": torch.tensor(2.0)}
    return tensors(0) | {f"{module}.{suffix}": tensor for suffix, tensor in pair.items()}


@pytest.mark.parametrize("options", [{}, {"to": "lora", "rule": 1}])
@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_they_are_left_out_where_that_is_allowed_with_their_share(format, options):
    held = beside_factors()
    if options:  # a matrix becomes a LoRA, so that the biases alone have no place
        held = {key: tensor for key, tensor in held.items() if not key.endswith(".diff")}
    adapter = decode(DictSource(held))
    with pytest.raises(
        UnsupportedLayerError, match=r"no place for full differences.*`allow_partial=True`"
    ):
        convert(adapter, format, architecture=SD1, **options)
    result, report = convert(adapter, format, architecture=SD1, allow_partial=True, **options)
    assert [layer.title for layer in result.layers.values()] == ["LoRA"]
    lost = {key: one for key, one in held.items() if key.endswith((".diff", ".diff_b"))}
    assert {skip.reason for skip in report.skips} == {"no place in the format"}
    assert len(report.skips) == len(lost)
    missing = math.sqrt(sum(float(one.double().square().sum()) for one in lost.values()))
    assert math.hypot(*(skip.norm for skip in report.skips)) == pytest.approx(missing, rel=1e-6)
    up, down = (
        next(t for k, t in held.items() if k.endswith(f"{x}.weight")) for x in ("up", "down")
    )
    assert report.layers[0].norm == pytest.approx(float((up @ down).norm()), rel=1e-5)


def test_a_file_of_nothing_else_is_still_refused():
    adapter = decode(DictSource(tensors(0)))
    with pytest.raises(UnsupportedLayerError, match="no place for full differences"):
        convert(adapter, "diffusers", architecture=SD1, allow_partial=True)


def test_the_command_says_what_was_left_out(tmp_path):
    save_file(beside_factors(), tmp_path / "a.safetensors")
    words = [tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--format", "diffusers"]
    words += ["--architecture", "sd1"]
    run = lorakit_here("convert", *words)
    assert run.status == 1
    assert "--allow-partial" in run.err
    run = lorakit_here("convert", *words, "--allow-partial")
    assert run.status == 0, run.err
    assert "no place in the format" in run.out
    assert all(".diff" not in key for key in load_file(tmp_path / "b.safetensors"))


# --- layers that no program reads in a format

BLOCK = "diffusion_model.double_stream_blocks.0.block."


def with_gate() -> dict[str, torch.Tensor]:
    found = {}
    for module, (out, into) in {"attn1.to_q": (8, 8), "ff_i.gate": (4, 8)}.items():
        found[f"{BLOCK}{module}.lora_B.weight"] = numbers(out, 2, seed=out)
        found[f"{BLOCK}{module}.lora_A.weight"] = numbers(2, into, seed=into)
    return found


@pytest.mark.parametrize("options", [{}, {"to": "lora", "rule": 1}])
@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_a_gate_that_peft_refuses_is_left_out_where_that_is_allowed(format, options):
    held = with_gate()
    adapter, hidream = decode(DictSource(held)), architecture_named("hidream")
    with pytest.raises(
        UnsupportedLayerError, match=r"ff_i.gate` of HiDream.*comfy.*`allow_partial=True`"
    ):
        convert(adapter, format, architecture=hidream, **options)
    result, report = convert(adapter, format, architecture=hidream, allow_partial=True, **options)
    (module,) = result.layers
    assert module.endswith("attn1.to_q")
    (skip,) = report.skips
    up, down = (held[f"{BLOCK}ff_i.gate.lora_{side}.weight"] for side in "BA")
    assert skip.norm == pytest.approx(float((up.double() @ down.double()).norm()), rel=1e-6)
    for other in ("comfy", "kohya"):
        assert len(convert(adapter, other, architecture=hidream)[0].layers) == 2
