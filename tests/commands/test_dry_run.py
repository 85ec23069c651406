"""--dry-run of every operation: from headers alone, nothing written, the errors of the real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import contents, lorakit_here, tiny_pair
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.files import FileSource

# Tensors of one or a few numbers that say what a layer is.
TOLD = (".alpha", ".on_input", ".reshape_weight")
CASES = {
    "resize": ("resize", "lora.safetensors", "-r", "2"),
    "resize by energy": ("resize", "lora.safetensors", "-r", "energy=0.5,max=3"),
    "resize to a budget": ("resize", "lora.safetensors", "-r", "mean=1"),
    "resize to a size": ("resize", "lora.safetensors", "-r", "size=6000"),
    "resize in fp16": ("resize", "lora.safetensors", "-r", "9", "--dtype", "fp16"),
    "scale": ("scale", "lora.safetensors", "-s", "-0.5"),
    "scale some": ("scale", "lora.safetensors", "--where", "*attn*=0"),
    "add": ("add", "lora.safetensors", "other.safetensors:0.3"),
    "add at a rank": ("add", "lora.safetensors", "other.safetensors", "-r", "3"),
    "convert": ("convert", "lora.safetensors", "--format", "kohya"),
    "convert to LoRA": ("convert", "lora.safetensors", "--to", "lora", "-r", "1"),
    "bake": ("bake", "base.safetensors", "lora.safetensors:0.7"),
    "bake in fp16": ("bake", "base.safetensors", "lora.safetensors", "--dtype", "fp16"),
    "unbake": ("unbake", "tuned.safetensors", "lora.safetensors"),
    "merge": ("merge", "base.safetensors:0.7", "tuned.safetensors:0.3"),
    "merge by a method": ("merge", "--base", "base.safetensors", "tuned.safetensors", "-m", "ties"),
    "merge in bf16": ("merge", "base.safetensors", "tuned.safetensors", "--dtype", "bf16"),
}
every = pytest.mark.parametrize("words", CASES.values(), ids=CASES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints and two adapters of them, in the current folder."""
    tiny_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, rank in (("lora", 4), ("other", 2)):
        words = ("base.safetensors", "tuned.safetensors", "-o", f"{name}.safetensors")
        assert lorakit_here("extract", *words, "-r", rank).status == 0
    return tmp_path


@every
def test_it_says_what_the_run_does(folder: Path, words: tuple[str, ...]) -> None:
    before = contents(folder)
    run = lorakit_here(*words, "-o", "out.safetensors", "--dry-run", "--json", "-")
    assert (run.status, run.err) == (0, "")
    assert contents(folder) == before
    plan = json.loads(run.out)
    real = lorakit_here(*words, "-o", "out.safetensors", "--json", "-")
    assert real.status == 0
    report = json.loads(real.out)
    planned = {one["target"]: one for one in plan["layers"]}
    for layer in report["layers"]:
        known = planned[layer["target"]]
        assert known["kind"] == layer["kind"]
        assert known["shape"] == layer["shape"]
        assert layer["rank"] <= known.get("rank_at_most", layer["rank"])
    left = {one["target"] for one in plan.get("skips", ())}
    assert left <= {one["target"] for one in report["skips"]}
    written = {one["target"] for one in report["layers"]}
    is_budget = any(word.startswith(("mean=", "size=")) for word in words)
    assert planned.keys() >= written if is_budget else planned.keys() == written
    assert (folder / "out.safetensors").stat().st_size <= plan["size_at_most"]


@every
def test_people_are_told_that_nothing_was_written(folder: Path, words: tuple[str, ...]) -> None:
    run = lorakit_here(*words, "-o", "out.safetensors", "--dry-run")
    assert (run.status, run.err) == (0, "")
    assert "out.safetensors would take at most" in run.out
    assert "nothing was written" in run.out
    assert all(name in run.out for name in words if name.endswith(".safetensors"))
    assert not (folder / "out.safetensors").exists()


