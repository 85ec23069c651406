"""Merge Models: what is connected to it, and what it refuses, in the real ComfyUI's process."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from graphs import UNET, weights
from keys.checkpoints import clip, prefixed
from safetensors.torch import load_file, save_file
from tiny_flux import distance, numbers

CLIP = prefixed("clip_l.transformer.", clip(32))
PREFIX = "diffusion_model."


def model(shapes, seed=0):
    """Numbers for all of them, none of them 0."""
    made = weights(shapes, seed)
    generator = torch.Generator().manual_seed(seed)
    for key, one in made.items():
        if one.ndim == 1:
            made[key] = one + torch.randn(one.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models of two architectures, one of them with a wider first layer, and text encoders."""
    folder = tmp_path_factory.mktemp("models")
    wide = dict(UNET)
    (first,) = (key for key in UNET if key == "input_blocks.0.0.weight")
    wide[first] = (UNET[first][0], 9, *UNET[first][2:])
    states = {
        "flux": numbers(1),
        "sd": model(UNET, 1),
        "sd2": model(UNET, 2),
        "sd3": model(UNET, 3),
        "inpainting": model(wide, 4),
        "wider": {k: torch.cat([v, v]) if k == "out.2.bias" else v for k, v in model(UNET).items()},
        "less": {k: v for k, v in model(UNET, 2).items() if "output_blocks" not in k},
        "one more": {**model(UNET, 2), "more.weight": torch.ones(3)},
        **{f"clip{seed}": model(CLIP, seed) for seed in (1, 2, 3)},
    }
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in states}


@pytest.fixture
def merge(host, files, tmp_path):
    def ask(models=(), clips=(), **question):
        output = str(tmp_path / "weights.safetensors")
        question |= {
            "models": [one and {"tensors": files[one]} for one in models],
            "clips": [one and files[one] for one in clips],
            "output": output,
        }
        answer = host.ask("nodes_merge", question)
        if "error" not in answer:
            found = load_file(output)
            for kind in ("exact", "clip exact"):
                held = {k: v for k, v in found.items() if k.startswith(f"{kind} ")}
                answer[kind] = {
                    k.removeprefix(f"{kind} ").removeprefix(PREFIX): v.double()
                    for k, v in held.items()
                }
        return answer

    return ask


def truth(files, name):
    return {key: one.double() for key, one in load_file(files[name]).items()}


def mixed(files, *shares):
    """Of files by name, each with its share."""
    sides = [(truth(files, name), share) for name, share in shares]
    return {key: sum(share * side[key] for side, share in sides) for key in sides[0][0]}


def test_models_and_text_encoders(merge, files):
    found = merge(["sd", "sd2"], ["clip1", "clip2"], inputs={"share_of_B": 0.3})
    assert distance(found["exact"], mixed(files, ("sd", 0.7), ("sd2", 0.3))) < 1e-6
    assert distance(found["clip exact"], mixed(files, ("clip1", 0.7), ("clip2", 0.3))) < 1e-6
    weights = len(found["exact"]) + len(found["clip exact"])
    assert f"weighted_sum of 2 models, in {weights} weights" in found["report"]


def test_text_encoders_alone(merge, files):
    found = merge(
        [], ["clip1", "clip2", "clip3"], inputs={"share_of_B": 0.3, "other_shares": "0.5"}
    )
    exact = mixed(files, ("clip1", 0.2), ("clip2", 0.3), ("clip3", 0.5))
    assert distance(found["clip exact"], exact) < 1e-6
    assert found["exact"] == {}
    assert "share of B 0.3, C 0.5" in found["report"]


def test_blocks_reach_the_text_encoders(merge, files):
    found = merge(
        ["sd", "sd2"], ["clip1", "clip2"], inputs={"share_of_B": 1.0, "blocks": "BASE=0.25,IN=0"}
    )
    assert distance(found["clip exact"], mixed(files, ("clip1", 0.75), ("clip2", 0.25))) < 1e-6
    exact = truth(files, "sd2") | {
        key: one
        for key, one in truth(files, "sd").items()
        if key.startswith(("input_blocks", "time_embed"))
    }
    assert distance(found["exact"], exact) == 0


