"""Control-LoRAs on the command line: extract, verify, info, lint, resize, bake, and what does not go with one."""

from __future__ import annotations

import json
import math

import pytest
import torch
from commands import lorakit_here
from controlnets import SHARED, UNETS, control_lora, controlnet, filled, own_shapes, written
from keys.checkpoints import sd1_unet, sd2_unet, sdxl_unet, source
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import describe, lint, open_source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A UNet, a ControlNet of it, and its Control-LoRA."""
    folder = tmp_path_factory.mktemp("control")
    base = filled(UNETS["sdxl"])
    paths = written(folder, base, controlnet(base), prefix="control_model.")
    run = lorakit_here(
        "extract", *paths, "-o", folder / "control.safetensors", "--kind", "control-lora", "-r", 4
    )
    assert (run.status, run.err) == (0, "")
    assert "tensors of the ControlNet's own parts are whole" in run.out
    return *paths, folder / "control.safetensors"


def test_a_dry_run_says_what_will_be_written(made, tmp_path):
    base, net, control = made
    words = (
        "extract",
        base,
        net,
        "-o",
        tmp_path / "out.safetensors",
        "--kind",
        "control-lora",
        "-r",
        4,
    )
    run = lorakit_here(*words, "--dry-run", "--json", "-")
    told = json.loads(run.out)
    assert (told["kind"], told["rank"]) == ("control-lora", "4")
    assert control.stat().st_size * 0.8 < told["size_at_most"] < control.stat().st_size
    assert not (tmp_path / "out.safetensors").exists()


def test_it_is_what_the_function_writes(made, tmp_path):
    base, net, control = made
    control_lora(base, net, tmp_path / "own.safetensors", "4")
    own, other = load_file(tmp_path / "own.safetensors"), load_file(control)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_all_that_reads_one(made, tmp_path):
    base, net, control = made
    verified = json.loads(lorakit_here("verify", base, net, control, "--json", "-").out)
    told = json.loads(lorakit_here("info", control, "--json", "-").out)
    assert verified["error"] == pytest.approx(float(told["metadata"]["lorakit.error"]), rel=1e-5)
    assert told["kind"] == "ControlNet (control-LoRA)"
    assert told["format"] == "control-lora"
    assert "Stable Diffusion XL" in told["possible"]
    assert told["ranks"] == {"4": sum(key.endswith(".up") for key in load_file(control))}
    assert list(told["components"]) == ["diffusion model"]
    small, half = tmp_path / "small.safetensors", tmp_path / "half.safetensors"
    assert lorakit_here("resize", control, "-o", small, "-r", 2).status == 0
    assert "cosine 0." in lorakit_here("compare", control, small).out
    words = ("convert", control, "-o", half, "--format", "control-lora", "--dtype", "fp16")
    assert lorakit_here(*words).status == 0
    back = tmp_path / "back.safetensors"
    run = lorakit_here("bake", base, small, "-o", back)
    assert (run.status, run.err) == (0, "")
    prefix = "control_model."
    assert load_file(back).keys() == {key.removeprefix(prefix) for key in load_file(net)}
    assert (
        "from base.safetensors, small.safetensors"
        in lorakit_here("bake", base, small, "-o", tmp_path / "again.safetensors", "--dry-run").out
    )


@pytest.mark.parametrize(
    ("unet", "title"),
    [
        (sd1_unet, "Stable Diffusion 1"),
        (sd2_unet, "Stable Diffusion 2"),
        (sdxl_unet, "Stable Diffusion XL"),
    ],
)
def test_info_tells_the_model_of_published_ones(unet, title):
    """By names and widths of Stability's files, of rank 128."""
    shapes = unet()
    held = {"lora_controlnet": (0,), **own_shapes(shapes)}
    for key, shape in shapes.items():
        name = key.removesuffix(".weight")
        if not key.startswith(SHARED) or len(shape) < 2:
            held |= {key: shape} if key.startswith(SHARED) else {}
            continue
        rank = min(128, shape[0], math.prod(shape[1:]))
        held[f"{name}.up"] = (shape[0], rank, *(1 for _ in shape[2:]))
        held[f"{name}.down"] = (rank, *shape[1:])
    found = describe(source(held))
    assert (found.architecture, found.format) == (title, "control-lora")
    assert found.components.keys() == {"diffusion model"}
    if title.endswith("XL"):
        assert found.bytes == pytest.approx(395.6e6, rel=1e-3)


