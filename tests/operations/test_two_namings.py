"""One checkpoint under native and under diffusers' names: every operation gives the same numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from baking import adapter, thin
from kinds import kinds, weight
from namings import TRANSLATED, both
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, extract, open_source, verify
from lorakit.lora_ops.models.architectures import UNET, architecture_named, parameters
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.resize.importance import importance

FLUX = architecture_named("flux")
QKV = f"{UNET}double_blocks.0.img_attn.qkv"
LINEAR1 = f"{UNET}single_blocks.0.linear1"
FINAL = f"{UNET}final_layer.adaLN_modulation.1"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]


def natively(tensors):
    source = DictSource(tensors)
    return {name: read_parameter(source, one) for name, one in parameters(source).items()}


def layers(native, size=0.1):
    """A layer for every matrix."""
    return {
        key: one
        for seed, (name, weight) in enumerate(native.items())
        if weight.ndim == 2 and name.endswith(".weight")
        for key, one in thin(name.removesuffix(".weight"), weight.shape, 2, seed, size).items()
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, one in expected.items():
        assert found[name].dtype == one.dtype
        assert torch.equal(found[name], one), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", TRANSLATED, ids=lambda one: one.name)
def test_a_bake_keeps_the_names_and_gives_the_same_numbers(architecture, dtype):
    native, foreign = both(architecture, dtype=dtype)
    lora = layers(native)
    expected, report = bake(DictSource(native), [adapter(lora, 0.7)])
    baked, other = bake(DictSource(foreign), [adapter(lora, 0.7)])
    assert list(baked) == list(foreign)
    assert_same(natively(baked), expected)
    norms = [math.hypot(*(layer.norm for layer in one.layers)) for one in (report, other)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert other.error == pytest.approx(report.error, rel=1e-4)
    assert any(not torch.equal(baked[key], foreign[key]) for key in foreign)


def test_a_layer_of_a_part_changes_that_part_alone():
    native, foreign = both(FLUX)
    lora = thin(PARTS[1], (8, 4), 2)
    expected, _ = bake(DictSource(native), [adapter(lora)])
    baked, report = bake(DictSource(foreign), [adapter(lora)])
    assert_same(natively(baked), expected)
    changed = [key for key in foreign if not torch.equal(baked[key], foreign[key])]
    assert changed == [f"{PARTS[1]}.weight"]
    assert [layer.target for layer in report.layers] == [PARTS[1]]


def test_a_swapped_modulation():
    """The file has its halves as diffusers does, the layer as either does."""
    native, foreign = both(FLUX)
    for name in (FINAL, "transformer.norm_out.linear"):
        lora = thin(name, (8, 4), 2)
        expected, _ = bake(DictSource(native), [adapter(lora)])
        baked, _ = bake(DictSource(foreign), [adapter(lora)])
        assert_same(natively(baked), expected)


@pytest.mark.parametrize("kind", kinds("linear"))
def test_every_kind_on_a_fused_weight(kind):
    """Some are made from all of the weight, also from rows that are in another tensor."""
    native, foreign = both(architecture_named("pixart"))
    fused, whole = f"{UNET}blocks.0.cross_attn.kv_linear", weight("linear")
    native[f"{fused}.weight"] = whole
    for part, rows in zip("kv", whole.chunk(2), strict=True):
        foreign[f"transformer.transformer_blocks.0.attn2.to_{part}.weight"] = rows
    lora = {f"{fused}.{role}": one for role, one in kinds("linear")[kind].items()}
    expected, _ = bake(DictSource(native), [adapter(lora, 0.5)])
    baked, _ = bake(DictSource(foreign), [adapter(lora, 0.5)])
    found = natively(baked)
    torch.testing.assert_close(found[f"{fused}.weight"], expected[f"{fused}.weight"])
    assert not torch.equal(expected[f"{fused}.weight"], whole)


def test_unbake_gives_the_checkpoint_back():
    native, foreign = both(FLUX, dtype=torch.float64)
    ingredients = [adapter(layers(native))]
    baked, _ = bake(DictSource(foreign), ingredients)
    back, _ = bake(DictSource(baked), ingredients, sign=-1)
    for key, one in foreign.items():
        torch.testing.assert_close(back[key], one)


@pytest.fixture(scope="module")
def tuned():
    native, _ = both(FLUX)
    generator = torch.Generator().manual_seed(9)
    return {
        key: one + 0.1 * torch.randn(one.shape, generator=generator) for key, one in native.items()
    }


def in_diffusers(native):
    """The numbers under diffusers' names, by reading which rows of which weight each is."""
    _, foreign = both(FLUX)
    made = dict(foreign)
    for name, one in parameters(DictSource(foreign)).items():
        for piece in one.pieces:
            rows = native[name][slice(*piece.rows)]
            made[piece.parameter.key] = torch.cat(rows.chunk(2)[::-1]) if piece.swapped else rows
        if not one.pieces:
            made[one.key] = native[name]
    return made


