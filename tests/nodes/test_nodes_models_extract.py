"""Extract LoRA in ComfyUI's process: from two models, and from what its subtracting nodes give."""

from __future__ import annotations

import re

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_comfy_loading import CASES, PLANTED_RANK, planted

UNET = "diffusion_model."
OPTIONS = {"rank": 2 * PLANTED_RANK, "dtype": "fp32"}
CLIP = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def states():
    return {name: planted(CASES[name].shapes) for name in ("flux", "sd15")}


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture
def extract(host, states, tmp_path):
    """What the node gives for a checkpoint and the same with a change of low rank."""

    def ask(name="flux", **question):
        paths = {side: str(tmp_path / f"{side}.safetensors") for side in ("base", "tuned")}
        for path, state in zip(paths.values(), states[name], strict=True):
            save_file(state, path)
        output = str(tmp_path / "lora.safetensors")
        case = CASES[name]
        sides = {**paths, "loader": case.loader, "te": case.te, "output": output}
        answer = host.ask("nodes_extract", {**sides, "options": OPTIONS, **question})
        if "error" not in answer:
            answer["lora"] = load_file(output)
        return answer

    return ask


def changes(states, name):
    """What was planted, in float64, by target, for the matrices that are layers."""
    base, tuned = states[name]
    found = {}
    for key, weight in base.items():
        if weight.ndim < 2 or not key.endswith(".weight") or "_embedding." in key:
            continue
        target = key.removesuffix(".weight").replace("model.diffusion_model.", UNET)
        target = target.replace(CLIP, "text_encoders.clip_l.transformer.")
        target = target if target.startswith(("text_encoders.", UNET)) else UNET + target
        found[target] = tuned[key].double() - weight.double()
    return found


def worst(lora, exact):
    """The largest relative error of a layer."""
    found = {key.removesuffix(".lora_A.weight") for key in lora if key.endswith(".lora_A.weight")}
    assert found == exact.keys()
    errors = []
    for target, change in exact.items():
        up, down = (lora[f"{target}.lora_{x}.weight"].double().flatten(1) for x in "BA")
        scale = float(lora[f"{target}.alpha"]) / len(down)
        flat = change.flatten(1)
        errors.append(float((scale * up @ down - flat).norm() / flat.norm()))
    return max(errors)


@pytest.mark.parametrize("how", ["pair", "difference"])
@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_what_was_planted_comes_out(extract, states, name, how):
    answer = extract(name, how=how)
    assert answer["same"], "the models are as they were"
    assert worst(answer["lora"], changes(states, name)) < 1e-5
    layers = len(changes(states, name))
    assert f"{layers} layers, rank {PLANTED_RANK}" in answer["report"]


def test_one_weight_at_a_time_is_read(extract):
    answer = extract()
    assert answer["read"] > 60
    assert answer["alive"] <= 12, "of both sides, for a few layers at once"


def test_differences_of_biases_are_kept_on_request(extract, states):
    base, tuned = states["flux"]
    lora = extract(options={**OPTIONS, "full_differences": True})["lora"]
    key = "double_blocks.0.img_attn.qkv.bias"
    kept = lora[f"{UNET}{key.removesuffix('.bias')}.diff_b"].double()
    assert torch.equal(kept, tuned[key].double() - base[key].double())


@pytest.mark.parametrize(
    ("how", "name", "words"),
    [
        (
            "alone",
            "flux",
            "`base` is not connected, and `tuned` is a whole model, not a difference",
        ),
        (
            "added",
            "flux",
            "`base` is not connected, and `tuned` is a whole model, not a difference",
        ),
        ("stray clip", "sd15", "`base_clip` is not connected: text encoders need both sides"),
        ("whole clip", "sd15", "`tuned_clip` is a whole text encoder, not a difference"),
    ],
)
def test_half_of_what_is_needed_is_refused(extract, how, name, words):
    found = extract(name, how=how)["error"]
    assert found.startswith("ArgumentError")
    assert words in found


def test_what_acts_beside_the_weights_is_named(extract, states):
    beside = "the tuned model has `bypass_lora` injected, which acts as its layers run and is in no"
    found = extract(how="bypass alone")["error"]
    assert found.startswith("MismatchError: no layer differs between the base model and the tuned")
    assert beside in found
    answer = extract(how="bypass too")
    assert worst(answer["lora"], changes(states, "flux")) < 1e-5, "the weights' change, and no more"
    first, second, *_ = answer["report"].splitlines()
    assert first.startswith("warning · extracted: ")
    assert second.startswith(f"! {beside}")


def test_a_model_of_another_packs_storage_is_refused_by_name(extract):
    found = extract(how="a quantised parameter")["error"]
    assert found.startswith(
        "QuantisedError: the tuned model holds 1 weight quantised (Params4bit, "
    )


def test_a_model_that_comfyui_gguf_loaded_is_refused_by_name(extract):
    """ComfyUI-GGUF, whose tensors have the shape of the weight and hold the bytes of its blocks."""
    found = extract(how="GGUF", pack=str(comfy_host.find_gguf_pack()))["error"]
    assert re.match(r"QuantisedError: the tuned model holds \d+ weights quantised \(Q8_0, ", found)
    assert "load the unquantised (fp16/bf16/fp32) model" in found
