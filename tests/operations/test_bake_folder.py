"""Bake a folder as diffusers writes it: each component to its file, everything else copied."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once, randn, thin
from bits import assert_equal
from commands import contents
from oracles import change
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Ingredient, open_source
from lorakit.lora_ops.errors import ArgumentError, WriteError
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = {
    "conv_in.weight": (32, 4, 3, 3),
    f"{BLOCK}.attn1.to_q.weight": (32, 32),
    f"{BLOCK}.attn1.to_out.0.bias": (32,),
    "conv_norm_out.weight": (32,),
}
LAYER = "text_model.encoder.layers.0"
TEXT = {
    "text_model.embeddings.token_embedding.weight": (50, 768),
    f"{LAYER}.self_attn.q_proj.weight": (768, 768),
    f"{LAYER}.mlp.fc1.bias": (90,),
}
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "quant_conv.bias": (8,)}
CHANGED = {
    "unet": f"{BLOCK}.attn1.to_q",
    "text_encoder": f"{LAYER}.self_attn.q_proj",
}


def tensors(shapes, seed: int):
    return {
        key: randn(*shape, seed=seed + i).half() for i, (key, shape) in enumerate(shapes.items())
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pipeline: one component in a file, one in shards, one of pickles, configurations, old weights."""
    folder = tmp_path / "model"
    for part in (
        "unet",
        "text_encoder",
        "vae",
        "tokenizer",
        "scheduler",
        "safety_checker",
        ".cache",
    ):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for part in ("unet", "text_encoder", "vae", "scheduler"):
        (folder / part / "config.json").write_text(json.dumps({"of": part}))
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    (folder / ".cache" / "junk").write_text("junk")
    save_file({"w": torch.ones(3)}, folder / "safety_checker" / "model.safetensors")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(tensors(UNET, 0), unet, {"format": "pt"})
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"the same, older")
    text, names = tensors(TEXT, 10), {}
    for number, (key, tensor) in enumerate(text.items(), start=1):
        names[key] = f"model-{number:05}-of-00003.safetensors"
        save_file({key: tensor}, folder / "text_encoder" / names[key])
    index = folder / "text_encoder" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    torch.save(tensors(VAE, 20), folder / "vae" / "diffusion_pytorch_model.bin")
    lora = thin(f"lora_unet_{CHANGED['unet'].replace('.', '_')}", (32, 32))
    lora |= thin(f"lora_te_{CHANGED['text_encoder'].replace('.', '_')}", (768, 768), seed=5)
    kohya = {"lora_A": "lora_down", "lora_B": "lora_up"}
    for old, new in kohya.items():
        lora = {key.replace(old, new): tensor for key, tensor in lora.items()}
    save_file(lora, tmp_path / "lora.safetensors")
    return folder


def run(model: Path, output: Path, strength: float = 0.7, **options):
    lora = model.with_name("lora.safetensors")
    with open_source(model) as one, open_source(lora) as other:
        plan = plan_bake_file(one, [Ingredient(other, strength)], output=output, **options)
        return bake_file(plan, one, output, version="0.0")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with open_source(folder) as source:
        return {key: source.tensor(key) for key in source.keys()}  # noqa: SIM118


