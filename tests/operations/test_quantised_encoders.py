"""Text encoders as files of their own, in GGUF under llama.cpp's names and in scaled float8: like any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_equal
from checkpoints import planted
from commands import lorakit_here
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import DictSource, extract, open_source, save_adapter
from lorakit.lora_ops.inspect.info import describe

WIDTH = 64


def t5(block: str, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The layers of two blocks, by the names of the four of attention, three of the rest, and two norms."""
    shapes = [(WIDTH, WIDTH)] * 4 + [(128, WIDTH)] * 2 + [(WIDTH, 128)] + [(WIDTH,)] * 2
    return {
        f"{block.format(number)}{name}.weight": shape
        for number in range(2)
        for name, shape in zip(names, shapes, strict=True)
    }


Shapes = dict[str, tuple[int, ...]]
LLAMA_CPP = ("attn_q", "attn_k", "attn_v", "attn_{}", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm")
T5: Shapes = {
    "token_embd.weight": (96, WIDTH),
    "enc.output_norm.weight": (WIDTH,),
    "enc.blk.0.attn_rel_b.weight": (32, 4),
    **t5("enc.blk.{}.", (*(name.format("o") for name in LLAMA_CPP), *NORMS)),
}
LANGUAGE: Shapes = {
    "token_embd.weight": (96, WIDTH),
    "output_norm.weight": (WIDTH,),
    **t5("blk.{}.", (*(name.format("output") for name in LLAMA_CPP), *NORMS)),
}
_DENSE = ("wi_0", "wi_1", "wo")
OWN_T5: Shapes = {
    "shared.weight": (96, WIDTH),
    "encoder.final_layer_norm.weight": (WIDTH,),
    **t5(
        "encoder.block.{}.",
        (
            *(f"layer.0.SelfAttention.{part}" for part in "qkvo"),
            *(f"layer.1.DenseReluDense.{part}" for part in _DENSE),
            *("layer.0.layer_norm", "layer.1.layer_norm"),
        ),
    ),
}


def clip(width: int) -> Shapes:
    found: Shapes = {"text_model.embeddings.token_embedding.weight": (40, width)}
    for number in range(2):
        layer = f"text_model.encoder.layers.{number}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"{layer}self_attn.{part}.weight"] = (48, width)
        found[f"{layer}mlp.fc1.weight"] = (56, width)
        found[f"{layer}layer_norm1.weight"] = (width,)
    return found


#: What the files are, by the names of the tensors; what llama.cpp calls the model; and a layer with its
#: name in a LoRA of kohya's.
FILES: dict[str, tuple[str, Shapes, str, str]] = {
    "t5 in gguf": (
        *("T5-XXL", T5, "t5encoder"),
        "lora_te3_encoder_block_1_layer_0_SelfAttention_v=encoder.block.1.layer.0.SelfAttention.v",
    ),
    "llama in gguf": (*("Llama", LANGUAGE, "llama"), ""),
    "qwen3 in gguf": (*("Qwen3", LANGUAGE, "qwen3"), ""),
    "qwen2-vl in gguf": (*("Qwen2-VL", LANGUAGE, "qwen2vl"), ""),
    "t5 in float8": (
        *("T5-XXL", OWN_T5, ""),
        "lora_te3_encoder_block_0_layer_1_DenseReluDense_wo=encoder.block.0.layer.1.DenseReluDense.wo",
    ),
    "clip-l in float8": (
        *("CLIP-L", clip(768), ""),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1=text_model.encoder.layers.1.mlp.fc1",
    ),
    "clip-g in float8": (
        *("CLIP-G", clip(1280), ""),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1=text_model.encoder.layers.0.mlp.fc1",
    ),
}


def is_stored(key: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not any(part in key for part in ("emb", "shared", "rel_b"))


def write(path: Path, tensors: dict[str, Tensor], architecture: str) -> None:
    """A file of float8 with scales, or of Q8_0."""
    if not architecture:
        stored = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
        for key, tensor in tensors.items():
            if is_stored(key, tuple(tensor.shape)):
                scale = tensor.abs().max() / 448
                stored[key.replace(".weight", ".scale_weight")] = scale
                stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
            else:
                stored[key] = tensor.bfloat16()
        save_file(stored, path)
        return
    gguf: Any = pytest.importorskip(
        "gguf", reason="the package gguf is in no environment but its own"
    )
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "llama":
        writer.add_head_count(4)
        writer.add_head_count_kv(4)
    kind = gguf.GGMLQuantizationType.Q8_0
    for key, tensor in tensors.items():
        if is_stored(key, tuple(tensor.shape)):
            writer.add_tensor(key, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", FILES)
def test_info_extract_bake_and_merge(name: str, tmp_path: Path) -> None:
    title, shapes, architecture, named = FILES[name]
    draw = torch.Generator().manual_seed(4)
    base = {key: torch.randn(shape, generator=draw) * 0.05 for key, shape in shapes.items()}
    tuned = dict(base)
    for key, shape in shapes.items():
        if is_stored(key, shape):
            tuned[key] = base[key] + 0.2 * torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    ending = ".gguf" if architecture else ".safetensors"
    one, other = tmp_path / f"base{ending}", tmp_path / f"tuned{ending}"
    write(one, base, architecture)
    write(other, tuned, architecture)
    lora, baked = tmp_path / "lora.safetensors", tmp_path / "baked.safetensors"
    merged = tmp_path / "merged.safetensors"
    count = sum(is_stored(key, shape) for key, shape in shapes.items())
    with open_source(one) as first, open_source(other) as second:
        told = describe(first)
        assert (told.kind, told.encoder) == ("text encoder", title)
        kind = "Q8_0" if architecture else "fp8 e4m3, scaled"
        assert told.storage[kind] == told.dtypes[kind] == count
        numbers = [{key: side.tensor(key) for key in side.keys()} for side in (first, second)]  # noqa: SIM118
        adapter, report = extract(first, second, 1)
        assert len(adapter.layers) == count
        assert all(target.startswith("text_encoders.") for target in adapter.layers)
        assert report.error == pytest.approx(0.05, abs=0.05)
        save_adapter(adapter, lora)
    assert lorakit_here("bake", one, lora, "-o", baked, "--dtype", "fp32").status == 0
    assert lorakit_here("merge", one, other, "-o", merged, "--dtype", "fp32").status == 0
    found, mean = load_file(baked), load_file(merged)
    assert set(found) == set(mean) == set(numbers[0])
    for key, tensor in numbers[1].items():
        assert (found[key] - tensor).norm() <= 0.06 * tensor.float().norm(), key
        torch.testing.assert_close(mean[key], 0.5 * (numbers[0][key].float() + tensor.float()))
    if named:
        assert_a_layer_of_kohya_fits(one, numbers[0], named, tmp_path)


def assert_a_layer_of_kohya_fits(
    model: Path, numbers: dict[str, Tensor], named: str, folder: Path
) -> None:
    layer, key = named.split("=")
    out, width = numbers[f"{key}.weight"].shape
    factors = {"lora_up.weight": torch.ones(out, 1), "lora_down.weight": torch.ones(1, width)}
    path, output = folder / "kohya.safetensors", folder / "out.safetensors"
    save_file({f"{layer}.{part}": tensor for part, tensor in factors.items()}, path)
    done = lorakit_here("bake", model, path, "-o", output, "--dtype", "fp32")
    assert done.status == 0, done.err
    found = load_file(output)
    changed = [name for name in found if not torch.equal(found[name], numbers[name].float())]
    assert changed == [f"{key}.weight"]
    assert_equal(found[f"{key}.weight"], numbers[f"{key}.weight"] + 1)


def test_a_checkpoint_with_several_encoders_is_none_of_them(tmp_path: Path) -> None:
    tensors = {
        f"text_encoders.{part}.transformer.{key}": torch.ones(shape)
        for part, shapes in (("clip_l", clip(768)), ("t5xxl", OWN_T5))
        for key, shape in shapes.items()
    }
    assert describe(DictSource(tensors)).encoder is None
    changed, _ = extract(DictSource(tensors), DictSource(planted(tensors)), 3)
    assert {target.split(".")[1] for target in changed.layers} == {"clip_l", "t5xxl"}