def test_lint_knows_who_loads_it(made, tmp_path):
    """As ComfyUI and Forge read it whole; diffusers leaves biases beside factors; sd-scripts has no loader."""
    with open_source(made[2]) as source:
        found = lint(source)
    assert {one.program: one.count("loads") for one in found.verdicts} == {
        **dict.fromkeys(("comfy", "forge", "diffusers"), len(found.verdicts[0].reads)),
        "kohya": 0,
    }
    unread = {one.program: set(one.left) for one in found.verdicts}
    held = load_file(made[2])
    biases = {
        f"{key.removesuffix('.up')}.bias" for key in held if key.endswith(".up")
    } & held.keys()
    assert unread["comfy"] == unread["forge"] == set()
    assert unread["diffusers"] == biases
    assert [one.code for one in found.findings if one.program is None] == []
    assert [one.code for one in found.findings if one.program == "diffusers"] == ["key-unread"]


@pytest.mark.parametrize(
    ("change", "program", "code", "told"),
    [
        (
            lambda held: held.pop("input_hint_block.0.weight"),
            "comfy",
            "refused",
            "first layer of the hint",
        ),
        (lambda held: held.pop("zero_convs.0.0.weight"), "comfy", "refused", "zero convolution"),
        (lambda held: held.pop("time_embed.0.down"), None, "incomplete", "has no down factor"),
        (lambda held: held.update(note=torch.ones(1)), None, "keys-left-over", "1 key of no layer"),
        (lambda held: held["time_embed.0.up"].fill_(torch.nan), None, "not-finite", ""),
    ],
)
def test_lint_finds_what_is_broken(made, tmp_path, change, program, code, told):
    held = load_file(made[2])
    change(held)
    save_file(held, tmp_path / "broken.safetensors")
    with open_source(tmp_path / "broken.safetensors") as source:
        found = {one.code: one.message for one in lint(source).of(program)}
    assert told in found[code]


BESIDE = [
    ("--format", "kohya"),
    ("--components", "unet"),
    ("--full-differences",),
    ("--allow-partial",),
    ("--norm", "spectral"),
    ("--embeddings", "whole"),
    ("--dora", "paper"),
]


@pytest.mark.parametrize("words", BESIDE)
def test_what_does_not_go_with_one_is_said(made, tmp_path, words):
    base, net, _ = made
    output = tmp_path / "out.safetensors"
    run = lorakit_here("extract", base, net, "-o", output, "--kind", "control-lora", *words)
    assert (run.status, run.out) == (2, "")
    assert f"Error: {words[0]} does not go with a Control-LoRA; leave it out" in run.err
    assert not output.exists()


def test_a_budget_and_a_second_controlnet_are_refused(made, tmp_path):
    base, net, _ = made
    asked = ("extract", base, net, "--kind", "control-lora")
    run = lorakit_here(*asked, "-o", tmp_path / "out.safetensors", "--rank", "size=1MB")
    assert (run.status, run.out) == (2, "")
    assert "`size=` is a budget across layers, which this operation does not take" in run.err
    run = lorakit_here(*asked, net, "-o", tmp_path / "out")
    assert "Error: a second ControlNet does not go with a Control-LoRA" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("loras", "words", "what"),
    [
        (("{}:0.5",), (), "a strength"),
        (("{}", "{}"), (), "a second LoRA"),
        (("{}",), ("--to", "fp8_scaled"), "--to"),
        (("{}",), ("--where", "*=0.5"), "--where"),
        (("{}",), ("--rounding", "stochastic"), "--rounding"),
    ],
)
def test_bake_takes_one_alone_and_whole(made, tmp_path, loras, words, what):
    base, _, control = made
    output = tmp_path / "out.safetensors"
    run = lorakit_here("bake", base, *(one.format(control) for one in loras), "-o", output, *words)
    assert (run.status, run.out) == (2, "")
    assert f"Error: {what} does not go with a Control-LoRA" in run.err
    assert not output.exists()