def test_extraction_gives_the_same_bytes(tuned):
    native, foreign = both(FLUX)
    theirs = in_diffusers(tuned)
    expected, _ = extract(DictSource(native), DictSource(tuned), "3")
    for base, other in ((native, theirs), (foreign, tuned), (foreign, theirs)):
        found, _ = extract(DictSource(base), DictSource(other), "3")
        assert set(found.layers) == set(expected.layers)
        for target, layer in expected.layers.items():
            assert torch.equal(found.layers[target].up, layer.up), target
            assert torch.equal(found.layers[target].down, layer.down), target


def test_verify(tuned):
    native, foreign = both(FLUX)
    lora = DictSource(layers(native), name="lora")
    expected = verify(DictSource(native), DictSource(tuned), lora)
    found = verify(DictSource(foreign), DictSource(in_diffusers(tuned)), lora)
    mixed = verify(DictSource(native), DictSource(in_diffusers(tuned)), lora)
    assert found.layers == mixed.layers == expected.layers
    assert found.error == expected.error


def test_importance_of_whole_and_cut_weights():
    native, foreign = both(FLUX)
    modules = [LINEAR1, FINAL, *PARTS]
    expected = importance(modules, DictSource(native), "frobenius")
    assert importance(modules, DictSource(foreign), "frobenius") == expected


def test_a_folder_pairs_with_a_file(tmp_path, tuned):
    native, _ = both(FLUX)
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    theirs = {
        key.removeprefix("transformer."): one.clone() for key, one in in_diffusers(tuned).items()
    }
    save_file(theirs, folder / "diffusion_pytorch_model.safetensors")
    (tmp_path / "pipeline" / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline"})
    )
    save_file(native, tmp_path / "flux.safetensors")
    expected, _ = extract(DictSource(native), DictSource(tuned), "2")
    for path in (tmp_path / "pipeline", folder, folder / "diffusion_pytorch_model.safetensors"):
        with open_source(tmp_path / "flux.safetensors") as base, open_source(path) as other:
            found, _ = extract(base, other, "2")
        for target, layer in expected.layers.items():
            assert torch.equal(found.layers[target].up, layer.up)


def test_a_table_that_one_has_in_a_row():
    """Krea 2's modulations are a vector natively, and rows in diffusers."""
    native, foreign = both(architecture_named("krea2"))
    name = f"{UNET}blocks.0.mod.lin"
    lora = {f"{name}.diff": torch.arange(float(len(native[name])))}
    expected, _ = bake(DictSource(native), [adapter(lora)])
    baked, _ = bake(DictSource(foreign), [adapter(lora)])
    assert_same(natively(baked), expected)


def test_eight_bits_are_joined_as_they_are():
    native, foreign = both(FLUX, dtype=torch.float8_e4m3fn)
    found = natively(foreign)
    assert set(found) == set(native)
    assert all(one.dtype == torch.float8_e4m3fn for one in found.values())
    assert all(torch.equal(one.float(), native[name].float()) for name, one in found.items())


def test_parts_of_several_dtypes():
    native, foreign = both(FLUX)
    key = f"{PARTS[1]}.weight"
    foreign = {k: one.to(torch.bfloat16) for k, one in foreign.items()}
    foreign[key] = foreign[key].to(torch.float8_e4m3fn)
    found = natively(foreign)[f"{QKV}.weight"]
    assert torch.equal(found, torch.cat([foreign[f"{part}.weight"].float() for part in PARTS]))
    lora = layers(native)
    baked, _ = bake(DictSource(foreign), [adapter(lora)])
    assert {k: one.dtype for k, one in baked.items()} == {
        k: one.dtype for k, one in foreign.items()
    }
