"""Files that torchao writes stand for what it makes of them itself, bit for bit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.lora_ops.errors import QuantisedError
from lorakit.lora_ops.files import QuantisedSource, open_source, refuse_quantised


def described(kind: str, dtype: str = "bfloat16") -> dict[str, str]:
    """As its `flatten_tensor_state_dict` describes one layer."""
    about = {"_type": kind, "_data": {"dtype": {"_type": "torch.dtype", "_data": dtype}}}
    names = json.dumps(["net.weight", "net.bias"])
    return {
        "net.weight": json.dumps(about),
        "net.bias": '{"_type": "Tensor"}',
        "tensor_names": names,
    }


def layer(columns: int = 4) -> dict[str, Tensor]:
    return {
        "net._weight_qdata": torch.randint(-8, 8, (6, 32)).to(torch.int8),
        "net._weight_scale": torch.rand(6, columns) + 0.1,
        "net._weight_zero_point": torch.randint(-3, 3, (6, columns)).to(torch.int8),
        "net.bias": torch.ones(6),
    }


def test_by_the_definition(tmp_path: Path) -> None:
    tensors = layer()
    metadata = described("IntxUnpackedToInt8Tensor") | {"format": "pt"}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with open_source(tmp_path / "a.safetensors") as source:
        codes, scales, zeros = (t.double() for t in list(tensors.values())[:3])
        exact = (codes - zeros.repeat_interleave(8, 1)) * scales.repeat_interleave(8, 1)
        assert sorted(source.keys()) == ["net.bias", "net.weight"]
        assert source.metadata == {"format": "pt"}
        assert source.shape("net.weight") == (6, 32)
        assert torch.equal(source.tensor("net.weight"), exact.float().bfloat16().float())
        steps = source.grid("net.weight", exact)
        assert torch.allclose(steps, scales.repeat_interleave(8, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        (layer(), {}, "the metadata does not describe `net.weight`"),
        (
            layer(),
            described("Int4Tensor"),
            "torchao's 'Int4Tensor' of 'bfloat16', which is not read",
        ),
        (layer(), described("Int8Tensor", "float64"), "of 'float64'"),
        (layer(), {"net.weight": "no JSON"}, "`net.weight` is no JSON"),
        (layer(5), described("Int8Tensor"), r"shape \[6, 5\]"),
        (
            layer() | {"net._weight_zero_point": torch.zeros(3, dtype=torch.int8)},
            described("Int8Tensor"),
            r"zero_point` has the shape \[3\]",
        ),
    ],
)
def test_damaged_layers(
    tensors: dict[str, Tensor], metadata: dict[str, str], reason: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with (
        open_source(tmp_path / "a.safetensors") as source,
        pytest.raises(QuantisedError, match=reason),
    ):
        refuse_quantised(source)


@pytest.mark.parametrize("kind", ["int8", "fp8", "intx"])
def test_files_of_torchao(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "torchao is in no environment but its own"
        support: Any = pytest.importorskip(
            "torchao.prototype.safetensors.safetensors_support", reason=reason
        )
        api: Any = pytest.importorskip("torchao.quantization")
        config = {
            "int8": lambda: api.Int8WeightOnlyConfig(version=2),
            "fp8": api.Float8WeightOnlyConfig,
            "intx": lambda: api.IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=api.PerGroup(32)
            ),
        }[kind]()
        weight = torch.randn(48, 128).bfloat16()
        module = nn.Sequential(nn.Linear(128, 48).bfloat16())
        module[0].weight.data = weight.clone()
        api.quantize_(module, config)
        tensors, metadata = support.flatten_tensor_state_dict(module.state_dict())
        truth = module[0].weight.dequantize()
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "a.safetensors", metadata)
    with open_source(tmp_path / "a.safetensors") as source:
        assert isinstance(source, QuantisedSource)
        assert torch.equal(source.tensor("0.weight"), truth.float())
        steps = source.grid("0.weight", weight)
        assert (
            (truth.float() - weight.float()).abs() <= steps + 2**-8 * weight.float().abs()
        ).all()
