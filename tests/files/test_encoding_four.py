"""nf4 and fp4 are, byte for byte, what bitsandbytes makes of the same weights on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_equal
from safetensors.torch import load_file, save_file
from tiny_flux import LAYERS, STRENGTH, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import Ingredient, open_source
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.report import Report

bnb: Any = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is in an environment of its own"
)

KINDS = ["nf4", "fp4"]


def weights() -> dict[str, Tensor]:
    """Of rows of many sizes, some zeros among them, and with numbers at the middle of two."""
    found = numbers(1, torch.bfloat16)
    uneven = found["single_blocks.0.linear1.weight"]
    uneven *= torch.logspace(-6, 2, len(uneven))[:, None]
    uneven[3], uneven[4, :70] = 0, 0
    middles = torch.linspace(-1, 1, 193)[: found["double_blocks.0.img_attn.proj.weight"].shape[1]]
    found["double_blocks.0.img_attn.proj.weight"][:] = middles
    return found


def requantised(source: Path, output: Path, to: str) -> Report:
    with open_source(source) as model:
        return requantise_file(plan_requantise_file(model, to, output=output), output)


def by_the_peer(key: str, weight: Tensor, kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """What it stores of a weight, by key; and what it decodes."""
    codes, state = bnb.functional.quantize_4bit(weight, quant_type=kind)
    found = {f"{key}.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {key: codes, **found}, bnb.functional.dequantize_4bit(codes, state).float()


def assert_all_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert_equal(found[key], tensor)


@pytest.mark.parametrize("to", KINDS)
def test_as_bitsandbytes_stores_it(tmp_path: Path, to: str) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file(weights(), tmp_path / "model.safetensors")
    report = requantised(tmp_path / "model.safetensors", one, to)
    written = load_file(one)
    wanted: dict[str, Tensor] = {}
    with open_source(one) as found:
        for key, weight in weights().items():
            if found.storage(key) != to:
                wanted[key] = weight
                continue
            stored, decoded = by_the_peer(key, weight, to)
            wanted |= stored
            assert torch.equal(found.tensor(key), decoded), key
            error = next(
                one.error for one in report.layers if key.endswith(f"{one.target[16:]}.weight")
            )
            lost = float((decoded - weight.float()).norm() / weight.float().norm())
            assert error == pytest.approx(lost, rel=1e-3)
    assert_all_equal(written, wanted)
    assert len(report.layers) == 13
    again = requantised(one, two, to)
    assert_all_equal(load_file(two), written)
    assert again.error == 0


@pytest.mark.parametrize("to", KINDS)
def test_the_peer_takes_it_for_its_own(tmp_path: Path, to: str) -> None:
    """As loaders do that take such files: ComfyUI_bitsandbytes_NF4, Forge."""
    save_file(weights(), tmp_path / "model.safetensors")
    requantised(tmp_path / "model.safetensors", tmp_path / "out.safetensors", to)
    key = f"{LAYERS[0]}.weight"
    file = load_file(tmp_path / "out.safetensors")
    state = {name.removeprefix(f"{key}."): one for name, one in file.items() if f"{key}." in name}
    weight = bnb.nn.Params4bit.from_prequantized(file[key], state, device="cpu")
    decoded = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    with open_source(tmp_path / "out.safetensors") as found:
        assert torch.equal(decoded.float(), found.tensor(key))
    assert decoded.dtype == torch.bfloat16


@pytest.mark.parametrize("to", KINDS)
def test_a_bake_keeps_it(tmp_path: Path, to: str) -> None:
    """What changes is stored anew in the same way, also in other blocks and another dtype."""
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    stored: dict[str, Tensor] = {}
    for key, weight in numbers(1, torch.float16).items():
        if weight.ndim < 2 or "_in" in key or "final" in key:
            stored[key] = weight
            continue
        codes, state = bnb.functional.quantize_4bit(weight, blocksize=128, quant_type=to)
        stored[key] = codes
        stored |= {f"{key}.{name}": one for name, one in state.as_dict(packed=True).items()}
    save_file(stored, model)
    save_file(adapter(), tmp_path / "lora.safetensors")
    with (
        open_source(model) as checkpoint,
        open_source(tmp_path / "lora.safetensors") as lora,
    ):
        plan = plan_bake_file(checkpoint, [Ingredient(lora, STRENGTH)], output=output)
        bake_file(plan, checkpoint, output)
        before = {key: checkpoint.tensor(key) for key in checkpoint.keys()}  # noqa: SIM118
    written, tensors = load_file(output), adapter()
    changed = {f"{layer}.weight" for layer in LAYERS}
    for key in changed:
        layer = f"diffusion_model.{key.removesuffix('.weight')}"
        up, down = (tensors[f"{layer}.lora_{part}.weight"] for part in ("up", "down"))
        meant = before[key] + STRENGTH * 3 / 4 * (up @ down)
        codes, state = bnb.functional.quantize_4bit(meant, blocksize=128, quant_type=to)
        state.dtype = torch.float16
        parts = {f"{key}.{name}": one for name, one in state.as_dict(packed=True).items()}
        assert (written[key] == codes).float().mean() > 0.999
        for name, one in parts.items():
            assert torch.allclose(written[name].float(), one.float(), rtol=1e-5), name
    for key, tensor in stored.items():
        if not any(key.startswith(one) for one in changed) and key != f"{LAYERS[0]}.bias":
            assert torch.equal(written[key], tensor), key
