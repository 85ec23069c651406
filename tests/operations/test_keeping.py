"""Baked into a quantised checkpoint: stored as it was, layer by layer, and what of the change is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bits import assert_equal
from safetensors.torch import load_file, save_file
from storing import SCHEMES, STORED, STORES, exact, stored_by_others, turned
from tiny_flux import LAYERS, STRENGTH, UNET, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import FileSource, Ingredient, NonFiniteError, open_source
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.bake.preview import preview_bake
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.weights.change import BakedLayer
from lorakit.lora_ops.report import Report

CHANGED = [f"{layer}.weight" for layer in LAYERS]
QKV = CHANGED[0]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(adapter(), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def quantised(store: str, path: Path) -> Path:
    """A model stored so, by another's rules or by ours."""
    if store in STORES:
        save_file(stored_by_others(store, numbers(1)), path)
        return path
    save_file(numbers(1), path.with_name("plain.safetensors"))
    with open_source(path.with_name("plain.safetensors")) as model:
        requantise_file(plan_requantise_file(model, store, output=path), path)
    return path


def baked(model: Path, lora: Path, output: Path, sign: int = 1, **asked: object) -> Report:
    with open_source(model) as source, open_source(lora) as loras:
        ingredients = [Ingredient(loras, STRENGTH)]
        plan = plan_bake_file(source, ingredients, output=output, sign=sign, **asked)
        report = bake_file(plan, source, output)
        assert output.stat().st_size <= preview_bake(plan, output).size_at_most
    return report


def change(key: str, strength: float = STRENGTH) -> Tensor:
    """What the adapter adds to a weight, in float64."""
    return exact(strength)[key] - exact(0.0)[key]


def half_step(source: FileSource, key: str, value: Tensor, store: str) -> Tensor:
    """The farthest that the nearest storable number can be; of a rotated weight, where it is rotated."""
    if "rotated" in store:
        tensors = load_file(source.name)
        return tensors[key.replace("weight", "weight_scale")].double() / 2
    return source.grid(key, value) / 2


