"""GGUF files stand for what ComfyUI-GGUF makes of them: names, shapes, and numbers in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy_host
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorakit.lora_ops.files import open_source

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

T5 = (
    *("token_embd.weight", "enc.output_norm.weight", "enc.blk.0.attn_rel_b.weight"),
    *(
        f"enc.blk.1.{part}.weight"
        for part in (
            *("attn_q", "attn_k", "attn_v", "attn_o", "attn_norm"),
            *("ffn_up", "ffn_gate", "ffn_down", "ffn_norm"),
        )
    ),
)
LLAMA = (
    *("token_embd.weight", "output_norm.weight", "output.weight"),
    *(
        f"blk.11.{part}"
        for part in (
            *("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"),
            *("attn_norm.weight", "attn_q.bias", "attn_k.bias", "attn_q_norm.weight"),
            *("attn_k_norm.weight", "ffn_up.weight", "ffn_gate.weight", "ffn_down.weight"),
            "ffn_norm.weight",
        )
    ),
)
FLUX = ("double_blocks.0.img_attn.qkv.weight", "img_in.weight", "final_layer.linear.bias")


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


def tensors(names: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Vectors in float32, matrices in several types."""
    kinds = gguf.GGMLQuantizationType
    for number, name in enumerate(names):
        draw = np.random.default_rng(number).normal(size=(64, 512)).astype(np.float32)
        if "norm" in name or name.endswith("bias"):
            yield name, draw[:, 0].copy(), kinds.F32
        elif number % 4 == 3:
            yield name, draw.astype(np.float16), kinds.F16
        else:
            kind = (kinds.Q8_0, kinds.Q5_1, kinds.Q4_0)[number % 3]
            yield name, gguf.quants.quantize(draw, kind), kind


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("flux", FLUX),
        ("flux", tuple(f"model.diffusion_model.{name}" for name in FLUX)),
        ("t5", T5),
        ("t5encoder", T5),
        ("llama", LLAMA),
        ("qwen3", LLAMA),
    ],
)
def test_a_file_is_what_the_pack_reads(
    host: comfy_host.Host, tmp_path: Path, arch: str, names: tuple[str, ...]
) -> None:
    pack = comfy_host.find_gguf_pack()
    path, truth = tmp_path / "a.gguf", tmp_path / "truth.safetensors"
    writer = gguf.GGUFWriter(path, arch)
    if arch == "llama":
        writer.add_head_count(32)
        writer.add_head_count_kv(8)
    for name, array, kind in tensors(names):
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    question = {"file": str(path), "truth": str(truth), "pack": str(pack), "text": arch != "flux"}
    paths = [str(Path(gguf.__file__).parents[1])]
    told = host.ask("gguf_pack", {**question, "paths": paths})
    prefix = "model.diffusion_model." if names[0].startswith("model.") else ""
    with open_source(path) as source:
        assert {key: list(source.shape(key)) for key in source.keys()} == {  # noqa: SIM118
            prefix + key: shape for key, shape in told.items()
        }
        for key, numbers in load_file(truth).items():
            assert torch.equal(source.tensor(prefix + key).float(), numbers), key
