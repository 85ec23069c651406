"""Merged into a quantised base: stored as the base is, recorded, run again and verified."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bits import assert_equal
from commands import lorakit_here
from safetensors.torch import load_file, save_file
from storing import STORED, STORES, exact, nearest, stored_by_others
from tiny_flux import STRENGTH, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import ArgumentError, Ingredient, Recipe, open_source, parse_line
from lorakit.lora_ops.inspect.verify_merge import MergeCheck, verify_merge
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.merge import MergeReport
from lorakit.lora_ops.operations.merge.recipes.document import as_toml, parse_document
from lorakit.lora_ops.operations.merge.recipes.opening import open_recipe

QKV = "double_blocks.0.img_attn.qkv.weight"
LINE = parse_line(f"A + {STRENGTH}*L", deltas=["L"])


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(adapter(), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def model(store: str, path: Path, seed: int = 1) -> Path:
    save_file(stored_by_others(store, numbers(seed)) if store else numbers(seed), path)
    return path


def merged(recipe: Recipe, files: Mapping[str, Path], output: Path, **asked: object) -> MergeReport:
    with ExitStack() as stack:
        sources = {k: stack.enter_context(open_source(path)) for k, path in files.items()}
        plan = plan_merge_file(recipe, sources, output=output, **asked)
        return merge_file(plan, output)


def checked(recipe: Recipe, files: Mapping[str, Path], output: Path) -> MergeCheck:
    with ExitStack() as stack:
        sources = {k: stack.enter_context(open_source(path)) for k, path in files.items()}
        return verify_merge(recipe, sources, stack.enter_context(open_source(output)))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(
        one[key].dtype == other[key].dtype
        and torch.equal(*(x[key].reshape(-1).view(torch.uint8) for x in (one, other)))
        for key in one
    )


@pytest.mark.parametrize("store", [*STORES, "int4"])
def test_merging_gives_what_baking_gives(store: str, lora: Path, tmp_path: Path) -> None:
    base = model(store, tmp_path / "A.safetensors")
    one, other = tmp_path / "baked.safetensors", tmp_path / "merged.safetensors"
    with open_source(base) as source, open_source(lora) as loras:
        plan = plan_bake_file(source, [Ingredient(loras, STRENGTH)], output=one)
        said = bake_file(plan, source, one)
    report = merged(LINE, {"A": base, "L": lora}, other)
    assert same(load_file(one), load_file(other))
    assert {x.target: x.error for x in report.stored} == {x.target: x.error for x in said.stored}
    notes = [note for note in report.notes if "stored as the checkpoint has them" in note]
    assert notes == [note for note in said.notes if "stored as the checkpoint has them" in note]


def test_a_recipe_says_it_all_again(lora: Path, tmp_path: Path) -> None:
    """From its document, and from the file that it made: the same bytes."""
    files = {"A": model("", tmp_path / "A.safetensors"), "L": lora}
    output, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    asked = {"to": "nvfp4", "whole": ["single_blocks.*"], "quantise": ["img_in.weight"]}
    merged(replace(LINE).with_output(rounding="stochastic"), files, output, **asked)
    first = load_file(output)
    assert first["img_in.weight"].dtype == first[QKV].dtype == torch.uint8
    assert first["single_blocks.0.linear1.weight"].dtype == torch.float32
    found = open_recipe(output).recipe
    assert found is not None
    assert (found.output.to, found.output.whole, found.output.quantise) == (
        *("nvfp4", ("single_blocks.*",)),
        ("img_in.weight",),
    )
    assert parse_document(as_toml(found)) == found
    merged(found, files, again)
    assert same(first, load_file(again))
    assert checked(found, files, output).is_same
    done = lorakit_here("recipe", output, "--verify", "--search", tmp_path)
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("store", ["old fp8", "int8 rotated"])
def test_verifying_what_is_stored_with_scales(store: str, lora: Path, tmp_path: Path) -> None:
    files = {"A": model(store, tmp_path / "A.safetensors"), "L": lora}
    output = tmp_path / "out.safetensors"
    merged(LINE, files, output)
    found = checked(LINE, files, output)
    assert found.is_same
    tensors = load_file(output)
    assert found.equal == len(tensors)
    scale = next(key for key in tensors if key.startswith(f"{QKV[:-7]}.") and "scale" in key)
    tensors[scale] = tensors[scale] * 2
    tensors["more.weight"] = torch.ones(3)
    del tensors["single_blocks.0.modulation.lin.weight"]
    scales = [key for key in tensors if key.startswith("single_blocks.0.modulation.lin.")]
    for key in scales:
        del tensors[key]
    save_file(tensors, output)
    found = checked(LINE, files, output)
    assert list(found.different) == [scale]
    assert found.added == ("more.weight",)
    assert set(found.missing) == {"single_blocks.0.modulation.lin.weight", *scales}


def test_a_part_of_another_model(tmp_path: Path) -> None:
    """Stored alike it is copied, with its scales; else it is encoded as the base is."""
    base = model("int8 by rows", tmp_path / "A.safetensors")
    alike = model("int8 by rows", tmp_path / "alike.safetensors", seed=2)
    other = model("", tmp_path / "other.safetensors", seed=2)
    for file, is_copied in ((alike, True), (other, False)):
        output = tmp_path / f"{is_copied}.safetensors"
        recipe = replace(parse_line("A"), parts={"unet": "B"})
        recipe = replace(recipe, files={**recipe.files, "B": replace(recipe.files["A"], name="B")})
        merged(recipe, {"A": base, "B": file}, output)
        found, theirs = load_file(output), load_file(file)
        if is_copied:
            assert same(found, theirs)
        truth = numbers(2)[QKV].double()
        with open_source(output) as read:
            assert read.storage(QKV) == "int8"
            lost = (read.tensor(QKV).double() - truth).abs()
        assert (lost <= nearest(truth, "int8") + 1e-6).all()


def test_a_dtype_writes_numbers_where_it_is_asked_for(lora: Path, tmp_path: Path) -> None:
    files = {"A": model("old fp8", tmp_path / "A.safetensors"), "L": lora}
    merged(LINE.with_output(dtype={"vae": "fp32"}), files, tmp_path / "vae.safetensors")
    assert load_file(tmp_path / "vae.safetensors")[QKV].dtype == torch.float8_e4m3fn
    merged(LINE.with_output(dtype={"unet": "bf16"}), files, tmp_path / "unet.safetensors")
    found = load_file(tmp_path / "unet.safetensors")
    assert found.keys() == numbers(1).keys()
    truth = load_file(files["A"])
    kept = "double_blocks.0.img_attn.proj.weight"
    scale = truth[kept.replace("weight", "scale_weight")]
    assert_equal(found[kept], (truth[kept].float() * scale).bfloat16())


def test_patterns(lora: Path, tmp_path: Path) -> None:
    """What is named to stay whole does, though it is named to be quantised, too."""
    files = {"A": model("", tmp_path / "A.safetensors"), "L": lora}
    output = tmp_path / "out.safetensors"
    asked = {"to": "int8", "whole": ["txt_in*", "nothing.*"], "quantise": ["*_in.weight", "guid*"]}
    report = merged(LINE, files, output, **asked)
    stored = {key for key, one in load_file(output).items() if one.dtype == torch.int8}
    more = {"img_in.weight"} | {f"guidance_in.{part}.weight" for part in ("in_layer", "out_layer")}
    assert stored == {*(f"{name}.weight" for name in STORED), *more} & numbers(1).keys()
    assert "img_in.weight" in stored
    assert "no weight stays whole by the pattern `nothing.*`" in report.notes
    assert not any("is quantised by" in note for note in report.notes)
    with open_source(output) as read:
        assert (read.tensor(QKV).double() - exact()[QKV]).norm() < 0.02 * exact()[QKV].norm()
    with pytest.raises(ArgumentError, match="but not how"):
        merged(LINE, files, tmp_path / "x.safetensors", quantise=["img_in*"])


def test_what_is_not_finite_stays_as_the_base_stores_it(tmp_path: Path) -> None:
    """Byte for byte, and not encoded again."""
    base = model("fp8 by tiles", tmp_path / "A.safetensors")
    other = numbers(2)
    other[QKV][3, 4] = torch.nan
    save_file(other, tmp_path / "B.safetensors")
    files, output = {"A": base, "B": tmp_path / "B.safetensors"}, tmp_path / "out.safetensors"
    merged(parse_line("0.5*A + 0.5*B"), files, output, allow_nonfinite=True)
    first, found = load_file(base), load_file(output)
    own = [key for key in first if key.startswith(QKV.removesuffix("weight"))]
    assert len(own) == 4
    del own[own.index(QKV.replace("weight", "bias"))]
    assert all(torch.equal(first[key].float(), found[key].float()) for key in own)
    key = "double_blocks.0.img_attn.proj.weight"
    assert not torch.equal(first[key].float(), found[key].float())


def test_by_the_command(lora: Path, tmp_path: Path) -> None:
    base, output = model("int8 by rows", tmp_path / "A.safetensors"), tmp_path / "out.safetensors"
    asked = ("--rounding", "stochastic", "--seed", "3", "--whole", "single_blocks.*")
    done = lorakit_here("bake", base, f"{lora}:{STRENGTH}", "-o", output, *asked)
    assert (done.status, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert (
        "10 weights stored as the checkpoint has them: 10 as int8; 2 of them change and are" in said
    )
    with open_source(output) as found:
        assert found.storage(QKV) == "int8"
        assert found.storage("single_blocks.0.linear1.weight") == "bf16"
        record = {"rounding": "stochastic", "seed": "3", "whole": '["single_blocks.*"]'}
        assert {name: found.metadata[f"lorakit.{name}"] for name in record} == record
    back = tmp_path / "back.safetensors"
    done = lorakit_here("unbake", output, f"{lora}:{STRENGTH}", "-o", back, "--dry-run")
    assert (done.status, done.err) == (0, "")
    done = lorakit_here("unbake", output, f"{lora}:{STRENGTH}", "-o", back, "--dtype", "bf16")
    assert (done.status, load_file(back)[QKV].dtype) == (0, torch.bfloat16)
    with open_source(back) as found:
        assert "lorakit.rounding" not in found.metadata
    done = lorakit_here("bake", base, lora, "-o", back, "--quantise", "img_in*", "--force")
    assert (done.status, "name a storage" in done.err) == (2, True)


@pytest.mark.parametrize(("to", "told"), [("int8", "int8; "), ("fp8_scaled", "fp8_scaled; ")])
def test_a_plan_says_what_is_written_and_how_often_inputs_are_read(
    tmp_path: Path, to: str, told: str
) -> None:
    """A weight with one scale is computed twice: its largest number comes first."""
    files = [model("", tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    asked = ("--to", to, "-o", tmp_path / "out.safetensors", "--dry-run")
    done = lorakit_here("merge", *files, *asked)
    assert (done.status, done.err) == (0, "")
    assert f"average, {told}" in done.out
    assert ("read once" in done.out, "read up to 2 times" in done.out) == (
        to == "int8",
        to == "fp8_scaled",
    )
