"""Swap Parts in the real ComfyUI's process: what is B's to the bit, and what stays A's."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from graphs import UNET, weights
from keys.checkpoints import clip, prefixed
from safetensors.torch import load_file, save_file

PREFIX = "diffusion_model."
ENCODERS = {
    key: shape
    for name in "lg"
    for key, shape in prefixed(f"clip_{name}.transformer.", clip(32)).items()
}


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture(scope="module")
def states():
    """Numbers of both sides, all of them different."""
    found = {}
    for seed, letter in ((1, "A"), (2, "B")):
        for what, shapes in (("model", UNET), ("clip", ENCODERS)):
            made = weights(shapes, seed)
            found[f"{what}_{letter}"] = {key: one + 0.1 * seed for key, one in made.items()}
    return found


@pytest.fixture
def swap(host, states, tmp_path):
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")

    def ask(parts, sides="AB", clips="AB", **inputs):
        output = str(tmp_path / "weights.safetensors")
        question = {
            "models": [{"tensors": str(tmp_path / f"model_{one}.safetensors")} for one in sides],
            "clips": [str(tmp_path / f"clip_{one}.safetensors") for one in clips],
            "inputs": {"node": "swap_parts.SwapParts", "parts": parts, **inputs},
            "output": output,
        }
        answer = host.ask("nodes_merge", question)
        if "error" not in answer:
            found = load_file(output)
            for what, kind in (("model", f"exact {PREFIX}"), ("clip", "clip exact ")):
                held = {k: v for k, v in found.items() if k.startswith(kind)}
                answer[what] = {k.removeprefix(kind): v for k, v in held.items()}
        return answer

    return ask


def of_b(found, states, what):
    """The keys that are B's; all others must be A's, to the bit."""
    keys = set()
    for key, one in found[what].items():
        if torch.equal(one, states[f"{what}_B"][key]):
            keys.add(key)
        else:
            assert torch.equal(one, states[f"{what}_A"][key]), key
    assert found[what].keys() == states[f"{what}_A"].keys()
    return keys


@pytest.mark.parametrize(
    ("parts", "in_model", "in_clip"),
    [
        ("te2", lambda key: False, lambda key: key.startswith("clip_g")),
        ("te1", lambda key: False, lambda key: key.startswith("clip_l")),
        (
            "OUT",
            lambda key: key.startswith(("output_blocks", "out.")),
            lambda key: False,
        ),
        ("IN01, attn2", lambda key: key.startswith("input_blocks.1.") or ".attn2." in key, None),
        (
            "/input_blocks\\.[0,1]\\./\nte1",
            lambda key: key.startswith(("input_blocks.0.", "input_blocks.1.")),
            lambda key: key.startswith("clip_l"),
        ),
        ("*self_attn*", lambda key: False, lambda key: "self_attn" in key),
    ],
)
def test_parts_are_b_s_to_the_bit(swap, states, parts, in_model, in_clip):
    found = swap(parts)
    assert of_b(found, states, "model") == {key for key in states["model_A"] if in_model(key)}
    if in_clip is not None:
        assert of_b(found, states, "clip") == {key for key in states["clip_A"] if in_clip(key)}
    assert found["rest"] == ["VAE A"]
    assert found["read"] == 0
    assert found["report"].startswith("done · from B: ")


@pytest.mark.parametrize(
    ("parts", "model", "clip", "vae"),
    [
        ("unet", "B", "A", "A"),
        ("te", "A", "B", "A"),
        ("vae", "A", "A", "B"),
        ("te, vae", "A", "B", "B"),
        ("unet\nte\nvae", "B", "B", "B"),
    ],
)
def test_a_whole_part_is_handed_on(swap, states, parts, model, clip, vae):
    found = swap(parts)
    assert found["patches"] == 0
    assert found["handed on"] == [True, True]
    for what, letter in (("model", model), ("clip", clip)):
        own = states[f"{what}_{letter}"]
        assert all(torch.equal(one, own[key]) for key, one in found[what].items())
    assert found["rest"] == [f"VAE {vae}"]


def test_a_whole_part_and_a_piece(swap, states):
    found = swap("unet, te2, vae")
    assert of_b(found, states, "model") == states["model_A"].keys()
    assert of_b(found, states, "clip") == {key for key in ENCODERS if key.startswith("clip_g")}
    assert found["rest"] == ["VAE B"]
    weights = sum(key.startswith("clip_g") for key in ENCODERS)
    told = f"done · from B: unet as a whole, vae as a whole, te2 ({weights} weights)"
    assert found["report"] == told


def test_nothing_named_changes_nothing(swap, states):
    found = swap(" \n")
    assert of_b(found, states, "model") == set()
    assert "changes nothing: no part is named" in found["report"]


@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ("te2", {"clips": "A"}, "nothing arrives at `clip_B`, which `te2` needs; connect it"),
        ("te", {"clips": "A"}, "nothing arrives at `clip_B`, which `te` needs"),
        ("vae", {"vae_B": None}, "nothing arrives at `vae_B`, which `vae` needs"),
        ("OUT", {"sides": "A", "clips": ""}, "nothing arrives at `model_B`, which `OUT` needs"),
        ("unet, OUT", {"clips": ""}, "`OUT` is in what is B's as a whole"),
        ("te3", {}, "`te3` fits none of"),
        ("D00", {}, "no block `D00` in this file, which has"),
        ("attn9", {}, "`attn9` fits none of"),
    ],
)
def test_what_is_not_there_is_refused(swap, parts, given, words):
    assert words in swap(parts, **given)["error"]
