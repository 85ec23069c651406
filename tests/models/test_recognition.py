"""Which model an adapter is for: every model at its true sizes, whole or in part, under every naming."""

from __future__ import annotations

import re

import comfy_host
import pytest
import torch
from keys import checkpoints
from keys.published import DATA, expanded

from lorakit.lora_ops import DictSource, describe
from lorakit.lora_ops.adapters.formats import flat_name
from lorakit.lora_ops.inspect.lint import lint
from lorakit.lora_ops.models.architectures import ARCHITECTURES, recognise_layers

TITLES = {one.name: one.title for one in ARCHITECTURES}


def weights(shapes):
    return {
        key.removesuffix(".weight"): tuple(shape)
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) > 1
    }


UNETS = {
    "sd1": checkpoints.sd1_unet(),
    "sd2": checkpoints.sd2_unet(),
    "sdxl": checkpoints.sdxl_unet(),
    "sdxl_refiner": checkpoints.unet(
        1280, [0, 4, 4, 0], middle=4, width=384, linear=True, label=2560, mults=[1, 2, 4, 4]
    ),
    "koala": checkpoints.unet(
        2048, [0, 2, 6], middle=6, blocks=1, linear=True, label=2816, mults=[1, 2, 4]
    ),
    # It has nothing in the middle.
    "bk_sdm": {
        name: shape
        for name, shape in checkpoints.unet(768, [1, 1, 1, 0], blocks=1, mults=[1, 2, 4, 4]).items()
        if not name.startswith("middle_block.")
    },
}
# Label, our name, prefix, shapes by module.
MODELS = [
    *((label, label.partition(":")[0], "diffusion_model.", expanded(rows))
      for label, rows in DATA["comfyui"].items()),
    *((name, name, "diffusion_model.", weights(shapes)) for name, shapes in UNETS.items()),
    *((label, name, "transformer.", expanded(rows))
      for label, (name, rows) in DATA["diffusers"].items()),
]  # fmt: skip
ATTENTION = re.compile(r"attn|attention|to_[qkv]|qkv|\.[qkv]$")
DOUBLE = re.compile(r"^(double|joint|visual_|(joint_)?transformer_blocks)")
# All of whose modules another has, of the same shapes; and one whose own ends are in no table.
SAME = ("cosmos", "cosmos:14b", "HeliosTransformer3DModel", "WanTransformer3DModel")
UNKNOWN = ("MiniMaxMusic3Transformer1DModel",)


def parts(shapes):
    """Subsets that people train: all, attention only, one kind of block, each block alone."""
    blocks = {name: one for name, one in shapes.items() if re.search(r"\.\d+\.", name)}
    attention = {name: one for name, one in blocks.items() if ATTENTION.search(name)}
    double = {name: one for name, one in shapes.items() if DOUBLE.match(name)}
    yield "all", shapes
    yield "blocks", blocks
    yield "attention", attention
    yield "double", double
    yield "double attention", {name: one for name, one in double.items() if name in attention}
    yield "single", {name: one for name, one in shapes.items() if name.startswith("single")}
    alone = {}
    for name, one in blocks.items():
        unet = name.startswith(("input_blocks", "output_blocks"))
        block = ".".join(name.split(".")[:3]) if unet else re.match(r".*?\.\d+", name)[0]
        alone.setdefault(block, {})[name] = one
    chosen = list(alone)
    for block in dict.fromkeys((*chosen[:3], *chosen[len(chosen) // 2 :][:2], *chosen[-2:])):
        yield f"block {block}", alone[block]


def family(name):
    return "flux" if name == "flux_schnell" else name


@pytest.mark.parametrize(
    ("label", "name", "prefix", "shapes"), MODELS, ids=[one[0] for one in MODELS]
)
def test_the_right_model_or_none(label, name, prefix, shapes):
    for part, some in parts(shapes):
        if not some:
            continue
        dotted = {flat_name(prefix + module): shape for module, shape in some.items()}
        flat = {
            flat_name(f"lora_unet_{module.replace('.', '_')}"): shape
            for module, shape in some.items()
        }
        found, again = recognise_layers(dotted), recognise_layers(flat)
        assert found == again, part
        names = [family(one.name) for one in found.possible]
        # A part of a pruned UNet is taken for one of the whole.
        right = {family(name), next(one.variant_of for one in ARCHITECTURES if one.name == name)}
        assert found.certain is None or family(found.certain.name) in right, (part, names)
        assert not names or right & {*names}, (part, names)
        if part == "all" and label not in (*SAME, *UNKNOWN):
            assert found.certain is not None, names


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


def test_the_names_are_those_of_comfyuis_classes(host):
    theirs = host.ask("published_names", DATA["arguments"])
    assert theirs.keys() == DATA["comfyui"].keys()
    for label, rows in DATA["comfyui"].items():
        assert {name: list(one) for name, one in expanded(rows).items()} == theirs[label], label


def adapter(shapes, prefix="diffusion_model.", rank=2):
    """A file of these layers, without data."""
    found = {}
    for module, (out, into, *_) in shapes.items():
        found[f"{prefix}{module}.lora_B.weight"] = torch.empty((out, rank), device="meta")
        found[f"{prefix}{module}.lora_A.weight"] = torch.empty((rank, into), device="meta")
    return DictSource(found, {}, "lora.safetensors")


SHOWN = [
    one
    for one in MODELS
    if one[0]
    in (
        *("flux", "cogvideox", "joyimage", "sd3", "lumina2", "ernie"),
        *("CogVideoXTransformer3DModel", "FluxTransformer2DModel", "Krea2Transformer2DModel"),
    )
]


@pytest.mark.parametrize(
    ("label", "name", "prefix", "shapes"), SHOWN, ids=[one[0] for one in SHOWN]
)
def test_info_and_lint_say_the_same(label, name, prefix, shapes):
    for part, some in parts(shapes):
        if part in ("attention", "double attention") and some:
            file = adapter(some, prefix)
            told, checked = describe(file), lint(file, ["comfy"], headers_only=True)
            assert (told.architecture, told.possible) == (checked.architecture, checked.possible)
            assert told.architecture in (None, TITLES[name])


def test_a_doubt_is_said():
    shapes = expanded(DATA["comfyui"]["chroma"])
    file = adapter({name: one for name, one in shapes.items() if "_attn." in name})
    told = describe(file)
    assert told.architecture is None
    assert told.possible[:2] == ("Flux.1", "Chroma")


def test_names_of_no_model_are_of_none():
    """As of a model that no table has: the names of one, at a width that it does not have."""
    shapes = expanded(DATA["comfyui"]["lumina2"])
    some = {name: one for name, one in shapes.items() if name.startswith("layers.")}
    assert describe(adapter(some)).architecture == "Lumina 2"
    wider = {name: (out + 256, into + 256) for name, (out, into) in some.items()}
    assert describe(adapter(wider)).architecture is None
    assert describe(adapter(wider)).possible == ()
