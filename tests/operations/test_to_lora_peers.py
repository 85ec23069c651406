"""Files that lycoris-lora and peft write, as LoRA: the change must be that of their own modules."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_kinds_peers import MODULES, effective, saved_by_peft, trained

from lorakit.lora_ops import DictSource, convert, decode
from lorakit.lora_ops.adapters.layers import LoraLayer
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.convert.file import convert_file

CASES = [
    (form, name)
    for form in ("linear", "conv3x3")
    for name in MODULES
    if form == "conv3x3" or "Tucker" not in name
]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_the_change_is_that_of_lycoris(form, name):
    base, weight, module = trained(name, form)
    tensors = {
        f"diffusion_model.m.{key}": one.detach().clone() for key, one in module.state_dict().items()
    }
    checkpoint = DictSource({"diffusion_model.m.weight": weight})
    result, report = convert(
        decode(DictSource(tensors)), to="lora", base=checkpoint, rule=64, dtype=torch.float32
    )
    (layer,) = result.layers.values()
    assert isinstance(layer, LoraLayer)
    module.apply_to()
    wanted = effective(base, weight.shape) - weight
    assert (layer.delta().reshape(wanted.shape) - wanted).norm() <= 1e-5 * wanted.norm()
    assert report.error < 1e-6


@pytest.mark.parametrize("form", ["linear", "conv3x3"])
@pytest.mark.parametrize("name", ["lora, DoRA", "loha", "lokr, both"])
def test_the_change_is_that_of_peft(name, form, tmp_path):
    base, theirs, _ = saved_by_peft(name, form, tmp_path)
    save_file({"diffusion_model.layer.weight": base.weight.detach()}, tmp_path / "base.safetensors")
    output = tmp_path / "lora.safetensors"
    with open_source(tmp_path) as adapter, open_source(tmp_path / "base.safetensors") as checkpoint:
        convert_file(adapter, output, to="lora", base=checkpoint, rule=64, dtype=torch.float32)
    with open_source(output) as found:
        (layer,) = decode(found).layers.values()
        assert isinstance(layer, LoraLayer)
        wanted = theirs.detach() - base.weight.detach()
        assert (layer.delta().reshape(wanted.shape) - wanted).norm() <= 1e-5 * wanted.norm()
