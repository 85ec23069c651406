"""ControlNets as diffusers makes and saves them: read, turned into Control-LoRAs, and back, against its own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from controlnets import control_lora
from safetensors.torch import load_file

from lorakit.lora_ops import bake_control_file, open_source, plan_control_bake_file

diffusers: Any = pytest.importorskip("diffusers", reason="its ControlNets are what is read")
single_file = pytest.importorskip(
    "diffusers.loaders.single_file_utils", reason="it reads native names"
)

_COMMON = {
    "sample_size": 8,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
_DEEP = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
MODELS = {
    "sd1": {**_COMMON, **_DEEP, "cross_attention_dim": 32},
    "sd2": {**_COMMON, **_DEEP, "cross_attention_dim": 48, "use_linear_projection": True},
    "sdxl": {
        **_COMMON,
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
}  # fmt: skip


def trained(model, folder):
    """A UNet and a ControlNet of it, whose every number has moved, saved by diffusers."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**MODELS[model])
    made = diffusers.ControlNetModel.from_unet(unet).eval()
    with torch.no_grad():
        for one in made.parameters():
            one += 0.02 * torch.randn_like(one)
    unet.save_pretrained(folder / "pipeline" / "unet")
    made.save_pretrained(folder / "controlnet")
    return unet, made


def given(model, seed=3):
    """What a ControlNet takes."""
    torch.manual_seed(seed)
    width = MODELS[model]["cross_attention_dim"]
    more = {}
    if model == "sdxl":
        more = {
            "added_cond_kwargs": {"text_embeds": torch.randn(1, 16), "time_ids": torch.randn(1, 6)}
        }
    return (
        torch.randn(1, 4, 8, 8),
        torch.tensor([7]),
        torch.randn(1, 5, width),
        torch.rand(1, 3, 64, 64),
    ), more


def outputs(controlnet, model):
    inputs, more = given(model)
    with torch.no_grad():
        down, middle = controlnet(*inputs, return_dict=False, **more)
    return torch.cat([one.flatten() for one in (*down, middle)])


def as_diffusers(path, config):
    """A native file under diffusers' names, by its own tables; for SDXL's label it uses those of the UNet."""
    held = load_file(path)
    labels = single_file.DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
    more = {name: held[native] for name, native in labels.items() if native in held}
    return single_file.convert_controlnet_checkpoint(held, config=config) | more


@pytest.mark.parametrize("model", MODELS)
def test_the_controlnet_comes_back(tmp_path, model):
    """From its own folder to a Control-LoRA, from that to a native file, from that to its module: the same outputs.

    At a lower rank they differ, by as much as those of the weights that the report is of.
    """
    _, tuned = trained(model, tmp_path)
    wanted = outputs(tuned, model)
    far = []
    for rank in ("512", "8"):
        control, output = tmp_path / f"{rank}.safetensors", tmp_path / f"of {rank}.safetensors"
        report = control_lora(tmp_path / "pipeline", tmp_path / "controlnet", control, rank)
        with open_source(tmp_path / "pipeline") as base, open_source(control) as lora:
            plan = plan_control_bake_file(base, lora, output=output)
            bake_control_file(plan, base, lora, output)
        native = as_diffusers(output, tuned.config)
        back = diffusers.ControlNetModel.from_config(tuned.config).eval()
        back.load_state_dict(native, strict=True)
        shared, lost, whole = dict(tuned.named_parameters()), 0.0, 0.0
        for name, one in back.named_parameters():
            if name.startswith("controlnet_"):
                assert torch.equal(one, shared[name])
            else:
                lost += float((one - shared[name]).detach().double().norm()) ** 2
        base = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "pipeline" / "unet")
        for name, one in base.named_parameters():
            if name in shared:
                whole += float((shared[name] - one).detach().double().norm()) ** 2
        assert report.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3, abs=1e-6)
        far.append(float((outputs(back, model) - wanted).norm() / wanted.norm()))
    assert far[0] < 1e-5
    assert 1e-3 < far[1] < 1


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_diffusers_reads_the_factors_as_we_report_them(tmp_path):
    """By its own reader of Stability's Control-LoRAs, which passes over the biases beside factors."""
    pytest.importorskip("peft", reason="diffusers loads adapters with it")
    unet, _ = trained("sd1", tmp_path)
    control = tmp_path / "control.safetensors"
    control_lora(tmp_path / "pipeline", tmp_path / "controlnet", control, "8")
    loaded = diffusers.ControlNetModel.from_unet(unet)
    loaded.load_lora_adapter(control, prefix=None)
    loaded.fuse_lora()
    found = {
        name.replace(".base_layer", ""): one
        for name, one in loaded.named_parameters()
        if name.endswith(".base_layer.weight") and not name.startswith("controlnet_")
    }
    output = tmp_path / "back.safetensors"
    with open_source(tmp_path / "pipeline") as base, open_source(control) as lora:
        bake_control_file(plan_control_bake_file(base, lora, output=output), base, lora, output)
    wanted = as_diffusers(output, loaded.config)
    factored = [key for key in load_file(control) if key.endswith(".up")]
    assert len(found) == len(factored)
    for name, one in found.items():
        assert float((one - wanted[name]).norm()) < 1e-5 * float(wanted[name].norm())
