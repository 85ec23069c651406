"""What we encode is, byte for byte, what ComfyUI's own writer makes of the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops.files.quantised.encoding import Encoder
from lorakit.lora_ops.files.quantised.storages import SCHEMES

SHAPE = (288, 320)
#: By our name: options of the host's layout.
OPTIONS: dict[str, dict[str, object]] = {
    "fp8_scaled": {"scale": "recalculate"},
    "fp8_e5m2_scaled": {"scale": "recalculate"},
    "int8": {"per_channel": True},
    "mxfp8": {},
    "nvfp4": {},
}


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


def weights() -> dict[str, Tensor]:
    """Of rows of many sizes, one of zeros; with ties, and with subnormal codes."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.logspace(-6, 1, SHAPE[0])[:, None]
    uneven = torch.randn(SHAPE, generator=draw) * rows
    uneven[7] = 0
    ties = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE) % 1793 / 4.0
    return {"net.0.weight": uneven, "net.1.weight": -ties}


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def encoded(key: str, weight: Tensor, to: str, height: int) -> tuple[Tensor, Tensor, Encoder]:
    """Codes and numbers, in tiles, the last first."""
    encoder = SCHEMES[to].encoder(key, weight.shape)
    starts = range(0, len(weight), height)
    for start in starts:
        encoder.look(weight[start : start + height], start)
    pairs = [encoder.encode(weight[start : start + height], start) for start in reversed(starts)]
    codes, numbers = (torch.cat(found[::-1]) for found in zip(*pairs, strict=True))
    return codes, numbers, encoder


@pytest.mark.parametrize("to", OPTIONS)
def test_as_comfyui_writes_it(host: comfy_host.Host, tmp_path: Path, to: str) -> None:
    source, stored, truth = (
        str(tmp_path / f"{n}.safetensors") for n in ("plain", "stored", "truth")
    )
    save_file(weights(), source)
    asked = {"do": "write", "source": source, "output": stored, "truth": truth}
    host.ask("quantised_files", {**asked, "format": SCHEMES[to].format, "options": OPTIONS[to]})
    written, meant = load_file(stored), load_file(truth)
    for key, weight in weights().items():
        codes, numbers, encoder = encoded(key, weight, to, 37)
        found = {key: codes, **dict(SCHEMES[to].beside(encoder))}
        assert {name for name in written if name.startswith(key[:6])} == set(found)
        for name, tensor in found.items():
            if name.endswith("comfy_quant"):
                told = json.loads(bytes(written[name].tolist()))["format"]
                assert json.loads(bytes(tensor.tolist())) == {"format": told}
                continue
            assert (tensor.dtype, tensor.shape) == (written[name].dtype, written[name].shape)
            assert torch.equal(raw(tensor), raw(written[name]))
        assert torch.equal(numbers, meant[key])
        norm, lost = encoder.norms
        assert norm == pytest.approx(float(weight.norm()), rel=1e-5)
        assert lost == pytest.approx(float((meant[key] - weight).norm()), rel=1e-4)


@pytest.mark.parametrize("to", SCHEMES)
@pytest.mark.parametrize("size", [0.0, 1e-44])
def test_weights_of_nothing(to: str, size: float) -> None:
    """ComfyUI's writer makes NaN of them in float8."""
    _, numbers, encoder = encoded("a.weight", torch.full((32, 64), size), to, 3)
    assert torch.equal(numbers, torch.zeros(32, 64))
    assert all(part.float().isfinite().all() for part in encoder.parts().values())
