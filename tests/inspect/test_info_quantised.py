"""What is said of a quantised model: its layers by scheme, and bits per weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, grid
from commands import lorakit_here
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, describe, open_source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tiny Flux: the double blocks in scaled fp8, some of them by rows, all else in bfloat16."""
    stored = grid(FLUX, torch.bfloat16)
    for number, (key, weight) in enumerate(list(stored.items())):
        if weight.ndim == 2 and key.startswith("double_blocks"):
            rows = weight.float().abs().amax(1, keepdim=True) / 448
            scale = rows if number % 2 else rows.max()
            stored[key] = (weight / scale).to(torch.float8_e4m3fn)
            stored[key.replace(".weight", ".weight_scale")] = scale.float()
    save_file(stored, tmp_path / "flux.safetensors")
    return tmp_path / "flux.safetensors"


def test_layers_by_scheme_and_bits(path: Path) -> None:
    plain = grid(FLUX, torch.bfloat16)
    scaled = [k for k, w in plain.items() if w.ndim == 2 and k.startswith("double_blocks")]
    matrices = [key for key, weight in plain.items() if weight.ndim >= 2]
    with open_source(path) as source:
        info = describe(source)
        whole = describe(DictSource(plain, name=source.name))
    assert (info.kind, info.architecture) == (whole.kind, whole.architecture)
    assert info.components == whole.components
    assert info.storage == {
        "bf16": len(matrices) - len(scaled),
        "fp8 e4m3, scaled": len(scaled),
    }
    assert info.dtypes == {
        "bfloat16": len(plain) - len(scaled),
        "fp8 e4m3, scaled": len(scaled),
    }
    count = sum(plain[key].numel() for key in matrices)
    small = sum(plain[key].numel() for key in scaled)
    with open_source(path) as source:
        scales = sum(source.stored_size(key) for key in scaled) - small
    assert scales > 4 * len(scaled)
    count = sum(weight.numel() for weight in plain.values())
    with open_source(path) as source:
        size = sum(source.original.stored_size(key) for key in source.original.keys())  # noqa: SIM118
    assert size >= small + 2 * (count - small) + scales
    assert info.bits == 8 * size / count
    assert info.bytes == whole.bytes - small + scales
    assert (whole.storage, whole.bits) == ({}, None)


def test_the_command_shows_it(path: Path) -> None:
    shown = lorakit_here("info", path).out
    assert "fp8 e4m3, scaled: " in shown
    assert "per weight, scales included" in shown
