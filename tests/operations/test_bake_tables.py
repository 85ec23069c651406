"""Bake, verify and base weights under another program's names: rows of fused weights, swapped halves."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import comfy_host
import pytest
import torch
from baking import adapter, is_rounded_once, randn, thin
from keys.models import HOSTED
from kinds import change as meant
from kinds import kinds, numbers
from oracles import change
from safetensors.torch import load_file, save_file
from test_renames import ROWS, adapter_of, tensors_of

from lorakit.lora_ops import DictSource, verify
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.errors import TargetMismatchError, UnsupportedLayerError, WeightShapeError
from lorakit.lora_ops.models.architectures import UNET, architecture_named, module_renames
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.resize.importance import importance

WIDE = 6
PREFIXES = {
    "diffusers": "transformer.{}",
    "peft": "base_model.model.{}",
    "kohya": "lora_transformer_{}",
}
NAMES = [name for name in ROWS if name not in ("cosmos", "hidream")]  # these have one name for all
# What tells models of one family apart in a whole checkpoint.
MARKS = {
    "ltxv": "adaln_single.emb.timestep_embedder.linear_1.bias",
    "z_image": "cap_pad_token",
    "lumina2": "noise_refiner.0.attention.k_norm.weight",
}
QKV = f"{UNET}double_blocks.0.img_attn.qkv"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]


def small(name):
    """Rows by diffusers' module: native module, the runs of rows in it in order, and its height."""
    edges = {
        edge for _, runs, height in ROWS[name].values() for run in runs for edge in (*run, height)
    }
    unit = math.gcd(*edges)
    return {
        foreign: (native, [[n // unit for n in run] for run in runs], height // unit)
        for foreign, (native, runs, height) in ROWS[name].items()
    }


def flux(width=8):
    """A Flux, small: what its names say, and halves that can be told by their shape."""
    shapes = {
        "double_blocks.0.img_attn.qkv": (3 * width, width),
        "double_blocks.0.txt_attn.qkv": (3 * width, width),
        "double_blocks.0.img_mod.lin": (6 * width, width),
        "single_blocks.0.linear1": (7 * width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "vector_in.in_layer": (width, width),
        "guidance_in.in_layer": (width, width),
        "txt_in": (width, width),
        "img_in": (width, width),
    }
    return {
        f"{name}.weight": randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("format", PREFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_every_row_lands_where_diffusers_own_conversion_has_it(name, format):
    rows = small(name)
    halves = {native for native, runs, _ in rows.values() if len(runs) == 2}
    widths = {
        native: height // 2 if native in halves else WIDE for native, _, height in rows.values()
    }
    heights = {native: height for native, _, height in rows.values()}
    base = {
        f"{native}.weight": randn(height, widths[native], seed=index)
        for index, (native, height) in enumerate(heights.items())
    }
    base |= {MARKS[one]: randn(1, 1) for one in MARKS if one == name}
    expected = {key: one.double() for key, one in base.items()}
    lora = {}
    for index, (foreign, (native, runs, _)) in enumerate(rows.items()):
        spelled = foreign.replace(".", "_") if format == "kohya" else foreign
        module = PREFIXES[format].format(spelled)
        height = sum(stop - start for start, stop in runs)
        lora |= thin(module, (height, widths[native]), seed=100 + 2 * index)
        up, down = (lora[f"{module}.lora_{x}.weight"] for x in "BA")
        delta, at = 0.5 * change(up, down, None), 0
        for start, stop in runs:
            expected[f"{native}.weight"][start:stop] += delta[at : at + stop - start]
            at += stop - start
    checkpoint = DictSource({f"model.diffusion_model.{key}": one for key, one in base.items()})
    baked, report = bake(checkpoint, [adapter(lora, 0.5)])
    for key, exact in expected.items():
        assert is_rounded_once(baked[f"model.diffusion_model.{key}"], exact), key
    assert {layer.target for layer in report.layers} == {UNET + native for native in heights}
    tuned = DictSource({f"model.diffusion_model.{k}": one.float() for k, one in expected.items()})
    found = verify(checkpoint, tuned, DictSource(lora), strength=0.5)
    assert found.error < 1e-5
    assert not [skip for skip in found.skips if skip.norm]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*NAMES, "pixart", "qwen_image"])
def test_it_is_the_bake_of_the_converted_file_bit_by_bit(name, dtype):
    architecture = architecture_named(name)
    table = module_renames(architecture)
    parts = {
        native: table.foreign_parts(native)
        for native in (one.native.format(*"0000") for one in architecture.packings)
    }
    heights = {native: 12 * math.lcm(*(at.stop.denominator for _, at in found))
               for native, found in parts.items()}  # fmt: skip
    # The first part is a square, as that of a model is.
    widths = {native: int(heights[native] * (Fraction(1, 2) if found[0][1].swapped else found[0][1].stop))
              for native, found in parts.items()}  # fmt: skip
    base = {f"{native}.weight": randn(heights[native], widths[native], seed=5) for native in parts}
    base = {MARKS[one]: randn(1, 1) for one in MARKS if one == name} | base
    base = {f"model.diffusion_model.{key}": tensor.to(dtype) for key, tensor in base.items()}
    lora = {}
    for native, (foreign, at) in ((key, one) for key, found in parts.items() for one in found):
        module = f"{architecture.diffusers}{foreign}"
        shape = (int((at.stop - at.start) * heights[native]), widths[native])
        lora |= thin(module, shape, seed=len(lora), rank=4)
        lora[f"{module}.alpha"] = torch.tensor(2.0)
    converted, _ = convert(decode(DictSource(lora)), "comfy", architecture=architecture)
    one, other = (
        bake(DictSource(base), [adapter(file, 0.75)])[0] for file in (lora, tensors_of(converted))
    )
    assert all(torch.equal(one[key], other[key]) for key in base)
    assert all(not torch.equal(one[key], tensor) for key, tensor in base.items() if len(tensor) > 1)


@pytest.mark.parametrize("name", [one for one in kinds("linear") if one != "ia3"])
def test_every_kind_changes_its_rows_alone(name):
    """Also those that no file can hold joined: a LoKr of the keys is none of queries and values."""
    base = flux(width=8) | {"double_blocks.0.img_attn.qkv.weight": numbers(24, 6, seed=99)}
    layer = {f"{PARTS[1]}.{suffix}": one for suffix, one in kinds("linear")[name].items()}
    baked, report = bake(DictSource(base), [adapter(layer)])
    weight = base["double_blocks.0.img_attn.qkv.weight"]
    expected = weight.double().clone()
    expected[8:16] += torch.from_numpy(meant(kinds("linear")[name], weight[8:16]))
    found = baked["double_blocks.0.img_attn.qkv.weight"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[:8], weight[:8])
    assert [one.target for one in report.layers] == [QKV]
    assert report.notes == ()


def test_unbake_takes_it_out_again():
    base = flux()
    lora = thin(PARTS[0], (8, 8), rank=2) | thin("transformer.norm_out.linear", (16, 8), rank=2)
    there, _ = bake(DictSource(base), [adapter(lora)], dtype=torch.float64)
    back, _ = bake(DictSource(there), [adapter(lora)], sign=-1)
    for key, tensor in base.items():
        torch.testing.assert_close(back[key].float(), tensor, rtol=1e-6, atol=1e-6)
    assert not torch.equal(there["double_blocks.0.img_attn.qkv.weight"].float(),
                           base["double_blocks.0.img_attn.qkv.weight"])  # fmt: skip


def test_halves_are_swapped_in_biases_and_in_modulations_of_two_parts_alone():
    base = {
        "joint_blocks.0.context_block.adaLN_modulation.1.weight": randn(48, 8),
        "joint_blocks.1.context_block.adaLN_modulation.1.weight": randn(16, 8),
        "joint_blocks.1.context_block.adaLN_modulation.1.bias": randn(16),
        "joint_blocks.0.context_block.attn.qkv.weight": randn(24, 8),
        "context_embedder.weight": randn(8, 8),
    }
    lora = {}
    for number, height in ((0, 48), (1, 16)):
        module = f"transformer.transformer_blocks.{number}.norm1_context.linear"
        lora |= thin(module, (height, 8))
    lora["transformer.transformer_blocks.1.norm1_context.linear.diff_b"] = torch.arange(16.0)
    source = DictSource({f"model.diffusion_model.{key}": one for key, one in base.items()})
    baked, _ = bake(source, [adapter(lora)])
    for number in (0, 1):
        module = f"transformer.transformer_blocks.{number}.norm1_context.linear"
        delta = change(*(lora[f"{module}.lora_{x}.weight"] for x in "BA"), None)
        if number:
            delta = torch.cat([delta[8:], delta[:8]])
        name = f"joint_blocks.{number}.context_block.adaLN_modulation.1"
        assert is_rounded_once(
            baked[f"model.diffusion_model.{name}.weight"], base[f"{name}.weight"].double() + delta
        )
    bias = "joint_blocks.1.context_block.adaLN_modulation.1.bias"
    moved = baked[f"model.diffusion_model.{bias}"] - base[bias]
    expected = torch.cat([torch.arange(8.0, 16), torch.arange(8.0)])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused():
    base = DictSource(flux(), name="flux.safetensors")
    twice = thin(PARTS[0], (8, 8)) | thin(QKV, (24, 8))
    with pytest.raises(TargetMismatchError, match=r"to_q`.*qkv` of lora all mean"):
        bake(base, [adapter(twice)])
    with pytest.raises(WeightShapeError, match=r"weight of shape \(16, 8\).*is \(8, 8\)"):
        bake(base, [adapter(thin(PARTS[0], (16, 8)))])
    with pytest.raises(TargetMismatchError, match="1 of 2 layers of lora are not in flux"):
        bake(base, [adapter(thin(PARTS[0], (8, 8)) | thin("transformer.what.is", (8, 8)))])
    layers = kinds("linear")["oft"]
    with pytest.raises(UnsupportedLayerError, match="cannot be taken out again"):
        bake(base, [adapter({f"{PARTS[0]}.{k}": one for k, one in layers.items()})], sign=-1)


def test_a_weight_under_two_names_of_one_file_does_not_verify_either():
    base, tuned = flux(), flux()
    tuned["double_blocks.0.img_attn.qkv.weight"] = randn(24, 8, seed=77)
    twice = thin(PARTS[0], (8, 8)) | thin(QKV, (24, 8))
    with pytest.raises(TargetMismatchError, match="all mean"):
        verify(DictSource(base), DictSource(tuned), DictSource(twice))


def test_weights_to_compare_with_are_the_rows_that_a_layer_changes():
    base = flux()
    found = importance([*PARTS, "transformer.norm_out.linear"], DictSource(base), "frobenius")
    qkv = base["double_blocks.0.img_attn.qkv.weight"].double()
    for index, module in enumerate(PARTS):
        rows = qkv[8 * index : 8 * index + 8]
        assert found[module] == pytest.approx(1 / float(rows.norm()), rel=1e-6)
    whole = base["final_layer.adaLN_modulation.1.weight"].double()
    assert found["transformer.norm_out.linear"] == pytest.approx(1 / float(whole.norm()), rel=1e-6)


@pytest.mark.parametrize("module", [PARTS[2], "transformer.norm_out.linear"])
def test_a_layer_that_is_made_from_rows_becomes_a_lora_of_them(module):
    base = flux(width=6) | {"double_blocks.0.img_attn.qkv.weight": numbers(24, 6, seed=99)}
    height = 8 if module == PARTS[2] else 12
    own = {"lora_B.weight": numbers(height, 2), "lora_A.weight": numbers(2, 6)}
    own["dora_scale"] = 1 + numbers(height, 1).abs()
    lora = decode(DictSource({f"{module}.{suffix}": one for suffix, one in own.items()}))
    result, _ = convert(lora, to="lora", base=DictSource(base), rule=64)
    weight = base["double_blocks.0.img_attn.qkv.weight"][16:]
    if module != PARTS[2]:
        weight = torch.cat(base["final_layer.adaLN_modulation.1.weight"].chunk(2)[::-1])
    spelled = {"lora_up.weight": own["lora_B.weight"], "lora_down.weight": own["lora_A.weight"]}
    expected = meant(spelled | {"dora_scale": own["dora_scale"]}, weight)
    torch.testing.assert_close(
        result.layers[module].delta().double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4
    )


# --- the host's own


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as comfy:
        yield comfy


@pytest.mark.parametrize("name", [one for one in HOSTED if "diffusers" in HOSTED[one].formats])
def test_comfyui_makes_the_same_weights_of_diffusers_names(host, name, tmp_path):
    hosted = HOSTED[name]
    shapes = host.ask("lora_names", {**hosted.question(), "files": {}})["shapes"]
    named = adapter_of(hosted.architecture, shapes, hosted.unread)
    lora = tensors_of(convert(named, "diffusers", architecture=architecture_named(name))[0])
    files = [str(tmp_path / "lora.safetensors"), str(tmp_path / "out.safetensors")]
    save_file(lora, files[0])
    host.ask("lora_names", {**hosted.question(), "files": {"it": files}})
    theirs = load_file(Path(files[1]))
    base = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    baked, _ = bake(DictSource(base), [adapter(lora)])
    changed = {UNET + key for key, one in baked.items() if bool(one.any())}
    assert changed == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(baked[key.removeprefix(UNET)], tensor, rtol=1e-4, atol=1e-5)
