"""Weights stored with scales are recognised by name, dtype or metadata; plain ones pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops.errors import FormatError, QuantisedError
from lorakit.lora_ops.files import open_source, quantisation, refuse_quantised
from lorakit.lora_ops.source import DictSource


def scheme(*keys: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    layers = {f"net.{i}.weight": torch.zeros(4, 4).to(dtype) for i in range(2)}
    return layers | {key: torch.zeros(1) for key in keys}


FP8 = torch.float8_e4m3fn
Case = tuple[str, Mapping[str, Tensor], Mapping[str, str]]
#: What is decoded where it is read from a file.
READ: list[Case] = [
    ("scaled fp8", scheme("net.0.scale_weight", "net.1.scale_weight", "scaled_fp8", dtype=FP8), {}),
    ("scaled fp8", scheme("model.diffusion_model.scaled_fp8", dtype=FP8), {}),
    ("weight_scale", scheme("net.0.weight_scale", "net.1.weight_scale", dtype=FP8), {}),
    ("weight_scale", scheme("net.0.weight_scale_inv", "net.1.weight_scale_inv", dtype=FP8), {}),
]
REFUSED: list[Case] = [
    ("scaled fp8", scheme("net.0.scale_weight", "net.1.scale_weight", dtype=torch.float32), {}),
    ("weight_scale", scheme("net.0.weight_scale_2", "net.1.weight_scale", dtype=torch.uint8), {}),
    ("comfy_quant", scheme("net.0.comfy_quant", "net.0.weight_scale", "net.1.comfy_quant"), {}),
    ("comfy_quant", scheme(), {"_quantization_metadata": '{"layers": {"net.0": {}, "net.1": {}}}'}),
    ("comfy_quant", scheme(), {"_quantization_metadata": "not JSON"}),
    (
        "bitsandbytes nf4",
        scheme(*(f"net.{i}.weight.{k}" for i in range(2)
                 for k in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4"))),
        {},
    ),
    ("bitsandbytes", scheme("net.0.weight.absmax", "net.1.weight.quant_map"), {}),
    ("bitsandbytes", scheme("net.0.SCB", "net.1.SCB", dtype=torch.int8), {}),
    ("GPTQ or AWQ", scheme("net.0.qzeros", "net.0.qweight", "net.1.qzeros"), {}),
    ("packed integers", scheme(dtype=torch.uint8), {}),
    ("packed integers", scheme(dtype=torch.int8), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensors", "metadata"), [*READ, *REFUSED])
def test_scaled_storage_is_refused(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], tmp_path: Path
) -> None:
    """From memory and, where it is not read, from a file; the message counts layers where it can."""
    path = tmp_path / "a.safetensors"
    save_file(dict(tensors), path, dict(metadata))
    with open_source(path) as file:
        refused = any(tensors is one for _, one, _ in REFUSED)
        for source in (file,) * refused + (DictSource(tensors, metadata, "a.safetensors"),):
            assert quantisation(source) == name
            with pytest.raises(
                QuantisedError, match=rf"quantised \({name}.*see `.*`.*unquantised"
            ) as caught:
                refuse_quantised(source)
            countless = (
                "not JSON" in metadata.values() or "model.diffusion_model.scaled_fp8" in tensors
            )
            assert ("in 2 layers" in str(caught.value)) != countless


@pytest.mark.parametrize(("name", "tensors", "metadata"), READ)
def test_scaled_storage_that_is_read(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(dict(tensors), path, dict(metadata))
    with open_source(path) as source:
        assert list(source.keys()) == ["net.0.weight", "net.1.weight"]
        assert quantisation(source) is None, name
        refuse_quantised(source)


def test_narrow_floats_are_refused_by_their_header(tmp_path: Path) -> None:
    text = json.dumps({"net.weight": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}})
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(4))
    with (
        open_source(path) as source,
        pytest.raises(QuantisedError, match="4-bit floats in 1 layer,"),
    ):
        refuse_quantised(source)


def test_gguf_is_recognised_by_its_content(tmp_path: Path) -> None:
    for name, words in (
        ("a.gguf", "GGUF file without tensors"),
        ("a.safetensors", r"GGUF.*\.gguf"),
    ):
        (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
        with pytest.raises(FormatError, match=words):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    "tensors",
    [
        scheme(dtype=FP8),
        scheme(dtype=torch.float8_e5m2),
        scheme("net.0.alpha", "net.0.dora_scale", "net.scale", "logit_scale"),
        {
            "position_ids": torch.arange(77).reshape(1, 77),
            "mask.weight": torch.zeros(4, dtype=torch.int8),
        },
        {"emb.flags": torch.zeros(4, 4, dtype=torch.uint8)},
        {},
    ],
)
def test_plain_storage_passes(tensors: dict[str, Tensor]) -> None:
    source = DictSource(tensors, {"format": "pt"})
    assert quantisation(source) is None
    refuse_quantised(source)