def test_each_component_goes_to_its_file_and_the_rest_is_copied(model, tmp_path):
    output = tmp_path / "baked"
    before = contents(tmp_path)
    report = run(model, output)
    found, base = weights(output), weights(model)
    lora = load_file(tmp_path / "lora.safetensors")
    deltas = {
        f"{part}.{name}.weight": change(
            lora[
                f"lora_{'te' if part != 'unet' else 'unet'}_{name.replace('.', '_')}.lora_up.weight"
            ],
            lora[
                f"lora_{'te' if part != 'unet' else 'unet'}_{name.replace('.', '_')}.lora_down.weight"
            ],
            None,
        )
        for part, name in CHANGED.items()
    }
    assert list(found) == list(base)
    for key, tensor in base.items():
        if key in deltas:
            assert is_rounded_once(found[key], tensor.double() + 0.7 * deltas[key])
        else:
            assert_equal(found[key], tensor)
    assert len(report.layers) == 2
    made = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert made == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        *(f"text_encoder/model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)),
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/config.json",
        "tokenizer/merges.txt",
        "safety_checker/model.safetensors",
    }
    for name in made:
        if not name.startswith(("unet/diff", "text_encoder/model", "vae/diff")):
            assert (output / name).read_bytes() == (model / name).read_bytes()
    assert "1 file of other weights of the same components left out" in " ".join(report.notes)
    assert report.size == sum((output / name).stat().st_size for name in made)
    assert contents(tmp_path).items() >= before.items(), "an input was written into"
    with safe_open(output / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata()["lorakit.operation"] == "bake"
        assert set(file.keys()) == set(UNET)


def test_a_component_alone_is_a_folder_too(model, tmp_path):
    lora = {
        key: tensor
        for key, tensor in load_file(tmp_path / "lora.safetensors").items()
        if key.startswith("lora_unet")
    }
    save_file(lora, model / "lora.safetensors")
    run(model / "unet", tmp_path / "unet")
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_unbake_takes_it_out_of_a_folder(model, tmp_path):
    run(model, tmp_path / "baked")
    run(tmp_path / "baked", tmp_path / "back", sign=-1)
    for key, tensor in weights(tmp_path / "back").items():
        assert torch.allclose(tensor.float(), weights(model)[key].float(), atol=4e-3)


def test_an_empty_folder_is_filled_and_any_other_is_left(model, tmp_path):
    output = tmp_path / "there"
    output.mkdir()
    run(model, output)
    before = contents(output)
    for force in (False, True):
        with pytest.raises(ArgumentError, match="exists already; choose the name of a new folder"):
            run(model, output, force=force)
    assert contents(output) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("baked.safetensors", "is a folder, whose parts keep to their own files"),
        ("model/baked", "lies in the folder that it is made from"),
        ("none/baked", "does not exist"),
        ("lora.safetensors", "is a folder"),
    ],
)
def test_a_bad_output_is_refused(model, tmp_path, name, words):
    before = contents(tmp_path)
    with pytest.raises(ArgumentError, match=words):
        run(model, tmp_path / name)
    assert contents(tmp_path) == before


def test_a_failure_leaves_nothing(model, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(Exception, match="do not fit float16"):
        run(model, tmp_path / "baked", strength=1e7)
    assert contents(tmp_path) == before


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(model, tmp_path):
    output = tmp_path / "baked"
    lora = tmp_path / "lora.safetensors"

    def appear(*_: object) -> None:
        output.mkdir(exist_ok=True)
        (output / "mine").write_text("mine")

    with open_source(model) as one, open_source(lora) as other:
        plan = plan_bake_file(one, [Ingredient(other, 0.7)], output=output)
        with pytest.raises(WriteError, match="appeared during the work"):
            bake_file(plan, one, output, progress=appear)
    assert contents(output) == {"mine": b"mine"}
    assert not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from lorakit.lora_ops import Ingredient, bake_file, open_source, plan_bake_file
model, lora, output = map(Path, sys.argv[1:])
with open_source(model) as one, open_source(lora) as other:
    plan = plan_bake_file(one, [Ingredient(other, 0.7)], output=output)
    kill = lambda done, total, _: done == total and os.kill(os.getpid(), signal.SIGKILL)
    bake_file(plan, one, output, progress=kill)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["baked", "baked.safetensors"])
def test_a_killed_process_leaves_nothing_under_the_name(model, tmp_path, name):
    whole = model if name == "baked" else model / "unet" / "diffusion_pytorch_model.safetensors"
    lora = tmp_path / "lora.safetensors"
    if whole.is_file():
        only = {k: t for k, t in load_file(lora).items() if k.startswith("lora_unet")}
        save_file(only, lora)
    command = [sys.executable, "-c", KILLED, whole, lora, tmp_path / name]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / name).exists()
