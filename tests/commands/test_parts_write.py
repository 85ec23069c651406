"""`--part` of the commands that write checkpoints: finished, the bytes are those of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import DIGITS, lorakit_here
from divided import divided, resumed
from keys import checkpoints
from namings import both
from safetensors.torch import load_file, save_file
from tiny_flux import numbers

from lorakit.lora_ops.models.architectures import architecture_named

BASE, TUNED, TUNED2 = (DIGITS / f"{one}.safetensors" for one in ("base", "tuned", "tuned2"))
LORA = DIGITS / "lora.safetensors"

MERGES = {
    "sum": (f"{BASE}:0.3", f"{TUNED}:0.7"),
    "ties": ("--base", BASE, TUNED, f"{TUNED2}:0.6", "-m", "ties,density=0.3"),
    "random masks": ("--base", BASE, TUNED, TUNED2, "-m", "dare_ties", "--seed", "7"),
    "line": ("A + 0.35*(B - C)", f"A={TUNED}", f"B={TUNED2}", f"C={BASE}"),
    "all first": ("--base", BASE, TUNED, "-m", "cosine_a"),
    "with a LoRA": ("--base", BASE, f"{LORA}:0.5"),
    "rounding": (BASE, TUNED, "--dtype", "bf16", "--rounding", "stochastic", "--seed", "3"),
    "stored": (BASE, TUNED, "--to", "fp8_scaled"),
}


@pytest.mark.parametrize("words", MERGES.values(), ids=MERGES)
def test_merges(words, tmp_path: Path):
    divided(tmp_path, "out.safetensors", "merge", *words, order=(2, 1, 3))
    resumed(tmp_path, "out.safetensors", "merge", *words)


@pytest.mark.parametrize("name", ["out.safetensors.index.json"])
def test_shards(name, tmp_path: Path):
    words = ("merge", *MERGES["ties"], "--shard-size", "300kB")
    divided(tmp_path, name, *words, count=5)
    assert len(list((tmp_path / "apart").glob("out-*.safetensors"))) > 2
    resumed(tmp_path, name, *words)


@pytest.mark.parametrize("rule", ["3", "size=200kB"])
def test_the_lora_of_a_merge(rule, tmp_path: Path):
    words = ("merge", "--base", BASE, TUNED, TUNED2, "-m", "ties", "--rank", rule)
    divided(tmp_path, "out.safetensors", *words, "--full-differences")


def test_a_folder_of_diffusers(tmp_path: Path):
    for seed, name in enumerate("AB"):
        _, foreign = both(architecture_named("flux"), seed, torch.bfloat16)
        (tmp_path / name / "transformer").mkdir(parents=True)
        told = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]}
        (tmp_path / name / "model_index.json").write_text(json.dumps(told))
        (tmp_path / name / "transformer" / "config.json").write_text("{}")
        tensors = {k.removeprefix("transformer."): one for k, one in foreign.items()}
        weights = "transformer/diffusion_pytorch_model.safetensors"
        save_file(tensors, tmp_path / name / weights)
    words = ("merge", tmp_path / "A", f"{tmp_path / 'B'}:0.4")
    divided(tmp_path, "out", *words)
    assert (tmp_path / "apart" / "out" / "transformer" / "config.json").exists()
    resumed(tmp_path, "out", *words)


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    tensors = {f"model.diffusion_model.{k}": v for k, v in numbers(1, torch.bfloat16).items()}
    tensors["vae.decoder.mid.attn_1.q.weight"] = torch.ones(64, 64, 1, 1)
    save_file(tensors, tmp_path / "model.safetensors", {"modelspec.title": "A model"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("nf4", "out.safetensors"),
        ("fp8_scaled", "out.safetensors"),
        ("int8", "out.safetensors"),
        ("q8_0", "out.gguf"),
    ],
)
def test_storage(to, name, flux: Path, tmp_path: Path):
    divided(tmp_path, name, "requantise", flux, "--to", to, count=4)
    resumed(tmp_path, name, "requantise", flux, "--to", to)


def test_a_merge_into_a_gguf_file(flux: Path, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file({k: v * 0.9 for k, v in load_file(flux).items()}, other)
    divided(tmp_path, "out.gguf", "merge", flux, other, "--to", "q8_0")


@pytest.mark.parametrize(
    "words",
    [
        ("bake", BASE, f"{LORA}:0.8"),
        ("bake", BASE, LORA, "--to", "fp8_scaled", "--whole", "*attn*"),
        ("bake", BASE, LORA, "--method", "ties"),
        ("unbake", TUNED, LORA, "--allow-other"),
    ],
)
def test_bake(words, tmp_path: Path):
    divided(tmp_path, "out.safetensors", *words)
    resumed(tmp_path, "out.safetensors", *words)


def test_a_checkpoint_that_is_stored_with_scales_stays_so(tmp_path: Path):
    """Some of its tensors are copied, as they are; others are several tensors each."""
    made = lorakit_here("requantise", BASE, "--to", "fp8_scaled", "-o", tmp_path / "b.safetensors")
    assert made.status == 0, made.err
    divided(tmp_path, "out.safetensors", "bake", tmp_path / "b.safetensors", LORA)


def test_text_encoders_and_a_vae_are_copied_by_their_parts(tmp_path: Path):
    draw = torch.Generator().manual_seed(0)
    shapes = checkpoints.unet(768, [1, 0], width=16, mults=[1, 2])
    tensors = {
        f"model.diffusion_model.{k}": torch.randn(s, generator=draw) for k, s in shapes.items()
    }
    tensors["first_stage_model.decoder.conv_in.weight"] = torch.randn(8, 4, 3, 3, generator=draw)
    tensors["step"] = torch.tensor(3)
    tensors["flag"] = torch.tensor([True])
    for name, size in (("a", 1.0), ("b", 0.5)):
        save_file(
            {k: (v * size).to(v.dtype) for k, v in tensors.items()},
            tmp_path / f"{name}.safetensors",
        )
    divided(
        tmp_path, "out.safetensors", "merge", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    )