@every
def test_no_weight_is_read(
    folder: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for kind in _kinds(FileSource):
        for way in {"tensor", "read_into"} & vars(kind).keys():
            monkeypatch.setattr(kind, way, _refuse(vars(kind)[way], asked))
    run = lorakit_here(*words, "-o", "out.safetensors", "--dry-run")
    assert run.status == 0
    with pytest.raises(ZeroDivisionError):  # the run itself reads some
        lorakit_here(*words, "-o", "out.safetensors")
    assert asked


@every
def test_an_output_that_exists_is_refused(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "out.safetensors").write_bytes(b"mine")
    run = lorakit_here(*words, "-o", "out.safetensors", "--dry-run")
    real = lorakit_here(*words, "-o", "out.safetensors")
    assert run.status == real.status == 2
    assert run.err == real.err
    assert (folder / "out.safetensors").read_bytes() == b"mine"
    assert lorakit_here(*words, "-o", "out.safetensors", "--dry-run", "--force").status == 0
    assert (folder / "out.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "words",
    [
        ("resize", "lora.safetensors", "-r", "enrgy=0.5"),
        ("resize", "lora.safetensors", "-r", "2", "--relative-to", "base.safetensors"),
        ("resize", "lora.safetensors", "-r", "0"),
        ("resize", "lora.safetensors", "-r", "size=1kB"),
        ("extract", "base.safetensors", "tuned.safetensors", "-r", "size=1kB"),
        ("resize", "base.safetensors", "-r", "2"),
        ("scale", "lora.safetensors", "--where", "nothing*=0"),
        ("scale", "lora.safetensors", "-s", "0"),
        ("scale", "lora.safetensors", "--blocks", "1,2,3"),
        ("add", "lora.safetensors:0", "other.safetensors:0"),
        ("add", "lora.safetensors", "-m", "nothing"),
        ("add", "lora.safetensors", "-r", "none"),
        ("convert", "lora.safetensors"),
        ("convert", "lora.safetensors", "--format", "kohya", "--architecture", "nothing"),
        ("bake", "lora.safetensors", "base.safetensors"),
        ("bake", "base.safetensors", "lora.safetensors:0"),
        ("bake", "other_model.safetensors", "lora.safetensors"),
        ("merge", "base.safetensors", "other_model.safetensors"),
        ("merge", "base.safetensors", "lora.safetensors"),
    ],
    ids=" ".join,
)
def test_it_fails_as_the_run_would(folder: Path, words: tuple[str, ...]) -> None:
    save_file({"model.blocks.0.weight": torch.ones(4, 4)}, "other_model.safetensors")
    before = contents(folder)
    run = lorakit_here(*words, "-o", "out.safetensors", "--dry-run")
    real = lorakit_here(*words, "-o", "out.safetensors")
    assert run.status == real.status != 0
    assert run.err == real.err
    assert contents(folder) == before


def test_layers_that_are_left_out_have_their_reason(folder: Path) -> None:
    words = ("scale", "lora.safetensors", "--where", "*attn*=0", "-o", "out.safetensors")
    plan = json.loads(lorakit_here(*words, "--dry-run", "--json", "-").out)
    report = json.loads(lorakit_here(*words, "--json", "-").out)
    assert plan["skips"]
    assert [(one["target"], one["reason"]) for one in plan["skips"]] == [
        (one["target"], one["reason"]) for one in report["skips"]
    ]


def test_a_bake_says_what_is_copied(folder: Path) -> None:
    words = ("bake", "base.safetensors", "lora.safetensors", "-o", "out.safetensors")
    plan = json.loads(lorakit_here(*words, "--dry-run", "--json", "-").out)
    assert lorakit_here(*words).status == 0
    base, baked = load_file("base.safetensors"), load_file("out.safetensors")
    assert plan["tensors"] == len(baked)
    same = sum(torch.equal(base[key], tensor) for key, tensor in baked.items())
    assert plan["copied"] == same == len(baked) - plan["changed"]
    assert 0 < same < len(baked)


def test_a_merge_says_what_is_matched_and_how_often_it_is_read(folder: Path) -> None:
    base = load_file("base.safetensors")
    base["model.diffusion_model.out.2.weight"] = torch.ones(4, 8, 3, 3)
    base["betas"] = torch.ones(10)
    save_file(base, "base.safetensors")
    words = ("merge", "base.safetensors", "tuned.safetensors", "-o", "out.safetensors")
    plan = json.loads(lorakit_here(*words, "--dry-run", "--json", "-").out)
    assert lorakit_here(*words).status == 0
    merged = load_file("out.safetensors")
    same = sum(torch.equal(base[key], tensor) for key, tensor in merged.items())
    assert (plan["tensors"], plan["copied"], plan["taken"]) == (len(base), same, 0)
    assert (plan["merged"], plan["only_base"]) == (len(base) - 2, 1)
    assert "only in base.safetensors" in plan["notes"][0]
    passes = {"sum": 1, "ties": 3, "karcher": 2, "nuslerp": 2}
    for method, times in passes.items():
        words = ("base.safetensors", "tuned.safetensors:0.5", "-o", "x.safetensors", "-m", method)
        base_too = ("--base", "tuned.safetensors") if method == "ties" else ()
        run = lorakit_here("merge", *words, *base_too, "--dry-run", "--json", "-")
        assert json.loads(run.out)["passes"] == times


def test_every_adapter_of_a_folder_is_planned(folder: Path) -> None:
    (folder / "many" / "deep").mkdir(parents=True)
    save_file(load_file("lora.safetensors"), "many/a.safetensors")
    save_file(load_file("other.safetensors"), "many/deep/b.safetensors")
    save_file(load_file("base.safetensors"), "many/model.safetensors")
    before = contents(folder)
    words = ("resize", "many", "-r", "2", "-o", "results")
    run = lorakit_here(*words, "--dry-run", "--json", "-")
    assert run.status == 1  # one of them is no adapter
    assert contents(folder) == before
    plans = json.loads(run.out)["files"]
    assert plans["deep/b.safetensors"]["output"] == str(Path("results/deep/b.safetensors"))
    told = lorakit_here(*words, "--dry-run")
    assert "rank at most 2" in told.out
    assert "nothing was written" in told.out
    assert lorakit_here(*words).status == 1
    for name, plan in plans.items():
        result = folder / "results" / name
        assert result.exists() == ("error" not in plan)
        assert not result.exists() or result.stat().st_size <= plan["size_at_most"]


def _kinds(kind: type) -> list[type]:
    return [kind, *(one for sub in kind.__subclasses__() for one in _kinds(sub))]


def _refuse(read, asked: list[str]):
    def refused(self, key: str, *place: object):
        if key.endswith(TOLD):
            return read(self, key, *place)
        asked.append(key)
        raise ZeroDivisionError(f"`{key}` is read")

    return refused
