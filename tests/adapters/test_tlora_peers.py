"""T-LoRA, which LyCORIS 4 trains: named everywhere, read nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors.torch import save_file
from torch import nn

from lorakit.lora_ops import describe, open_source

lycoris = pytest.importorskip(
    "lycoris.modules.tlora", reason="lycoris-lora 4 is not installed: pip install lycoris-lora"
)
NAME = "T-LoRA of LyCORIS 4"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One layer as LyCORIS saves it: its start, which is taken off, is not in the file."""
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    layer = lycoris.TLoraModule(name, nn.Linear(8, 8), lora_dim=2)
    tensors = {f"{name}.{key}": one.contiguous() for key, one in layer.custom_state_dict().items()}
    path = tmp_path / "tlora.safetensors"
    save_file(tensors, path)
    return path


def test_info_names_it(file: Path) -> None:
    with open_source(file) as source:
        assert describe(source).kind == f"adapter: {NAME}"


def test_every_other_command_refuses_it_by_name(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    block = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    save_file({f"{block}.weight": torch.ones(8, 8)}, other)
    out = tmp_path / "out.safetensors"
    for words in (
        ("resize", file, "-o", out, "--rank", "1"),
        ("scale", file, "-o", out, "--strength", "0.5"),
        ("convert", file, "-o", out, "--format", "comfy"),
        ("add", file, file, "-o", out),
        ("compare", file, file),
        ("bake", other, file, "-o", out),
        ("extract", other, file, "-o", out, "--rank", "1"),
        ("bake", file, file, "-o", out),
    ):
        told = lorakit_here(*words)
        assert told.status == 1, words
        assert NAME in told.err, (words, told.err)
        assert not out.exists()
