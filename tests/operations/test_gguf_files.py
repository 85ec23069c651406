"""Checkpoints written as GGUF files: their bytes are those of llama.cpp's package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import lorakit_here
from gguf_files import numbers_of, read
from keys import checkpoints
from safetensors.torch import save_file
from storing import STORED
from tiny_flux import numbers

from lorakit.lora_ops import ArgumentError, open_source
from lorakit.lora_ops.errors import QuantisedError
from lorakit.lora_ops.files.quantised import gguf as decoding
from lorakit.lora_ops.files.quantised.encoding_gguf import GGUF_SCHEMES, GGUF_TYPES
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.requantise.preview import preview_requantise
from lorakit.lora_ops.report import Report

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

PREFIX = "model.diffusion_model."
OTHERS = {
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (64, 64),
    "vae.decoder.mid.attn_1.q.weight": (64, 64, 1, 1),
}
#: What is in some models' files, and nothing that is computed with.
STATES = {
    "single_blocks.0.linear1._extra_state": torch.ones(9, dtype=torch.uint8),
    "single_blocks.0.linear2._extra_state": torch.ones(0),
}
UNET = {
    **checkpoints.unet(2048, [0, 1], blocks=1, width=320, mults=[1, 1], linear=True, label=64),
}


def requantised(model: Path, to: str, output: Path, **options: Any) -> Report:
    with open_source(model) as source:
        plan = plan_requantise_file(source, to, output=output, **options)
        report = requantise_file(plan, output)
        assert report.size == output.stat().st_size <= preview_requantise(plan, output).size_at_most
    return report


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """A whole checkpoint of a tiny Flux in bfloat16."""
    tensors = {PREFIX + key: one for key, one in numbers(1, torch.bfloat16).items()}
    tensors |= {key: torch.ones(shape) for key, shape in OTHERS.items()}
    tensors |= {PREFIX + key: state for key, state in STATES.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"modelspec.title": "A model"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("to", GGUF_TYPES)
def test_the_bytes_are_the_packages(flux: Path, tmp_path: Path, to: str) -> None:
    """Codes are what it encodes, numbers what it decodes; a second time all bytes are the same."""
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    report = requantised(flux, to, one)
    tensors, told = read(one)
    assert told["general.architecture"] == "flux"
    assert told["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert gguf.LlamaFileType(told["general.file_type"]).name.endswith(f"_{to.upper()}")
    assert told["modelspec.title"] == "A model"
    assert told["lorakit.operation"] == "requantise"
    weights = numbers(1, torch.bfloat16)
    assert tensors.keys() == weights.keys()
    errors = {layer.target.removeprefix("diffusion_model."): layer for layer in report.layers}
    with open_source(one) as source:
        for key, weight in weights.items():
            layer, kind = key.removesuffix(".weight"), tensors[key].tensor_type
            is_blocks = layer in STORED and to in GGUF_SCHEMES
            if weight.ndim < 2:
                assert kind.name == "F32"
            elif is_blocks or to not in GGUF_SCHEMES:
                assert kind.name == to.upper()
            else:
                assert kind.name == "BF16"
            exact = weight.float().numpy()
            assert np.array_equal(
                tensors[key].data.reshape(-1).view(np.uint8),
                gguf.quants.quantize(exact, kind).reshape(-1).view(np.uint8),
            ), key
            found = numbers_of(tensors[key]).view(weight.shape)
            assert torch.equal(source.tensor(key).float(), found), key
            assert (layer in errors) == is_blocks
            if is_blocks:
                lost = (found.double() - weight.double()).norm() / weight.double().norm()
                assert errors[layer].error == pytest.approx(float(lost), rel=1e-4)
    assert {skip.target.removeprefix("diffusion_model.") for skip in report.skips} == {
        key.removesuffix(".weight") for key in (*OTHERS, *STATES)
    }
    assert len({skip.reason for skip in report.skips}) == 3
    again = requantised(one, to, two)
    after, _ = read(two)
    assert list(after) == list(tensors)
    for key, tensor in tensors.items():
        assert after[key].tensor_type == tensor.tensor_type
        assert after[key].data.tobytes() == tensor.data.tobytes(), key
    assert again.error == 0


def test_kernels_of_stable_diffusion_are_written_in_rows_of_256(tmp_path: Path) -> None:
    tensors = {PREFIX + key: torch.randn(shape).half() for key, shape in UNET.items()}
    save_file(tensors, tmp_path / "sdxl.safetensors")
    requantised(tmp_path / "sdxl.safetensors", "q8_0", tmp_path / "a.gguf")
    found, told = read(tmp_path / "a.gguf")
    assert told["general.architecture"] == "sdxl"
    kernel = "input_blocks.1.0.in_layers.2.weight"
    assert found[kernel].tensor_type.name == "Q8_0"
    assert [int(side) for side in found[kernel].shape] == [256, 320 * 320 * 9 // 256]
    assert told[f"comfy.gguf.orig_shape.{kernel}"] == [320, 320, 3, 3]
    exact = tensors[PREFIX + kernel].float().numpy().reshape(-1, 256)
    codes = gguf.quants.quantize(exact, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(found[kernel].data, codes)
    whole = {name: one.tensor_type.name for name, one in found.items()}
    for name in ("input_blocks.0.0", "out.2", "time_embed.0", "label_emb.0.0"):
        assert whole[f"{name}.weight"] == "F16", name
    with open_source(tmp_path / "a.gguf") as source:
        assert {key: source.shape(key) for key in source.keys()} == UNET  # noqa: SIM118


def test_kernels_of_video_models_keep_five_axes(tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in checkpoints.wan().items() if "text" not in key}
    save_file(
        {key: torch.randn(shape).bfloat16() for key, shape in shapes.items()},
        tmp_path / "wan.safetensors",
    )
    requantised(tmp_path / "wan.safetensors", "q5_0", tmp_path / "a.gguf")
    found, told = read(tmp_path / "a.gguf")
    assert told["general.architecture"] == "wan"
    assert [int(side) for side in found["patch_embedding.weight"].shape] == [2, 2, 1, 16, 128]
    floats = ("patch_embedding.weight", "head.modulation", "blocks.0.modulation")
    assert {found[name].tensor_type.name for name in floats} == {"F32"}
    with open_source(tmp_path / "a.gguf") as source:
        assert {key: source.shape(key) for key in source.keys()} == shapes  # noqa: SIM118
        assert source.storage("blocks.0.ffn.0.weight") == "Q5_0"


def test_names_and_storages_that_do_not_agree(flux: Path, tmp_path: Path) -> None:
    with open_source(flux) as source:
        for to, name, match in (
            ("q8_0", "a.safetensors", r"choose a name that ends in `\.gguf`"),
            ("bf16", "a.safetensors", r"`dtype=` for a safetensors file of bf16"),
            ("fp8_scaled", "a.gguf", r"does not hold `fp8_scaled`.*`\.safetensors`"),
            ("q4_k", "a.gguf", "`q4_k` is unknown: q8_0, "),
        ):
            with pytest.raises(ArgumentError, match=match):
                plan_requantise_file(source, to, output=tmp_path / name)
        assert plan_requantise_file(source, "q8_0").gguf is not None
    encoder = {key: torch.ones(shape) for key, shape in OTHERS.items()}
    save_file(encoder, tmp_path / "encoder.safetensors")
    odd = {f"{PREFIX}what.{number}.this.weight": torch.ones(64, 64) for number in range(9)}
    save_file(odd, tmp_path / "odd.safetensors")
    for name, match in (("encoder", "no diffusion model"), ("odd", "is not known; write")):
        with (
            open_source(tmp_path / f"{name}.safetensors") as source,
            pytest.raises(ArgumentError, match=match),
        ):
            plan_requantise_file(source, "q8_0")


def test_without_the_package_numbers_are_written(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(decoding.importlib, "import_module", absent)
    with open_source(flux) as source:
        with pytest.raises(
            QuantisedError, match=r"encoded by the package gguf.*`pip install gguf`"
        ):
            plan_requantise_file(source, "q8_0")
        output = tmp_path / "a.gguf"
        requantise_file(plan_requantise_file(source, "f16", output=output), output)
    with open_source(output) as source:
        assert source.storage("img_in.weight") == "fp16"


def test_not_finite_is_refused_and_leaves_nothing(flux: Path, tmp_path: Path) -> None:
    tensors = numbers(1)
    tensors["single_blocks.0.linear1.weight"][3, 5] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    before = set(tmp_path.iterdir())
    done = lorakit_here(
        *("requantise", tmp_path / "nan.safetensors", "-o", tmp_path / "a.gguf", "--to", "q4_1")
    )
    assert (done.status, "single_blocks.0.linear1" in done.err) == (1, True)
    assert set(tmp_path.iterdir()) == before


def test_by_the_command(flux: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.gguf"
    asked = ("requantise", flux, "-o", output, "--to", "q8_0", "--whole", "single_blocks.*")
    done = lorakit_here(*asked, "--dry-run")
    assert (done.status, done.err, output.exists()) == (0, "", False)
    done = lorakit_here(*asked)
    assert (done.status, done.err) == (0, "")
    shown = " ".join(done.out.split())
    assert "39 F32" not in shown
    assert "10 Q8_0" in shown
    assert "not of the diffusion model" in shown
    with open_source(output) as found:
        assert found.storage("single_blocks.0.linear1.weight") == "bf16"
