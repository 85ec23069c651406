"""DoRA over every kind through a conversion: the magnitudes keep the shape that loaders broadcast."""

from __future__ import annotations

from pathlib import Path

import comfy_host
import pytest
import torch
from kinds import WEIGHTS, kinds, numbers, weight
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.models.architectures import architecture_named
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.convert.file import convert_file

#: Kernels of LoHa and LoKr are stored flat: the layer alone does not tell the weight's axes.
CASES = [
    (form, name) for form in WEIGHTS for name in kinds(form) if "dora_scale" in kinds(form)[name]
]
NAMES = {
    "kohya": "lora_unet_down_blocks_0_resnets_0_conv1",
    "comfy": "diffusion_model.input_blocks.1.0.in_layers.2",
}


@pytest.mark.parametrize(("form", "name"), CASES)
@pytest.mark.parametrize("there", NAMES)
@pytest.mark.parametrize("here", NAMES)
def test_magnitudes_keep_their_shape_and_bits(here, there, form, name):
    stored = kinds(form)[name]
    tensors = {f"{NAMES[here]}.{suffix}": one for suffix, one in stored.items()}
    result, _ = convert(decode(DictSource(tensors)), there, architecture=architecture_named("sd1"))
    layer = result.layers[NAMES[there]]
    assert layer.tensors()["dora_scale"].shape == stored["dora_scale"].shape
    assert torch.equal(layer.tensors()["dora_scale"], stored["dora_scale"])
    base = weight(form)
    before = decode(DictSource(tensors)).layers[NAMES[here]].change(base)
    torch.testing.assert_close(layer.change(base), before, rtol=1e-6, atol=1e-6)


def test_rows_of_flat_kernels_keep_the_axes_of_the_weight():
    """Two LoRAs of one fused convolution, whose downs are stored flat, cut apart and joined."""
    flux = architecture_named("flux")
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {
        f"{name}.lora_B.weight": numbers(24, 2),
        f"{name}.lora_A.weight": numbers(2, 8),
        f"{name}.dora_scale": numbers(24, 1, 1, 1),
    }
    cut, _ = convert(decode(DictSource(tensors)), "kohya", architecture=flux)
    (layer,) = cut.layers.values()
    assert layer.tensors()["dora_scale"].shape == (24, 1, 1, 1)
    split, _ = convert(decode(DictSource(tensors)), "diffusers", architecture=flux)
    parts = [one.dora_scale for one in split.layers.values()]
    assert torch.equal(torch.cat([one.flatten() for one in parts]), numbers(24, 1, 1, 1).flatten())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that ComfyUI makes of the base by a file, and by what it is converted to."""
    folder = tmp_path_factory.mktemp("dora")
    names = {f"diffusion_model.m{index}": case for index, case in enumerate(CASES)}
    base, source = folder / "base.safetensors", folder / "source.safetensors"
    save_file({f"{m}.weight": weight(form) for m, (form, _) in names.items()}, base)
    layers = {
        f"{m}.{suffix}": one
        for m, (form, name) in names.items()
        for suffix, one in kinds(form)[name].items()
    }
    save_file(layers, source)
    with open_source(source) as adapter:
        convert_file(adapter, folder / "converted.safetensors", "comfy")
    found = {}
    with comfy_host.started() as comfy:
        for name in ("source", "converted"):
            files = {
                "base": base,
                "adapter": folder / f"{name}.safetensors",
                "output": folder / "out",
            }
            question = {key: str(path) for key, path in files.items()} | {"strengths": [1.0]}
            assert comfy.ask("change_weights", question) == {}
            found[name] = load_file(Path(files["output"]))
    return found


@pytest.mark.parametrize(("form", "name"), CASES)
def test_comfyui_makes_the_same_weight_of_the_converted_file(form, name, made):
    key = f"diffusion_model.m{CASES.index((form, name))}.0"
    assert torch.equal(made["converted"][key], made["source"][key])
    assert not torch.allclose(made["source"][key], weight(form), atol=1e-3)