def test_other_shares_that_are_not_given_are_as_that_of_b(merge, files):
    found = merge(["sd", "sd2", "sd3"], inputs={"share_of_B": 0.3})
    assert distance(found["exact"], mixed(files, ("sd", 0.4), ("sd2", 0.3), ("sd3", 0.3))) < 1e-6


def test_an_inpainting_model_takes_what_others_learned(merge, files):
    """A + (B - C) with four channels into nine: the other five stay A's."""
    inputs = {"method": "add_difference", "share_of_B": 1.0}
    found = merge(["inpainting", "sd2", "sd3"], inputs=inputs)["exact"]
    key = "input_blocks.0.0.weight"
    sides = [truth(files, name)[key] for name in ("inpainting", "sd2", "sd3")]
    exact = sides[0].clone()
    exact[:, :4] += sides[1] - sides[2]
    assert distance({key: found[key]}, {key: exact}) < 1e-6


def test_a_narrower_first_model_is_refused(merge):
    told = merge(["sd2", "inpainting"])["error"]
    assert "an inpainting model has more; give the wider one as base" in told


def test_what_only_one_has_is_told(merge, files):
    found = merge(["one more", "sd"])
    assert "1 weight only in A, the first `diffusion_model.more.weight`: kept" in found["report"]
    assert torch.equal(found["exact"]["more.weight"], torch.ones(3).double())
    told = merge(["sd", "one more"])["report"]
    assert "1 weight only in B, the first `diffusion_model.more.weight`: left out" in told


@pytest.mark.parametrize(
    ("models", "clips", "words"),
    [
        (["sd", "flux"], [], "A is Stable Diffusion 1 and B is Flux.1: only models of one"),
        (["sd", "less"], [], "B has "),
        (["sd", "wider"], [], "they are models of different kinds"),
        ([], ["clip1"], "nothing arrives at `clip_B`; connect two or more"),
        ([], [], "nothing arrives at `model_A`; connect two or more"),
        (["sd"], [], "nothing arrives at `model_B`; connect two or more"),
        ([None, "sd"], [], "nothing arrives at `model_A`, and something at `model_B`"),
        (["sd", None, "sd2"], [], "nothing arrives at `model_B`, and something at `model_C`"),
        (
            ["sd", "sd2", "sd3"],
            ["clip1", "clip2"],
            "nothing arrives at `clip_C`: connect as many CLIPs as models, or none of them",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(merge, models, clips, words):
    assert words in merge(models, clips)["error"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"method": "slerp"}, "method `slerp` takes 2 models, not 3"),
        ({"method": "slerp_"}, "no such method; use one of weighted_sum"),
        ({"method": "karcher", "share_of_B": 0.6}, "shares from 0 to 1 that add up to no more"),
        ({"method": "karcher", "share_of_B": -0.1}, "shares from 0 to 1 that add up to no more"),
        ({"method": "geometric_median", "blocks": "IN=3"}, "shares from 0 to 1"),
        ({"other_shares": "0.1, 0.2"}, "2 shares for 1 models after B"),
        ({"other_shares": "x"}, "share `x` is no finite number"),
        ({"blocks": "D00=1"}, "no block `D00` in this file, which has"),
        ({"where": "nothing=1"}, "`nothing` fits none of"),
        ({"share_of_B": float("nan")}, "`share_of_B` is nan; give a finite number"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(merge, inputs, words):
    assert words in merge(["sd", "sd2", "sd3"], inputs=inputs)["error"]


@pytest.mark.parametrize("method", ["add_difference", "model_stock"])
def test_too_few_models_for_a_method_are_refused(merge, method):
    told = merge(["sd", "sd2"], inputs={"method": method})["error"]
    assert f"method `{method}` takes 2" in told
    assert "beside the base, not 1" in told
