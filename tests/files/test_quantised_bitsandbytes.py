"""Files that bitsandbytes writes stand for what it makes of them itself, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.lora_ops.files import QuantisedSource, open_source

bnb: Any = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is a peer: tests with it run there"
)


def saved(module: nn.Module, folder: Path) -> Path:
    """The state of a module as its library writes it."""
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


def four_bits(
    weight: Tensor, kind: str, block: int, nested: bool, storage: torch.dtype
) -> nn.Module:
    params = bnb.nn.Params4bit(
        weight.clone(),
        requires_grad=False,
        quant_type=kind,
        blocksize=block,
        compress_statistics=nested,
        quant_storage=storage,
    ).to("cpu")
    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=True, quant_type=kind)
    layer.weight = params
    return nn.Sequential(layer)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits(
    kind: str, nested: bool, dtype: torch.dtype, storage: torch.dtype, tmp_path: Path
) -> None:
    weight = (torch.randn(48, 512) * torch.logspace(-2, 0, 48)[:, None]).to(dtype)
    module = four_bits(weight, kind, 64, nested, storage)
    with open_source(saved(module, tmp_path)) as found:
        stored = module[0].weight
        truth = bnb.functional.dequantize_4bit(stored.data, stored.quant_state)
        assert list(found.keys()) == ["0.bias", "0.weight"]
        assert (found.storage("0.weight"), found.shape("0.weight")) == (kind, (48, 512))
        assert truth.dtype == dtype
        assert torch.equal(found.tensor("0.weight"), truth.float())
        missed = (truth.float() - weight.float()).abs()
        assert 0.05 < missed.norm() / weight.float().norm() < 0.15
        blocks = weight.numel() // 64
        sizes = blocks + 4 * -(-blocks // 256) + 4 * 256 if nested else 4 * blocks
        assert found.stored_size("0.weight") == weight.numel() // 2 + 4 * 16 + sizes
        # A rounded number lies within a step of its grid; what is nested and rounded again, a little further.
        steps = found.grid("0.weight", weight.float())
        assert (
            missed <= 1.01 * steps + 2**-8 * weight.float().abs() * (dtype != torch.float32)
        ).all()
        part = found.grid("0.weight", weight.flatten()[777:2000].float(), 777)
        assert torch.equal(part, steps.flatten()[777:2000])


@pytest.mark.parametrize(
    ("shape", "block"), [((33, 65), 64), ((64, 96), 64), ((96, 320), 128), ((1, 7), 64)]
)
def test_blocks_that_run_across_rows(shape: tuple[int, int], block: int, tmp_path: Path) -> None:
    """By the definition: its own decoder on the CPU is wrong where rows are no multiple of a block."""
    weight = torch.randn(shape)
    module = four_bits(weight, "nf4", block, nested=False, storage=torch.uint8)
    state = module[0].weight.quant_state
    packed = module[0].weight.data.flatten()
    flat = torch.stack([packed >> 4, packed & 15], 1).flatten()[: weight.numel()].long()
    truth = state.code.float()[flat] * state.absmax.repeat_interleave(block)[: weight.numel()]
    with open_source(saved(module, tmp_path)) as found:
        assert torch.equal(found.tensor("0.weight"), truth.view(shape))
        assert (truth.view(shape) - weight).norm() / weight.norm() < 0.12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_8_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = (torch.randn(48, 96) * torch.logspace(-2, 0, 48)[:, None]).to(dtype)
    layer = bnb.nn.Linear8bitLt(96, 48, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    module = nn.Sequential(layer).to("cpu")
    state = dict(module.state_dict())
    if "0.SCB" not in state:  # quantised as it moves to a device that is not the CPU
        codes, sizes, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
        state = {
            "0.weight": codes,
            "0.SCB": sizes,
            "0.weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "a.safetensors")
    truth = bnb.functional.int8_vectorwise_dequant(state["0.weight"], state["0.SCB"])
    with open_source(tmp_path / "a.safetensors") as found:
        assert isinstance(found, QuantisedSource)
        assert list(found.keys()) == ["0.weight"]
        assert torch.equal(found.tensor("0.weight"), truth.float())
        assert ((truth - weight.float()).abs() <= found.grid("0.weight", weight)).all()
        assert found.storage("0.weight") == "int8"
