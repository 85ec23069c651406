"""Checkpoints under diffusers' names are read as native ones, by every table."""

from __future__ import annotations

import pytest
import torch
from namings import TRANSLATED, both

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.errors import TargetMismatchError
from lorakit.lora_ops.models.architectures import (
    UNET,
    architecture_named,
    detect,
    own_parameters,
    parameters,
)
from lorakit.lora_ops.models.differences import Sides, change_norm, read_parameter
from lorakit.lora_ops.models.pairing import pair

FLUX = architecture_named("flux")
QKV = f"{UNET}double_blocks.0.img_attn.qkv.weight"


def named(one):
    return one.name


@pytest.mark.parametrize("architecture", TRANSLATED, ids=named)
def test_both_names_lead_to_the_same_numbers(architecture):
    native, foreign = both(architecture)
    assert native.keys().isdisjoint(foreign)
    source = DictSource(foreign)
    found = parameters(source)
    assert set(found) == set(native)
    for name, one in found.items():
        assert one.shape == native[name].shape, name
        assert torch.equal(read_parameter(source, one), native[name]), name
    assert {key for one in found.values() for key in one.keys} == set(foreign)


@pytest.mark.parametrize("architecture", TRANSLATED, ids=named)
def test_they_pair_without_a_difference(architecture):
    native, foreign = both(architecture)
    sides = Sides(DictSource(native), DictSource(foreign))
    for one, other in ((sides.base, sides.tuned), (sides.tuned, sides.base)):
        found = pair(one, other)
        assert (found.only_base, found.only_tuned, found.reshaped, found.others) == ((),) * 4
        pairs = (*found.candidates, *found.rest)
        assert len(pairs) == len(native)
        assert not any(change_norm(Sides(one, other), both) for both in pairs)


def test_a_difference_is_found_where_it_is():
    native, foreign = both(FLUX)
    key = "transformer.transformer_blocks.0.attn.to_k.weight"
    tuned = foreign | {key: foreign[key] + 1}
    sides = Sides(DictSource(native), DictSource(tuned))
    found = pair(sides.base, sides.tuned)
    changed = {one.name: change_norm(sides, one) for one in found.candidates}
    assert changed.pop(QKV) == pytest.approx(foreign[key].numel() ** 0.5)
    assert not any(changed.values())


@pytest.mark.parametrize("lost", ["to_k", "proj_mlp"])
def test_a_model_that_lacks_a_part_keeps_its_names(lost):
    native, foreign = both(FLUX)
    left = {key: one for key, one in foreign.items() if f".{lost}." not in key}
    source = DictSource(left, name="hub")
    assert set(parameters(source)) == set(own_parameters(source)) == set(left)
    with pytest.raises(TargetMismatchError, match="hub has diffusers names"):
        pair(DictSource(native), source)


def test_parts_of_other_widths_are_not_joined():
    _, foreign = both(FLUX)
    key = "transformer.transformer_blocks.0.attn.to_k.weight"
    assert set(parameters(DictSource(foreign | {key: torch.zeros(8, 5)}))) == set(foreign)


def test_what_no_table_has_stays_beside_it():
    native, foreign = both(FLUX)
    more = {"transformer.brand.new.weight": torch.zeros(2, 2)}
    assert set(parameters(DictSource(foreign | more))) == {*native, *more}


def test_the_file_has_its_own_names():
    _, foreign = both(FLUX)
    source = DictSource(foreign)
    own = own_parameters(source)
    assert {one.key for one in own.values()} == set(foreign)
    assert not any(one.pieces for one in own.values())
    assert detect(own) is detect(parameters(source)) is FLUX


def test_modulations_of_more_than_shift_and_scale_are_not_turned():
    """SD3's last block has two parts of the context's modulation, which diffusers has turned."""
    _, foreign = both(architecture_named("sd3"))
    for parts, swapped in ((2, True), (6, False)):
        key = "transformer.transformer_blocks.0.norm1_context.linear.weight"
        weight = torch.arange(parts * 16.0).reshape(parts * 4, 4)
        source = DictSource(foreign | {key: weight})
        one = parameters(source)[f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.weight"]
        expected = torch.cat(weight.chunk(2)[::-1]) if swapped else weight
        assert torch.equal(read_parameter(source, one), expected)


def test_a_vae():
    """Levels of the way up are numbered from the other end; attention is linear in diffusers."""
    names = {
        "decoder.conv_in.weight": "decoder.conv_in.weight",
        "decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
        "decoder.mid_block.attentions.0.to_q.weight": "decoder.mid.attn_1.q.weight",
        "decoder.mid_block.attentions.0.to_out.0.bias": "decoder.mid.attn_1.proj_out.bias",
        "decoder.mid_block.resnets.1.conv2.weight": "decoder.mid.block_2.conv2.weight",
        "decoder.up_blocks.0.resnets.2.norm1.weight": "decoder.up.2.block.2.norm1.weight",
        "decoder.up_blocks.1.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": "decoder.up.0.block.0.nin_shortcut.weight",
        "encoder.down_blocks.1.downsamplers.0.conv.weight": "encoder.down.1.downsample.conv.weight",
        "encoder.conv_norm_out.weight": "encoder.norm_out.weight",
    }
    tensors = {f"vae.{name}": torch.rand(4) for name in names}
    linear = "vae.decoder.mid_block.attentions.0.to_q.weight"
    tensors[linear] = torch.rand(4, 4)
    source = DictSource(tensors)
    found = parameters(source)
    assert {one.key: name for name, one in found.items()} == {
        f"vae.{name}": f"vae.{native}" for name, native in names.items()
    }
    query = read_parameter(source, found["vae.decoder.mid.attn_1.q.weight"])
    assert torch.equal(query, tensors[linear][..., None, None])
