"""What Apply LoRA plans for each layer of an adapter; the host is played."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import host_doubles
import pytest
import torch
from host_doubles import UNET
from keys import checkpoints
from torch import Tensor

from lorakit.lora_ops.errors import ArgumentError, UnknownFormatError
from lorakit.lora_ops.files import MemoryFile
from lorakit.nodes.apply.patch_places import NO_CLIP, UNKNOWN
from lorakit.nodes.apply.patching import Matched, match, summary

FLUX = {UNET + key: tuple(shape) for key, shape in checkpoints.flux().items()}
QKV = f"{UNET}double_blocks.0.img_attn.qkv"
PROJ = f"{UNET}double_blocks.0.img_attn.proj"
CLIP = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
UP, DOWN = ".lora_up.weight", ".lora_down.weight"


def pair(name: str, out: int = 128, into: int = 128) -> dict[str, Tensor]:
    return {name + UP: torch.ones(out, 2), name + DOWN: torch.ones(2, into)}


def planned(
    tensors: Mapping[str, Tensor],
    encoders: Mapping[str, tuple[int, ...]] | None = None,
    **rules: Any,
) -> Matched:
    file = MemoryFile("lora", tensors)
    return match(file, host_doubles.models(FLUX, encoders), **rules)


def test_host_names_of_all_kinds_are_found() -> None:
    found = planned(pair(PROJ) | pair("lora_unet_double_blocks_0_img_attn_qkv", 384))
    assert found.names == {
        f"{PROJ}.weight": PROJ,
        f"{QKV}.weight": "lora_unet_double_blocks_0_img_attn_qkv",
    }
    assert found.missing == found.replaced == {}
    patch, strength = found.patches[f"{PROJ}.weight"]
    assert set(patch.tensors) == {UP, DOWN}
    assert strength == 1


def test_names_of_diffusers_become_rows_by_our_tables() -> None:
    names = [f"base_model.model.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    found = planned({key: one for name in names for key, one in pair(name).items()})
    assert found.names == {
        (f"{QKV}.weight", (0, 128 * i, 128)): name for i, name in enumerate(names)
    }
    assert found.missing == {}


def test_a_bias_beside_rows_is_of_the_same_rows() -> None:
    name = "transformer.transformer_blocks.0.attn.to_v"
    found = planned(pair(name) | {f"{name}.diff_b": torch.ones(128)})
    assert found.names == {
        (f"{QKV}.weight", (0, 256, 128)): name,
        (f"{QKV}.bias", (0, 256, 128)): f"{name}.bias",
    }


def test_a_modulation_that_diffusers_has_the_other_way_round_is_swapped() -> None:
    found = planned(pair("transformer.norm_out.linear", 256))
    ((key, rows, function),) = found.names
    assert key == f"{UNET}final_layer.adaLN_modulation.1.weight"
    assert rows is None
    assert torch.equal(function(torch.arange(4)), torch.tensor([2, 3, 0, 1]))


def test_the_host_comes_first_in_the_order_that_decides() -> None:
    """Of all names of a weight the host's last holds; ours only where the host has none."""
    flat = "lora_unet_double_blocks_0_img_attn_proj"
    ours = "base_model.model.transformer_blocks.0.attn.to_out.0"
    for names in ((PROJ, flat, ours), (ours, flat, PROJ)):
        found = planned({key: one for name in names for key, one in pair(name).items()})
        assert found.names == {f"{PROJ}.weight": PROJ}
        assert found.replaced == {ours: flat, flat: PROJ}


def test_each_layer_left_has_its_reason() -> None:
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    tensors = pair(PROJ) | pair(f"{UNET}nowhere") | pair(text) | pair(QKV, 383)
    found = planned(tensors | {"odd": torch.ones(1)})
    assert found.missing == {
        f"{UNET}nowhere": UNKNOWN,
        text: NO_CLIP,
        QKV: "changes a weight of shape 383x128, this model's is 384x128",
    }
    assert found.extras == ("odd",)
    assert list(found.names.values()) == [PROJ]


def test_rows_that_the_model_does_not_have_are_no_place() -> None:
    models = host_doubles.models(FLUX)
    odd = {**models.places, "odd": (f"{QKV}.weight", (0, 300, 128))}
    found = match(MemoryFile("lora", pair("odd")), dataclasses.replace(models, places=odd))
    assert found.missing == {"odd": UNKNOWN}


def test_no_two_reasons_are_listed_for_each_of_many_shapes() -> None:
    tensors = {
        key: one
        for index, name in enumerate(key for key in FLUX if key.endswith("mlp.0.weight"))
        for key, one in pair(name.removesuffix(".weight"), 3 + index).items()
    }
    found = planned(pair(PROJ) | tensors)
    found.missing |= {f"layer {index}": f"reason {index}" for index in range(20)}
    listed = list(summary(found))
    assert len(listed) == 5
    assert sum(len(names) for _, names in listed) == len(found.missing)
    assert listed[-1][0].endswith("; or the like")


def test_strengths_group_what_is_patched_and_none_is_left_out() -> None:
    shapes = {f"{CLIP}.weight": (512, 128)}
    tensors = pair(PROJ) | pair(QKV, 384) | pair(f"text_encoders.{CLIP}", 512)
    found = planned(tensors, shapes, where=["qkv=0.5", "te=0"])
    assert {s: list(group) for s, group in found.groups(FLUX, 2.0).items()} == {
        2.0: [f"{PROJ}.weight"],
        1.0: [f"{QKV}.weight"],
    }
    assert found.groups(shapes, 1.0) == {}, "at strength 0"
    assert found.groups(FLUX, 0.0) == {}
    with pytest.raises(ArgumentError, match="fits none of 3 layers"):
        planned(tensors, shapes, where=["nothing=1"])


def test_layers_are_handed_on_as_they_are() -> None:
    tensors = pair(PROJ)
    found = planned(tensors)
    patch, _ = found.patches[f"{PROJ}.weight"]
    assert patch.tensors[UP] is tensors[PROJ + UP]
    assert patch.tensors[DOWN] is tensors[PROJ + DOWN]


def test_what_the_host_makes_no_patch_of_is_told() -> None:
    gains = {f"{PROJ}.weight": torch.ones(128), f"{PROJ}.on_input": torch.tensor(0)}
    models = host_doubles.models(FLUX)

    def refuses(*_: object) -> dict[Any, Any]:
        return {}

    found = match(MemoryFile("lora", gains), dataclasses.replace(models, make=refuses))
    assert found.missing == {PROJ: "ComfyUI has no patch for IA3; bake it instead"}
    assert found.patches == {}


def test_a_checkpoint_is_no_adapter() -> None:
    with pytest.raises(UnknownFormatError):
        planned({key: torch.zeros(shape) for key, shape in FLUX.items()})
