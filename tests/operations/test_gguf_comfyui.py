"""ComfyUI-GGUF reads what is written as it is read here: names, shapes of kernels, and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy_host
import pytest
import torch
from keys import checkpoints
from namings import foreign_of
from safetensors.torch import load_file, save_file
from tiny_flux import SHAPES, numbers

from lorakit.lora_ops import open_source
from lorakit.lora_ops.models.architectures import architecture_named
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

UNET = checkpoints.unet(2048, [0, 1], blocks=1, width=320, mults=[1, 1], linear=True, label=64)


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    comfy_host.find_gguf_pack()
    with comfy_host.started() as host:
        yield host


@pytest.mark.parametrize("shapes", [SHAPES, UNET, checkpoints.wan()], ids=["flux", "sdxl", "wan"])
@pytest.mark.parametrize("to", ["q8_0", "q4_0", "bf16"])
def test_the_pack_reads_it(
    host: comfy_host.Host, tmp_path: Path, shapes: dict[str, tuple[int, ...]], to: str
) -> None:
    pack = comfy_host.find_gguf_pack()
    prefix = "model.diffusion_model."
    tensors = {prefix + key: torch.randn(shape).bfloat16() for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    path, truth = tmp_path / "a.gguf", tmp_path / "truth.safetensors"
    with open_source(tmp_path / "model.safetensors") as source:
        requantise_file(plan_requantise_file(source, to, output=path), path)
    question = {"file": str(path), "truth": str(truth), "pack": str(pack), "text": False}
    paths = [str(Path(gguf.__file__).parents[1])]
    told = host.ask("gguf_pack", {**question, "paths": paths})
    assert told == {key: list(shape) for key, shape in shapes.items()}
    with open_source(path) as source:
        for key, numbers in load_file(truth).items():
            assert torch.equal(source.tensor(key).float(), numbers), key


@pytest.mark.parametrize("to", ["bf16", "q8_0"])
def test_a_checkpoint_of_diffusers_is_the_same_model_there(
    host: comfy_host.Host, tmp_path: Path, to: str
) -> None:
    pack, paths = comfy_host.find_gguf_pack(), [str(Path(gguf.__file__).parents[1])]
    native = {
        key.replace("_norm.scale", "_norm.weight"): tensor * 0.1
        for key, tensor in numbers(3, torch.bfloat16).items()
    }
    both = {"native": native, "theirs": foreign_of(architecture_named("flux"), native)}
    outputs: list[torch.Tensor] = []
    for name, tensors in both.items():
        file, path = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.gguf"
        save_file(tensors, file)
        with open_source(file) as source:
            requantise_file(plan_requantise_file(source, to, output=path), path)
        output = tmp_path / f"{name}-output.safetensors"
        question = {"file": str(path), "output": str(output), "pack": str(pack), "paths": paths}
        assert host.ask("gguf_model", question) == []
        outputs.append(load_file(output)["output"])
    assert outputs[0].std() > 0.01
    assert torch.equal(*outputs)
