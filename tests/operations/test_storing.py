"""Baked and merged weights that are written with scales: what they stand for, and what stays whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from storing import SCHEMES, STORED, exact, nearest
from tiny_flux import STRENGTH, UNET, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import ArgumentError, Ingredient, NonFiniteError, open_source, parse_line
from lorakit.lora_ops.files.quantised import storages
from lorakit.lora_ops.operations.bake.bake import run_bake
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.bake.preview import preview_bake
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.preview import preview_merge
from lorakit.lora_ops.report import Report


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, lora = tmp_path / "model.safetensors", tmp_path / "lora.safetensors"
    save_file(numbers(1), model)
    save_file(adapter(), lora)
    return model, lora


def baked(files: tuple[Path, Path], output: Path, to: str, whole: tuple[str, ...] = ()) -> Report:
    with open_source(files[0]) as model, open_source(files[1]) as lora:
        ingredients = [Ingredient(lora, STRENGTH)]
        plan = plan_bake_file(model, ingredients, output=output, to=to, whole=whole)
        report = bake_file(plan, model, output)
        assert output.stat().st_size <= preview_bake(plan, output).size_at_most
    return report


@pytest.mark.parametrize("to", [*SCHEMES, "fp8"])
def test_each_number_is_the_nearest_that_can_be_stored(
    files: tuple[Path, Path], tmp_path: Path, to: str
) -> None:
    output = tmp_path / "out.safetensors"
    report = baked(files, output, to)
    truth, before = exact(), numbers(1)
    with open_source(output) as found:
        assert set(found.keys()) == set(truth)
        for key, weight in truth.items():
            read = found.tensor(key).double()
            if key.removesuffix(".weight") not in STORED:
                assert found.storage(key) == "fp32"
                assert torch.allclose(read, weight, rtol=1e-6, atol=1e-6)
                continue
            assert found.storage(key) == storages.SCHEMES[to].storage
            lost = (read - weight).abs()
            assert (lost <= nearest(weight, to) + 2e-6 * weight.abs().max()).all()
            said = next(one for one in report.stored if f"{UNET}{key}" == f"{one.target}.weight")
            assert said.error == pytest.approx(float(lost.norm() / weight.norm()), rel=1e-3)
            for layer in (one for one in report.layers if one.target == said.target):
                moved, meant = read - before[key].double(), weight - before[key].double()
                cosine = float((moved * meant).sum() / moved.norm() / meant.norm())
                assert layer.cosine == pytest.approx(cosine, abs=1e-5)
                assert layer.residual == pytest.approx(float(lost.norm()), rel=1e-3)
    assert sorted(one.target for one in report.stored) == sorted(f"{UNET}{name}" for name in STORED)
    assert any(f"{len(STORED)} weights written as" in note for note in report.notes)


def test_what_stays_whole_can_be_more(files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    report = baked(files, output, "fp8_scaled", whole=("single_blocks.*", "*.qkv.weight"))
    stored = {key for key, one in load_file(output).items() if one.dtype == torch.float8_e4m3fn}
    assert stored == {
        f"{name}.weight" for name in STORED if "single" not in name and "qkv" not in name
    }
    assert len(report.stored) == len(stored)


@pytest.mark.parametrize("to", SCHEMES)
def test_merging_gives_what_baking_gives(files: tuple[Path, Path], tmp_path: Path, to: str) -> None:
    """The same sums, so the same bytes; also in shards."""
    one, other = tmp_path / "baked.safetensors", tmp_path / "merged.safetensors.index.json"
    report = baked(files, one, to)
    with open_source(files[0]) as model, open_source(files[1]) as lora:
        recipe = parse_line(f"A + {STRENGTH}*L", deltas=["L"])
        plan = plan_merge_file(
            recipe, {"A": model, "L": lora}, output=other, to=to, shard_size=1 << 19
        )
        merged = merge_file(plan, other, shard_size=1 << 19)
        assert merged.size <= preview_merge(plan, other, shard_size=1 << 19).size_at_most
    assert len(list(tmp_path.glob("merged-*.safetensors"))) > 1
    assert {x.target: x.error for x in merged.stored} == {x.target: x.error for x in report.stored}
    found: dict[str, Tensor] = {}
    for shard in tmp_path.glob("merged-*.safetensors"):
        found |= load_file(shard)
    expected = load_file(one)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].float(), tensor.float()), key


def test_by_chance_the_mean_is_the_number_itself(files: tuple[Path, Path], tmp_path: Path) -> None:
    key, truth = "double_blocks.0.img_attn.qkv.weight", exact()
    found: list[Tensor] = []
    for rounding, count in (("nearest", 1), ("stochastic", 24)):
        total = torch.zeros_like(truth[key])
        for seed in range(count):
            output = tmp_path / f"{rounding}{seed}.safetensors"
            with open_source(files[0]) as model, open_source(files[1]) as lora:
                recipe = parse_line(f"A + {STRENGTH}*L", deltas=["L"])
                recipe = recipe.with_output(rounding=rounding)
                recipe = replace(recipe, steps=(replace(recipe.steps[-1], seed=seed),))
                plan = plan_merge_file(
                    recipe, {"A": model, "L": lora}, output=output, to="fp8_scaled"
                )
                merge_file(plan, output)
            with open_source(output) as read:
                total += read.tensor(key).double()
        found.append(total / count)
    near, mean = ((one - truth[key]).norm() for one in found)
    assert mean < 0.6 * near


def test_errors(files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(ArgumentError, match="the storage `fp7`"):
        baked(files, output, "fp7")
    tensors = numbers(1)
    tensors["single_blocks.0.linear2.weight"][3, 4] = torch.inf
    save_file(tensors, files[0])
    with pytest.raises(NonFiniteError, match=r"single_blocks.0.linear2.weight.*whole"):
        baked(files, output, "fp8_scaled")
    assert not output.exists()
    baked(files, output, "fp8_scaled", whole=("*linear2*",))
    with safe_open(output, "pt") as found:
        assert found.get_tensor("single_blocks.0.linear2.weight")[3, 4] == torch.inf


def test_only_a_file_holds_scales(files: tuple[Path, Path], tmp_path: Path) -> None:
    with open_source(files[0]) as model, open_source(files[1]) as lora:
        plan = plan_bake_file(model, [Ingredient(lora, 1.0)], to="int8")
        with pytest.raises(ValueError, match="only a file"):
            list(run_bake(plan))


def test_by_the_commands(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    asked = ("--to", "fp8_scaled", "--whole", "single_blocks.*", "--dtype", "bf16", "--json", "-")
    done = lorakit_here("bake", *files, "-o", one, *asked)
    assert (done.status, done.err) == (0, "")
    stored = json.loads(done.out)["stored"]
    assert {layer["target"] for layer in stored} == {
        f"{UNET}{name}" for name in STORED if "single" not in name
    }
    assert all(0.025 < layer["error"] < 0.028 for layer in stored)
    assert load_file(one)["img_in.weight"].dtype == torch.bfloat16
    done = lorakit_here("merge", one, files[0], "-o", other, *asked[:4])
    assert (done.status, done.err) == (0, "")
    assert "10 weights written as fp8 e4m3, scaled; 13 stay whole" in " ".join(done.out.split())
    with open_source(one) as left, open_source(other) as found:
        key = "double_blocks.0.img_attn.proj.weight"
        assert found.storage(key) == "fp8 e4m3, scaled"
        half = (left.tensor(key).double() + numbers(1)[key].double()) / 2
        assert (found.tensor(key) - half).norm() < 0.03 * half.norm()
    done = lorakit_here(
        "merge", *files[:1], other, "-o", tmp_path / "x.safetensors", *asked[:2], "-r", "4"
    )
    assert (done.status, "--to is for a model" in done.err) == (2, True)
    done = lorakit_here("bake", *files, "-o", tmp_path / "x.safetensors", "--to", "fp7")
    assert done.status == 2
    assert "fp8_e5m2_scaled" in done.err
