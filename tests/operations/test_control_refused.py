"""What no Control-LoRA can be made of, or be used for, is said in one error, and nothing is written."""

from __future__ import annotations

import re

import pytest
import torch
from controlnets import UNETS, control_lora, controlnet, filled, written
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import (
    Ingredient,
    LoraOpsError,
    add_files,
    compare,
    convert_file,
    decode,
    open_source,
    plan_bake_file,
    plan_control_bake_file,
    plan_file,
    scale_file,
)


def weights(*names, shape=(4, 4)):
    return {name: torch.ones(shape) for name in names}


BASE = filled(UNETS["sd1"])
TUNED = controlnet(BASE)
MATRIX = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

CONTROLNETS = {
    "for another model": (
        controlnet(filled(UNETS["sd2"])),
        "controlnet.safetensors is for another model than base.safetensors: `input_blocks.1.1.proj_in.weight` is "
        "(16, 16) in the ControlNet and (16, 16, 1, 1) in the UNet",
    ),
    "deeper": (
        controlnet(filled(UNETS["sdxl"])),
        "is for another model than base.safetensors: it has no `input_blocks.1.1.norm.bias`, which the UNet has",
    ),
    "of another depth": (
        {key: one for key, one in TUNED.items() if not key.startswith("input_blocks.1.1.")},
        "it has no `input_blocks.1.1.norm.bias`, which the UNet has",
    ),
    "union": (
        {**TUNED, "task_embedding": torch.ones(6, 320)},
        "is a union ControlNet (`task_embedding`), for several sorts of images",
    ),
    "difference": (
        {**{f"control_model.{key}": one for key, one in TUNED.items()}, "difference": torch.ones(1)},
        "holds its encoder as the difference from another checkpoint",
    ),
    "T2I adapter": (
        weights("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"),
        "is a T2I adapter: a Control-LoRA is made of a ControlNet",
    ),
    "Flux": (
        weights("controlnet_x_embedder.weight", "transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"),
        "is a ControlNet of another sort of model than Stable Diffusion 1, 2 and XL",
    ),
    "SD3": (
        weights("controlnet_blocks.0.weight", "pos_embed_input.proj.weight"),
        "is a ControlNet of another sort of model than Stable Diffusion 1, 2 and XL",
    ),
    "checkpoint": (
        {f"model.diffusion_model.{key}": one for key, one in filled(UNETS["sd1"], 5).items()},
        "is no ControlNet: a Control-LoRA is made of a ControlNet",
    ),
    "strange part": (
        {**TUNED, "input_hint_block.gate": torch.ones(3), "gates.0.weight": torch.ones(3)},
        "has `gates.0.weight`, which no ControlNet of Stable Diffusion 1, 2 and XL has",
    ),
    "untrained": (
        {**TUNED, **{key: BASE[key] for key in TUNED if key in BASE}},
        "no matrix of",
    ),
    "damaged": (
        {**TUNED, MATRIX: TUNED[MATRIX] * torch.nan},
        "NaN and 0 infinite values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTROLNETS)
def test_what_is_no_controlnet_of_the_base_is_refused(tmp_path, kind):
    tensors, told = CONTROLNETS[kind]
    paths = written(tmp_path, BASE, tensors)
    with pytest.raises(LoraOpsError) as failed:
        control_lora(*paths, tmp_path / "out.safetensors")
    assert told in str(failed.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(failed.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.safetensors",
        "controlnet.safetensors",
    ]


BASES = {
    "ControlNet": (TUNED, "holds no UNet of Stable Diffusion 1, 2 and XL, but a ControlNet"),
    "LoRA": (
        weights("lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"),
        "is an adapter (LoRA or the like), not a checkpoint",
    ),
    "Flux": (
        weights(
            "double_blocks.0.img_attn.qkv.weight", "img_in.weight", "single_blocks.0.linear1.weight"
        ),
        "holds no UNet of Stable Diffusion 1, 2 and XL",
    ),
}


@pytest.mark.parametrize("kind", BASES)
def test_what_is_no_base_is_refused(tmp_path, kind):
    tensors, told = BASES[kind]
    paths = written(tmp_path, tensors, TUNED, base_prefix="")
    with pytest.raises(LoraOpsError, match=re.escape(told)):
        control_lora(*paths, tmp_path / "out.safetensors")


@pytest.fixture
def control(tmp_path):
    control_lora(*written(tmp_path, BASE, TUNED), tmp_path / "control.safetensors")
    with open_source(tmp_path / "control.safetensors") as source:
        yield source


def test_other_operations_do_not_take_one_for_a_lora(tmp_path, control):
    """It changes the UNet's copy in a ControlNet: as a LoRA of the UNet it would do harm."""
    output, lora = tmp_path / "out.safetensors", tmp_path / "lora.safetensors"
    save_file(weights("diffusion_model.a.lora_A.weight", "diffusion_model.a.lora_B.weight"), lora)
    told = "is a ControlNet (control-LoRA), not a LoRA or the like"
    with open_source(tmp_path / "base.safetensors") as base, open_source(lora) as other:
        for refused in (
            lambda: plan_bake_file(base, [Ingredient(control)], output=output),
            lambda: scale_file(Ingredient(control, 0.5), output),
            lambda: add_files([Ingredient(control), Ingredient(control)], output),
            lambda: decode(control),
        ):
            with pytest.raises(LoraOpsError, match=re.escape(told)):
                refused()
        with pytest.raises(LoraOpsError, match="is a Control-LoRA, which changes a ControlNet"):
            compare(decode(control, control=True), decode(other))
        for to, source in (("kohya", control), ("comfy", control), ("control-lora", other)):
            with pytest.raises(LoraOpsError, match="ControlNet"):
                convert_file(source, output, to)
    assert not output.exists()


def test_a_lora_of_a_controlnet_is_none(tmp_path):
    paths = written(tmp_path, BASE, TUNED)
    with (
        open_source(paths[0]) as base,
        open_source(paths[1]) as net,
        pytest.raises(
            LoraOpsError, match="is a ControlNet, whose copy of the UNet no LoRA changes"
        ),
    ):
        plan_file(base, net, 4)


@pytest.mark.parametrize("missing", ["input_hint_block.0.weight", "zero_convs.0.0.weight"])
def test_an_incomplete_one_is_not_baked(tmp_path, control, missing):
    held = load_file(tmp_path / "control.safetensors")
    save_file(
        {key: one for key, one in held.items() if key != missing}, tmp_path / "less.safetensors"
    )
    with (
        open_source(tmp_path / "base.safetensors") as base,
        open_source(tmp_path / "less.safetensors") as less,
        pytest.raises(LoraOpsError, match=f"has no `{missing}`: the file is incomplete"),
    ):
        plan_control_bake_file(base, less)


def test_one_of_another_model_is_not_baked(tmp_path, control):
    save_file(filled(UNETS["sdxl"]), tmp_path / "other.safetensors")
    told = pytest.raises(LoraOpsError, match="is for another model than")
    with open_source(tmp_path / "other.safetensors") as other, told:
        plan_control_bake_file(other, control)
    with pytest.raises(LoraOpsError, match="is a Control-LoRA already; give the ControlNet"):
        control_lora(
            tmp_path / "base.safetensors",
            tmp_path / "control.safetensors",
            tmp_path / "x.safetensors",
        )
