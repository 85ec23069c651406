"""Files in every format of `comfy_quant` stand for what ComfyUI's own code makes of them, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops.files import open_source

#: Multiples of what every format's blocks need, and not.
WHOLE, ODD = (384, 512), (300, 320)
#: Format, options of its layout, what else the configuration says, shape, storage, relative error.
FORMATS = [
    ("float8_e4m3fn", {"scale": "recalculate"}, {}, ODD, "fp8 e4m3, scaled", 0.03),
    ("float8_e5m2", {"scale": "recalculate"}, {}, ODD, "fp8 e5m2, scaled", 0.06),
    ("mxfp8", {}, {}, WHOLE, "mxfp8", 0.03),
    ("mxfp8", {}, {}, ODD, "mxfp8", 0.03),
    ("nvfp4", {}, {}, WHOLE, "nvfp4", 0.11),
    ("nvfp4", {}, {}, ODD, "nvfp4", 0.11),
    ("int8_tensorwise", {}, {}, ODD, "int8", 0.03),
    ("int8_tensorwise", {"per_channel": True}, {}, ODD, "int8", 0.01),
    *(
        (
            "int8_tensorwise",
            {"per_channel": True, "convrot": True, "convrot_groupsize": size},
            {"convrot": True},
            WHOLE,
            "int8, rotated",
            0.01,
        )
        for size in (4, 16, 64, 256)
    ),
    ("convrot_w4a4", {}, {}, WHOLE, "int4, rotated", 0.2),
    ("asym_w4a8_int8", {}, {}, WHOLE, "int4 in groups, rotated", 0.1),
]


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


def plain(folder: Path, shape: tuple[int, int]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    rows = torch.logspace(-2, 0, shape[0])[:, None]
    tensors = {
        f"net.{n}.weight": torch.randn(shape, generator=draw) * rows * 0.02 for n in range(2)
    }
    tensors |= {f"net.{n}.bias": torch.randn(shape[0], generator=draw) for n in range(2)}
    tensors["net.0.weight"][:, :32] = 0  # blocks of nothing
    save_file(tensors, folder / "plain.safetensors")
    return tensors


@pytest.mark.parametrize(("format", "options", "told", "shape", "storage", "error"), FORMATS)
def test_files_stand_for_what_comfyui_reads(
    host: comfy_host.Host,
    tmp_path: Path,
    format: str,
    options: dict[str, object],
    told: dict[str, object],
    shape: tuple[int, int],
    storage: str,
    error: float,
) -> None:
    tensors = plain(tmp_path, shape)
    names = ("plain", "stored", "written", "read")
    source, stored, written, loaded = (str(tmp_path / f"{name}.safetensors") for name in names)
    asked = {"do": "write", "source": source, "output": stored, "truth": written}
    host.ask("quantised_files", {**asked, "format": format, "options": options, "told": told})
    shapes = {f"net.{n}": shape for n in range(2)}
    host.ask("quantised_files", {"do": "read", "source": stored, "truth": loaded, "shapes": shapes})
    with open_source(stored) as found:
        assert set(found.keys()) == set(tensors)
        for key, truth in load_file(loaded).items():
            assert found.storage(key) == storage
            assert found.shape(key) == shape
            assert found.dtype(key) == torch.float32
            assert torch.equal(found.tensor(key), truth), key
            assert torch.equal(truth, load_file(written)[key])
            missed = (truth - tensors[key]).norm() / tensors[key].norm()
            assert 1e-3 < missed < error
            # Rounding to the nearest leaves each number within one step of its grid.
            steps = found.grid(key, tensors[key])
            assert (((truth - tensors[key]).abs() <= steps) | (steps.isnan())).all()
            halves = (
                found.grid(key, tensors[key][:7], 0),
                found.grid(key, tensors[key][7:], 7 * shape[1]),
            )
            assert torch.equal(torch.cat(halves), steps)


def test_configurations_in_the_metadata(host: comfy_host.Host, tmp_path: Path) -> None:
    shape = WHOLE
    plain(tmp_path, shape)
    names = ("plain", "stored", "written", "told", "read")
    source, stored, written, moved, loaded = (str(tmp_path / f"{n}.safetensors") for n in names)
    asked = {"do": "write", "source": source, "output": stored, "truth": written}
    host.ask("quantised_files", {**asked, "format": "nvfp4"})
    tensors = load_file(stored)
    layers = {f"net.{n}": {"format": "nvfp4"} for n in range(2)}
    for layer in layers:
        del tensors[f"{layer}.comfy_quant"]
        tensors[f"{layer}.input_scale"] = torch.tensor(0.5)
    text = json.dumps({"format_version": "1.0", "layers": layers})
    save_file(tensors, moved, {"_quantization_metadata": text, "title": "a"})
    shapes = dict.fromkeys(layers, shape)
    host.ask("quantised_files", {"do": "read", "source": moved, "truth": loaded, "shapes": shapes})
    with open_source(moved) as found:
        assert found.metadata == {"title": "a"}
        assert set(found.keys()) == {
            f"{layer}.{part}" for layer in layers for part in ("weight", "bias")
        }
        for key, truth in load_file(loaded).items():
            assert torch.equal(found.tensor(key), truth)


def test_scales_of_columns_are_part_of_the_weight(tmp_path: Path, host: comfy_host.Host) -> None:
    """Of nvfp4: the host multiplies the input by them, which is the same."""
    tensors = plain(tmp_path, WHOLE)
    names = ("plain", "stored", "written", "scaled")
    source, stored, written, scaled = (str(tmp_path / f"{n}.safetensors") for n in names)
    asked = {"do": "write", "source": source, "output": stored, "truth": written}
    host.ask("quantised_files", {**asked, "format": "nvfp4"})
    columns = torch.linspace(0.5, 2, WHOLE[1])
    save_file({**load_file(stored), "net.0.pre_quant_scale": columns}, scaled)
    truth = load_file(written)["net.0.weight"]
    with open_source(scaled) as found, open_source(stored) as without:
        assert torch.equal(found.tensor("net.0.weight"), truth * columns)
        steps = found.grid("net.0.weight", tensors["net.0.weight"].double() * columns)
        expected = without.grid("net.0.weight", tensors["net.0.weight"].double()) * columns
        assert torch.allclose(steps, expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("marker", [1, 2])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_scaled_fp8_of_old(
    host: comfy_host.Host, tmp_path: Path, marker: int, shape: tuple[int, ...]
) -> None:
    tensors = plain(tmp_path, ODD)
    stored = dict(tensors)
    for n in range(2):
        weight = tensors[f"net.{n}.weight"]
        scale = weight.abs().max() / 448
        stored[f"net.{n}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        stored[f"net.{n}.scale_weight"] = scale.reshape(shape)
        stored[f"net.{n}.scale_input"] = torch.tensor(0.5)
    stored["scaled_fp8"] = torch.zeros(marker, dtype=torch.float8_e4m3fn)
    path, loaded = tmp_path / "old.safetensors", str(tmp_path / "read.safetensors")
    save_file(stored, path)
    asked = {"do": "read", "source": str(path), "truth": loaded}
    host.ask("quantised_files", {**asked, "shapes": {f"net.{n}": ODD for n in range(2)}})
    with open_source(path) as found:
        assert set(found.keys()) == set(tensors)
        for key, truth in load_file(loaded).items():
            assert torch.equal(found.tensor(key), truth)
