"""The tables of names: against diffusers' own conversions, ComfyUI's key maps, and kohya's scripts."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import comfy_host
import pytest
import torch
from commands import KEYS
from keys import checkpoints, comfyui
from keys.models import HOSTED
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import (
    COMFY,
    DIFFUSERS,
    KOHYA,
    PEFT,
    decode,
    encode_layer,
    model_names,
)
from lorakit.lora_ops.models.architectures import (
    ARCHITECTURES,
    ENCODERS,
    UNET,
    Packing,
    architecture_named,
    module_renames,
    parameters,
)
from lorakit.lora_ops.operations.convert.convert import convert

ROWS = json.loads((KEYS / "diffusers_rows.json").read_text("utf-8"))
KOHYA_NAMES = json.loads((KEYS / "kohya_names.json").read_text("utf-8"))
TABLED = [one for one in ARCHITECTURES if one.packings]
WHOLE = (Fraction(0), Fraction(1))


def named(architectures):
    return pytest.mark.parametrize("architecture", architectures, ids=lambda one: one.name)


def numbered(name, first=3):
    """A pattern with a different number in each place."""
    numbers = iter(range(first, 99))
    return re.sub(r"\{\}", lambda _: str(next(numbers)), name)


def span(place):
    return place.start, place.stop


# --- the data


@named(TABLED)
def test_no_name_means_two_things(architecture):
    """Found by either name, dotted or not, every module is where its own packing says."""
    table = module_renames(architecture)
    for packing in architecture.packings:
        native = numbered(packing.native)
        assert table.find(native).native == native
        for name, (start, stop) in zip(packing.foreign, packing.spans, strict=True):
            for spelling in {numbered(name), numbered(name).replace(".", "_")} - {""}:
                found = table.find(spelling)
                assert found.native == native
                assert span(found) == (start, stop)


@named(TABLED)
def test_what_is_written_covers_each_module_and_is_found_again(architecture):
    table = module_renames(architecture)
    for native in {numbered(packing.native) for packing in architecture.packings}:
        parts = table.foreign_parts(native)
        assert all(name for name, _ in parts)
        edges = [edge for _, at in parts for edge in (at.start, at.stop)]
        assert edges[0] == 0
        assert edges[-1] == 1
        assert edges[1:-1:2] == edges[2::2]
        for name, at in parts:
            found = table.find(name)
            assert (found.native, *span(found)) == (native, *span(at))


@named(TABLED)
def test_both_names_have_as_many_numbers(architecture):
    for packing in architecture.packings:
        for name in packing.foreign:
            assert not name or name.count("{}") == packing.native.count("{}"), packing


def test_a_packing_knows_its_rows():
    assert Packing("a", ("b", "c")).spans == ((0, Fraction(1, 2)), (Fraction(1, 2), 1))
    edges = [float(stop * 7) for _, stop in Packing("a", tuple("bcde"), (1, 1, 1, 4)).spans]
    assert edges == [1, 2, 3, 7]


def test_an_unknown_name_is_in_no_table():
    table = module_renames(architecture_named("flux"))
    assert table.find("double_blocks.0.img_attn.unknown") is None
    assert table.find("double_blocks.x.img_attn.qkv") is None
    assert table.foreign_parts("unknown") == ()
    assert module_renames(None).find("double_blocks.0.img_attn.qkv") is None


# --- diffusers: what its conversions of single files do, noted once


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_those_of_diffusers_own_conversion(name):
    table = module_renames(architecture_named(name))
    for foreign, (native, runs, height) in ROWS[name].items():
        found = table.find(foreign)
        assert found is not None, foreign
        assert found.native == native
        if len(runs) == 2:  # the second half stands first
            assert runs == [[height // 2, height], [0, height // 2]]
            assert found.swapped
            runs = [[0, height]]
        else:
            assert not found.swapped or foreign.endswith("norm1_context.linear")
        assert [[found.start * height, found.stop * height]] == runs


@pytest.mark.parametrize("name", ROWS)
def test_what_is_written_for_diffusers_is_what_it_has(name):
    names = model_names(architecture_named(name))
    unadapted = architecture_named(name).unadapted or "(?!)"  # refused: PEFT cannot load it
    rows = {
        foreign: native
        for foreign, (native, _, _) in ROWS[name].items()
        if not re.search(unadapted, native)
    }
    written = [one for n in {*rows.values()} for one, _ in names.spelled(DIFFUSERS, UNET + n)]
    assert sorted(written) == sorted(f"transformer.{foreign}" for foreign in rows)


def test_equal_parts_of_linear1_would_be_other_rows():
    """The faulty variant of many converters: four parts of one height."""
    equal = Packing("single_blocks.{}.linear1", ("q", "k", "v", "mlp"))
    rows = ROWS["flux"]["single_transformer_blocks.0.proj_mlp"][1][0]
    assert [int(edge * 21504) for edge in equal.spans[3]] != rows


# --- kohya: names of sd-scripts' own networks, noted once


@pytest.mark.parametrize(("model", "name"), [("sd15", "sd1"), ("sdxl", "sdxl"), ("flux", "flux")])
def test_names_of_kohyas_networks_are_found_and_written(model, name):
    names = model_names(architecture_named(name))
    for module in KOHYA_NAMES[model]:
        place = names.place(module)
        assert place is not None, module
        assert "." in place.native.removeprefix(UNET)
        assert [one for one, _ in names.spelled(KOHYA, place.native)] == [module]


@pytest.mark.parametrize(("model", "build"), [("sd15", "sd1"), ("sdxl", "sdxl")])
def test_names_of_kohyas_networks_are_modules_of_the_checkpoint(model, build):
    targets = {
        one.target for one in parameters(checkpoints.source(getattr(checkpoints, build)())).values()
    }
    names = model_names(architecture_named(build))
    unet = [module for module in KOHYA_NAMES[model] if module.startswith("lora_unet_")]
    assert {names.place(module).native for module in unet} <= targets


# --- ComfyUI: what its key maps accept


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


def adapter_of(name, shapes, unread):
    """Layers on each kind of module of a model: fused, swapped, renamed; of different scales."""
    table = module_renames(architecture_named(name))
    unadapted = architecture_named(name).unadapted or "(?!)"
    weights = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight")
        and len(shape) == 2
        and not re.search(unread, key)
        and not re.search(unadapted, key.removesuffix(".weight"))
        and table.foreign_parts(key.removesuffix(".weight"))
    }
    parts = {module: table.foreign_parts(module) for module in weights}
    chosen = [m for m, found in parts.items() if len(found) > 1 or found[0][1].swapped]
    small = [m for m in parts if m not in chosen and weights[m][0] * weights[m][1] < 1 << 20]
    chosen += small[:: max(1, len(small) // 5)]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index, module in enumerate(chosen[:20]):
        out, into = weights[module]
        tensors[f"{UNET}{module}.lora_B.weight"] = torch.randn((out, 4), generator=generator)
        tensors[f"{UNET}{module}.lora_A.weight"] = torch.randn((4, into), generator=generator)
        tensors[f"{UNET}{module}.alpha"] = torch.tensor(1.0 + index % 3)
    return decode(DictSource(tensors, {}, name="lora.safetensors"))


def tensors_of(adapter):
    format = {one.name: one for one in (KOHYA, COMFY, DIFFUSERS, PEFT)}[adapter.format]
    found = {}
    for target, layer in adapter.layers.items():
        found |= encode_layer(format, lambda name: name, target, layer)
    return {key: one.clone() for key, one in found.items()}


@pytest.mark.parametrize("name", HOSTED)
def test_every_name_that_comfyui_accepts_is_the_same_place(host, name):
    answer = host.ask("lora_names", {**HOSTED[name].question(), "files": {}})
    shapes, accepted = answer["shapes"], answer["names"]
    names = model_names(architecture_named(HOSTED[name].architecture))
    assert len(accepted) > len(shapes)
    for module, (target, rows, swapped) in accepted.items():
        if target.removeprefix(UNET) not in shapes or re.search(HOSTED[name].own, module):
            continue
        place = names.place(module)
        assert place is not None, module
        assert place.native == target.removesuffix(".weight"), module
        height = shapes[target.removeprefix(UNET)][0] if shapes[target.removeprefix(UNET)] else 1
        theirs = WHOLE if rows is None else (rows[1], rows[1] + rows[2])
        ours = span(place) if rows is None else (place.start * height, place.stop * height)
        assert ours == theirs, module
        shape = shapes[target.removeprefix(UNET)]
        two_parts = len(shape) < 2 or shape[0] == 2 * shape[1]
        assert (place.swapped and two_parts) == swapped, module


@pytest.mark.parametrize("name", HOSTED)
def test_comfyui_applies_every_format_alike(host, name, tmp_path):
    """Our comfy, kohya and diffusers output of one adapter change its weights as the adapter says."""
    question = HOSTED[name].question()
    shapes = host.ask("lora_names", {**question, "files": {}})["shapes"]
    adapter = adapter_of(HOSTED[name].architecture, shapes, HOSTED[name].unread)
    files = {}
    for format in HOSTED[name].formats:
        result, _ = convert(
            adapter, format, architecture=architecture_named(HOSTED[name].architecture)
        )
        files[format] = [str(tmp_path / f"{format}.safetensors"), str(tmp_path / f"{format}.out")]
        save_file(tensors_of(result), files[format][0])
    answer = host.ask("lora_names", {**question, "files": files})
    assert answer["left"] == {format: [] for format in files}
    for format, (_, out) in files.items():
        changes = load_file(out)
        assert changes.keys() == {f"{target}.weight" for target in adapter.layers}, format
        for target, layer in adapter.layers.items():
            exact = layer.delta(torch.float64)
            error = (changes[f"{target}.weight"] - exact).norm() / exact.norm()
            assert error < 1e-5, (format, target)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_every_name_of_a_unet_that_comfyui_accepts_is_the_same_place(name):
    shapes = getattr(checkpoints, name)()
    maps = comfyui.ask(checkpoints={name: shapes})["checkpoints"][name]["maps"]
    names = model_names(architecture_named(name))
    held = {one.target: one.name for one in parameters(checkpoints.source(shapes)).values()}
    seen = 0
    for module, target in maps.items():
        ours = target.removesuffix(".weight")
        ours = ours if ours.startswith(UNET) else f"text_encoders.{ours}"
        if ours not in held:
            continue  # a block that this UNet does not have
        seen += 1
        assert names.place(module).native == ours, module
    assert seen > 1000


def test_encoders_are_told_by_the_names_of_their_layers():
    assert ENCODERS.find("encoder_block_3_layer_0_SelfAttention_q").native == (
        "encoder.block.3.layer.0.SelfAttention.q"
    )
    names = model_names(architecture_named("flux"))
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    for number in ("2", "3"):
        assert names.place(f"lora_te{number}_encoder_block_0_layer_0_SelfAttention_q").native == t5
    llm = names.place("lora_te_layers_0_self_attn_q_proj")
    assert llm.native == "text_encoders.transformer.model.layers.0.self_attn.q_proj"
    assert names.place("lora_te1_what_is_this") is None
