"""GGUF files that llama.cpp's package writes stand for what it makes of them itself, bit for bit."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import blocks, kind_of
from torch import Tensor

from lorakit.lora_ops.files import QuantisedSource, open_source, refuse_quantised

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

ENCODED = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4", "TQ1_0", "TQ2_0"]
RANDOM = [
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "NVFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
]
KEY = "double_blocks.0.img_attn.qkv.weight"


def written(
    folder: Path, tensors: dict[str, tuple[Any, str]], arch: str = "flux", **fields: Any
) -> Path:
    """A file of arrays (of blocks, as bytes), each with the name of its type."""
    writer = gguf.GGUFWriter(folder / "a.gguf", arch)
    writer.add_string("general.name", "a model")
    writer.add_quantization_version(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    for name, value in fields.items():
        writer.add_array(name.replace("__", "."), value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind_of(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"


def normal(rows: int = 6, columns: int = 512) -> Any:
    scales = np.logspace(-2, 0, rows)[:, None]
    return (np.random.default_rng(1).normal(size=(rows, columns)) * scales).astype(np.float32)


def truth_of(array: Any, name: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(gguf.quants.dequantize(array, kind_of(name)))


@pytest.mark.parametrize("name", [*ENCODED, *RANDOM])
def test_blocks_are_what_the_package_makes_of_them(name: str, tmp_path: Path) -> None:
    array = gguf.quants.quantize(normal(), kind_of(name)) if name in ENCODED else blocks(name)
    path = written(tmp_path, {"a.bias": (np.ones(5, np.float32), "F32"), KEY: (array, name)})
    truth = truth_of(array, name)
    with open_source(path) as source:
        refuse_quantised(source)
        assert source.keys() == ["a.bias", KEY]
        assert (source.storage(KEY), source.shape(KEY)) == (name, (6, 512))
        assert source.stored_size(KEY) == array.nbytes
        assert torch.equal(source.tensor(KEY), truth)
        assert torch.equal(source.tensor("a.bias"), torch.ones(5))
        assert source.metadata == {"general.architecture": "flux", "general.name": "a model"}
        steps = source.grid(KEY, truth)
        part = source.grid(KEY, truth.flatten()[700:1500], 700)
        assert torch.equal(part, steps.flatten()[700:1500])
        assert (steps >= 0).all()
        if name in ENCODED:  # to the nearest
            missed = (truth - torch.from_numpy(normal())).abs()
            assert (missed <= source.grid(KEY, torch.from_numpy(normal())) * 1.001).all()


@pytest.mark.parametrize(
    "name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_the_grid_is_the_distance_of_neighbouring_numbers(name: str, tmp_path: Path) -> None:
    """Among all numbers of a group the smallest distance is one step, and all are multiples of it."""
    array = blocks(name, 64, 256)
    with open_source(written(tmp_path, {KEY: (array, name)})) as source:
        truth, group = source.tensor(KEY).double(), 16 if name in ("Q2_K", "Q3_K", "Q6_K") else 32
        steps = source.grid(KEY, truth).view(-1, group)
        assert (steps == steps[:, :1]).all()
        apart = truth.view(-1, group).diff(dim=1) / steps[:, :1]
        apart = apart[steps[:, 0] > 0]
        assert torch.allclose(apart, apart.round(), atol=1e-4)
        assert apart.abs().gt(0.5).any()
        assert apart[apart.abs() > 0.5].abs().min() < 1.001


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
def test_plain_numbers_keep_their_dtype(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(4, 6).to(dtype)
    array = tensor.view(torch.uint8).numpy() if name == "BF16" else tensor.numpy()
    with open_source(written(tmp_path, {KEY: (array, name)})) as source:
        assert source.dtype(KEY) == dtype
        assert torch.equal(source.tensor(KEY), tensor)
        assert not isinstance(source, QuantisedSource) or not source.weights


def test_shapes_that_were_flattened(tmp_path: Path) -> None:
    """ComfyUI-GGUF's: a convolution whose rows are no multiple of a block."""
    array = gguf.quants.quantize(normal(9, 256), kind_of("Q8_0"))
    name = "input_blocks.1.weight"
    told = {f"comfy__gguf__orig_shape__{name}": [16, 16, 3, 3]}
    path = written(tmp_path, {name: (array, "Q8_0")}, "sd1", **told)
    with open_source(path) as source:
        assert source.shape(name) == (16, 16, 3, 3)
        assert torch.equal(source.tensor(name), truth_of(array, "Q8_0").view(16, 16, 3, 3))
        values = source.tensor(name)
        steps = source.grid(name, values)
        assert torch.equal(source.grid(name, values[3], 3 * 144), steps[3])


def test_it_travels(tmp_path: Path) -> None:
    path = written(tmp_path, {KEY: (blocks("Q4_K"), "Q4_K")})
    with open_source(path) as source:
        other = pickle.loads(pickle.dumps(source))
        assert torch.equal(other.tensor(KEY), source.tensor(KEY))
        other.close()


def test_turned_heads_of_llama(tmp_path: Path) -> None:
    """llama.cpp's own conversion turns them, as transformers' rotary embeddings want them otherwise."""
    heads, rows = 4, 64
    weight = normal(rows, 256)
    turned = weight.reshape(heads, 2, rows // heads // 2, 256).swapaxes(1, 2).reshape(rows, 256)
    own = np.ascontiguousarray(turned)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_tensor("blk.0.attn_q.weight", own, raw_dtype=kind_of("F32"))
    stored = gguf.quants.quantize(own, kind_of("Q8_0"))
    writer.add_tensor("blk.1.attn_q.weight", stored, raw_dtype=kind_of("Q8_0"))
    writer.add_tensor("blk.1.attn_v.weight", stored, raw_dtype=kind_of("Q8_0"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_source(tmp_path / "a.gguf") as source:
        plain, blocked, value = (
            f"model.layers.{name}.weight"
            for name in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.self_attn.v_proj")
        )
        assert torch.equal(source.tensor(plain), torch.from_numpy(weight))
        truth = gguf.quants.dequantize(
            gguf.quants.quantize(weight, kind_of("Q8_0")), kind_of("Q8_0")
        )
        assert torch.equal(source.tensor(blocked), torch.from_numpy(truth))
        assert torch.equal(source.tensor(value), truth_of(stored, "Q8_0"))
        steps = source.grid(blocked, torch.from_numpy(weight))
        assert ((source.tensor(blocked) - torch.from_numpy(weight)).abs() <= steps).all()
