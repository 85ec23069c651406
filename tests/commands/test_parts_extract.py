"""`lorakit extract --part`, of everything that it writes: finished, the bytes are those of one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import SD1, grid, trained
from commands import DIGITS, contents, lorakit_here, tiny_pair
from controlnets import UNETS, controlnet, filled, written
from divided import divided, resumed
from safetensors.torch import load_file, save_file

from lorakit.examples.digits.sample import load_model
from lorakit.lora_ops import record
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

BASE, TUNED = (DIGITS / f"{side}.safetensors" for side in ("base", "tuned"))
EXTRACT = ("extract", BASE, TUNED, "--device", "cpu")


@pytest.mark.parametrize("kind", list(FORMS))
def test_every_kind(kind, tmp_path: Path):
    asked = ("--kind", kind, "--rank", "2", "--include", "*attn*", "--include", "*conv*")
    report = divided(tmp_path, "out.safetensors", *EXTRACT, *asked)
    assert len(report["layers"]) > 10


ASKED = {
    "full": ("--rank", "3", "--full-differences"),
    "whole where smaller": ("--rank", "12", "--auto-full"),
    "error": ("--rank", "error=0.5", "--dtype", "fp32"),
    "size": ("--rank", "size=300kB"),
    "mean": ("--rank", "mean=3", "--relative"),
    "noise": ("--rank", "noise"),
    "exact": ("--rank", "4", "--exact", "--include", "*attn*"),
    "batches": ("--rank", "2", "--vram", "1GB"),
}


@pytest.mark.parametrize("words", ASKED.values(), ids=ASKED)
def test_every_rule(words, tmp_path: Path):
    report = divided(tmp_path, "out.safetensors", *EXTRACT, *words, order=(2, 3, 1))
    assert report["layers"]
    resumed(tmp_path, "out.safetensors", *EXTRACT, *words)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_more_parts_than_weights_and_only_one(count, tmp_path: Path):
    """Of nine parts some have nothing to do; they are parts nevertheless."""
    asked = ("extract", *tiny_pair(tmp_path), "--rank", "1", "--kind", "dora", "--dora", "comfy")
    divided(tmp_path, "out.safetensors", *asked, count=count)


def test_what_was_recorded_goes_with_it(tmp_path: Path):
    model = load_model(load_file(TUNED))
    with record(model) as recorder, torch.inference_mode():
        model(torch.randn(2, 3, 16, 16), torch.full((2,), 0.5), model.prompt(torch.arange(2)))
    recorder.save(tmp_path / "activations.safetensors")
    asked = (*EXTRACT, "--rank", "3", "--activations", tmp_path / "activations.safetensors")
    report = divided(tmp_path, "out.safetensors", *asked)
    assert report["weighted_error"] > 0


def test_of_a_quantised_base(tmp_path: Path):
    base = tmp_path / "base.safetensors"
    made = lorakit_here("requantise", BASE, "--to", "fp8_scaled", "-o", base)
    assert made.status == 0, made.err
    divided(tmp_path, "out.safetensors", "extract", base, TUNED, "--rank", "3")


def test_several_threads(tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        divided(tmp_path, "out.safetensors", *EXTRACT, "--rank", "3", count=2)
    finally:
        torch.set_num_threads(before)


def test_names_of_kohya(tmp_path: Path):
    base = grid(SD1, torch.float16)
    save_file(base, tmp_path / "base.safetensors")
    save_file(trained(base), tmp_path / "tuned.safetensors")
    asked = ("extract", tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    divided(tmp_path, "out.safetensors", *asked, "--format", "kohya", "--rank", "2")


def experts(seed: int, words: int) -> dict[str, torch.Tensor]:
    """A language model with stacks of experts, and a vocabulary that may have grown."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        **{f"model.layers.0.self_attn.{one}_proj.weight": (32, 32) for one in "qkvo"},
        "model.layers.0.mlp.gate.weight": (4, 32),
        "model.layers.0.mlp.experts.gate_up_proj": (4, 48, 32),
        "model.layers.0.mlp.experts.down_proj": (4, 32, 24),
        "model.layers.0.input_layernorm.weight": (32,),
        "model.embed_tokens.weight": (words, 32),
        "lm_head.weight": (words, 32),
    }
    return {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


@pytest.mark.parametrize("rule", ["3", "mean=4"])
@pytest.mark.parametrize("there", [False, True])
def test_the_folder_of_peft(rule, there, tmp_path: Path):
    for seed, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "qwen3_moe"}')
        save_file(experts(seed, 50 + seed), tmp_path / name / "model.safetensors")
    asked = ("extract", tmp_path / "base", tmp_path / "tuned")
    words = (*asked, "--format", "peft", "--rank", rule, "--full-differences")
    report = divided(tmp_path, "out", *words, count=4)
    assert "kept whole" in " ".join(report["notes"])
    kinds = {layer["target"].rpartition(".")[2] for layer in report["layers"]}
    assert len(report["layers"]) > 8, kinds
    if there:  # into the folder that is there
        rest = ("--resume", "--force")
        made = lorakit_here(*words[:-1], "-o", tmp_path / "apart" / "out", *rest)
        assert made.status == 0, made.err
        made = lorakit_here(*words, "-o", tmp_path / "apart" / "out", *rest)
        assert made.status == 0, made.err
        assert contents(tmp_path / "apart") == contents(tmp_path / "once")


@pytest.mark.parametrize("unet", ["sd1", "sdxl"])
def test_a_control_lora_and_its_controlnet(unet, tmp_path: Path):
    base = filled(UNETS[unet])
    paths = written(tmp_path, base, controlnet(base), prefix="control_model.")
    asked = ("--kind", "control-lora", "--rank", "4")
    divided(tmp_path / "control", "out.safetensors", "extract", *paths, *asked)
    made = tmp_path / "control" / "once" / "out.safetensors"
    divided(tmp_path / "baked", "net.safetensors", "bake", paths[0], made)