@pytest.mark.parametrize("store", [*STORES, *SCHEMES])
def test_layers_stay_as_they_are_stored(store: str, lora: Path, tmp_path: Path) -> None:
    model, output = quantised(store, tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    report = baked(model, lora, output)
    before, after = load_file(model), load_file(output)
    assert after.keys() == before.keys()
    touched = {*CHANGED, f"{LAYERS[0]}.bias"}
    scales = [
        key
        for key in before
        if "scale" in key and "input" not in key and f"{key.rpartition('.')[0]}.weight" in CHANGED
    ]
    for key, tensor in before.items():
        assert (after[key].dtype, after[key].shape) == (tensor.dtype, tensor.shape), key
        if key not in touched and key not in scales:
            assert_equal(*(one.reshape(-1).view(torch.uint8) for one in (after[key], tensor)))
    with open_source(model) as old, open_source(output) as new:
        for key in CHANGED:
            assert new.storage(key) == old.storage(key)
            meant = change(key)
            truth = old.tensor(key).double() + meant
            lost = new.tensor(key).double() - truth
            seen = turned(lost) if "rotated" in store else lost
            step = half_step(new, key, truth, store)
            assert (seen.abs() <= step * 1.001 + 1e-6).all()
            (said,) = [one for one in report.layers if f"{one.target}.weight" == f"{UNET}{key}"]
            assert isinstance(said, BakedLayer)
            moved = (lost + meant).flatten()
            cosine = float(moved @ meant.flatten() / moved.norm() / meant.norm())
            assert said.cosine == pytest.approx(cosine, abs=1e-5)
            gain = float(moved @ meant.flatten() / meant.norm() ** 2)
            assert said.gain == pytest.approx(gain, abs=1e-5)
            assert said.residual == pytest.approx(float(lost.norm()), rel=1e-3)
    assert sorted(one.target for one in report.stored) == sorted(f"{UNET}{k}" for k in LAYERS)
    (told,) = [note for note in report.notes if "stored as the checkpoint has them" in note]
    assert told.startswith(
        f"{len(STORED)} weights stored as the checkpoint has them: {len(STORED)}"
    )
    assert told.endswith("; 3 of them change and are encoded anew")


@pytest.mark.parametrize("store", ["old fp8", "mxfp8", "int8 rotated"])
def test_baked_and_unbaked_is_what_it_was_but_for_rounding(
    store: str, lora: Path, tmp_path: Path
) -> None:
    model, there = quantised(store, tmp_path / "model.safetensors"), tmp_path / "there.safetensors"
    back = tmp_path / "back.safetensors"
    baked(model, lora, there)
    baked(there, lora, back, sign=-1)
    assert {k: (t.dtype, t.shape) for k, t in load_file(back).items()} == {
        k: (t.dtype, t.shape) for k, t in load_file(model).items()
    }
    with open_source(model) as first, open_source(there) as second, open_source(back) as third:
        for key in CHANGED:
            old, new = first.tensor(key).double(), third.tensor(key).double()
            there = torch.maximum((old + change(key)).abs(), second.tensor(key).double().abs())
            most = half_step(second, key, there, store)
            most = most + half_step(third, key, torch.maximum(old.abs(), new.abs()), store)
            lost = turned(new - old) if "rotated" in store else new - old
            assert (lost.abs() <= 1.01 * most + 1e-6).all()
            assert (new - old).norm() < 0.25 * change(key).norm()
        key = "double_blocks.0.img_attn.proj.weight"
        assert torch.equal(third.tensor(key), first.tensor(key))


def test_what_is_only_read_becomes_numbers_where_it_changes(lora: Path, tmp_path: Path) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(stored_by_others("int4", numbers(1)), model)
    report = baked(model, lora, output)
    before, after = load_file(model), load_file(output)
    gone = {key for key in before if any(key.startswith(f"{one}.") for one in LAYERS)}
    gone -= {*CHANGED, *(f"{one}.bias" for one in LAYERS)}
    assert before.keys() - after.keys() == gone
    with open_source(model) as old, open_source(output) as new:
        for key in CHANGED:
            truth = (old.tensor(key) + change(key).float()).bfloat16()
            assert new.storage(key) == "bf16"
            assert (new.tensor(key).float() - truth.float()).abs().max() < 0.02
        kept = [f"{name}.weight" for name in STORED if f"{name}.weight" not in CHANGED]
        assert {new.storage(key) for key in kept} == {"int4, rotated"}
        assert all(torch.equal(after[key], before[key]) for key in kept)
    (told,) = [note for note in report.notes if "only read" in note]
    assert all(f"`{key}`" in told for key in CHANGED)


def test_asked_for_it_is_numbers(lora: Path, tmp_path: Path) -> None:
    """By a dtype all of it, by a pattern some."""
    model = quantised("old fp8", tmp_path / "model.safetensors")
    baked(model, lora, tmp_path / "all.safetensors", dtype=torch.bfloat16)
    assert {one.dtype for one in load_file(tmp_path / "all.safetensors").values()} == {
        torch.bfloat16
    }
    assert load_file(tmp_path / "all.safetensors").keys() == numbers(1).keys()
    report = baked(model, lora, tmp_path / "some.safetensors", whole=["*attn.qkv*", "img_in.*"])
    some = load_file(tmp_path / "some.safetensors")
    whole = {key for key in some if key.removesuffix(".weight") in STORED} - {
        key for key, one in some.items() if one.dtype == torch.float8_e4m3fn
    }
    assert whole == {f"double_blocks.0.{side}_attn.qkv.weight" for side in ("img", "txt")}
    assert "2 weights stored as fp8 e4m3, scaled written as bf16" in report.notes
    with open_source(model) as old, open_source(tmp_path / "some.safetensors") as new:
        truth = old.tensor(QKV).double() + change(QKV)
        assert torch.allclose(new.tensor(QKV).double(), truth, rtol=0.005, atol=1e-5)


def test_another_storage_for_a_quantised_model(lora: Path, tmp_path: Path) -> None:
    """What `to` is for is written so; the marker of what was is gone with it."""
    model = quantised("old fp8", tmp_path / "model.safetensors")
    output = tmp_path / "out.safetensors"
    baked(model, lora, output, to="int8")
    found = load_file(output)
    assert not any("scale_weight" in key or "scaled_fp8" in key for key in found)
    assert found[QKV].dtype == torch.int8


def test_little_that_is_left_is_told_with_what_helps(lora: Path, tmp_path: Path) -> None:
    small = {k: t * 1e-3 if "lora_up" in k else t for k, t in adapter().items()}
    save_file(small, lora)
    model = quantised("old fp8", tmp_path / "model.safetensors")
    report = baked(model, lora, tmp_path / "out.safetensors")
    (told,) = [note for note in report.notes if note.startswith("rounding ate 3 layers")]
    assert "`diffusion_model.single_blocks.0.linear1` has a cosine of 0.3" in told
    for way in ("`whole=`", "`to=`", '`rounding="stochastic"`', "at run time"):
        assert way in told
    by_chance = baked(model, lora, tmp_path / "chance.safetensors", rounding="stochastic")
    gains = [one.gain for one in by_chance.layers if isinstance(one, BakedLayer)]
    assert all(abs(gain - 1) < 0.5 for gain in gains[:3])


def test_an_error_leaves_nothing(lora: Path, tmp_path: Path) -> None:
    broken = adapter()
    broken[f"{UNET}{LAYERS[1]}.lora_up.weight"][3, 2] = torch.inf
    save_file(broken, lora)
    model = quantised("int8 by rows", tmp_path / "model.safetensors")
    with pytest.raises(NonFiniteError, match="infinite"):
        baked(model, lora, tmp_path / "out.safetensors")
    assert {one.name for one in tmp_path.iterdir()} == {"model.safetensors", "lora.safetensors"}
