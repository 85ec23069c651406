"""Merges from file to file: bytes, shards, mixed names, and nothing left after a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once
from bits import assert_equal
from checkpoints import FLUX, SD1, grid
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.errors import ArgumentError, NonFiniteError
from lorakit.lora_ops.operations.merge.file import MergedFile, merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Output
from lorakit.lora_ops.run.inputs import placeholders

MODELS = {name: grid(SD1, torch.float16, seed=seed) for seed, name in enumerate("ABC")}
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def run(line: str, models=MODELS):
    recipe = parse_line(line)
    opened = {name: DictSource(models[name], name=name) for name in recipe.files}
    return merge(recipe, opened)


# --- Files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tensors in MODELS.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", {"modelspec.title": name})
    return tmp_path


def to_file(folder: Path, line: str, name: str, **options):
    recipe = parse_line(line)
    with contextlib.ExitStack() as stack:
        opened = {
            key: stack.enter_context(open_source(folder / f"{key}.safetensors"))
            for key in recipe.files
        }
        plan = plan_merge_file(recipe, opened, output=folder / name, **options)
        return merge_file(plan, folder / name, version="0.0")


def test_a_file_holds_what_memory_holds(folder):
    report = to_file(folder, "A + 0.35*(B - C)", "out.safetensors")
    out, _ = run("A + 0.35*(B - C)")
    found = load_file(folder / "out.safetensors")
    assert found.keys() == out.keys()
    for key, tensor in out.items():
        assert_equal(found[key], tensor)
    assert report.size == (folder / "out.safetensors").stat().st_size
    with safe_open(folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "A"
    assert "lorakit.recipe" in metadata
    to_file(folder, "A + 0.35*(B - C)", "again.safetensors")
    assert (folder / "again.safetensors").read_bytes() == (folder / "out.safetensors").read_bytes()


def test_room_is_kept_for_the_record_of_every_input(folder):
    """Else all of the data would be moved, once it is written."""
    recipe = parse_line("A:0.2 B:0.3 C:0.5")
    with contextlib.ExitStack() as stack:
        opened = {
            key: stack.enter_context(open_source(folder / f"{key}.safetensors"))
            for key in recipe.files
        }
        output = folder / "out.safetensors"
        plan = plan_merge_file(recipe, opened, output=output)
        kept = MergedFile(plan, output, 10**9, "0.0", force=False).longest(
            placeholders(list(opened.values()))
        )
        merge_file(plan, output, version="0.0")
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert kept.keys() == metadata.keys()
    assert [key for key, text in metadata.items() if len(text) > len(kept[key])] == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Output(kind="lora", rank=4), r"asks for a LoRA.*`extract\(\)`"),
        (Output(format="diffusers"), "asks for a folder of diffusers, and .* is none"),
    ],
)
def test_what_is_no_checkpoint_like_its_base_is_refused(folder, asked, said):
    recipe = replace(parse_line("A:0.5 B:0.5"), output=asked)
    with contextlib.ExitStack() as stack:
        opened = {
            key: stack.enter_context(open_source(folder / f"{key}.safetensors")) for key in "AB"
        }
        with pytest.raises(ArgumentError, match=said):
            plan_merge_file(recipe, opened, output=folder / "out.safetensors")


def test_shards_are_written_without_what_is_dropped(folder):
    models = {**MODELS["A"], "model_ema.decay": torch.tensor(0.9)}
    save_file(models, folder / "A.safetensors")
    to_file(folder, "A:0.5 B:0.5", "out.safetensors.index.json")
    with open_source(folder / "out.safetensors.index.json") as found:
        out, _ = run("A:0.5 B:0.5")
        assert set(found.keys()) == set(out)
        for key, tensor in out.items():
            assert_equal(found.tensor(key), tensor)


def test_a_failure_leaves_nothing(folder):
    broken = {**MODELS["B"], KEY: MODELS["B"][KEY] * float("nan")}
    save_file(broken, folder / "B.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(NonFiniteError):
        to_file(folder, "A:0.5 B:0.5", "out.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_flux_merges_too():
    models = {name: grid(FLUX, torch.bfloat16, seed=i) for i, name in enumerate("AB")}
    out, _ = run("A + 0.25*(B - A)", models)
    for key, tensor in models["A"].items():
        assert is_rounded_once(out[key], 0.75 * tensor.double() + 0.25 * models["B"][key].double())


KILLED = """
import os, signal, sys
from pathlib import Path
from lorakit.lora_ops import open_source
from lorakit.lora_ops.operations.merge.file import MergedFile, merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.run.inputs import placeholders
folder = Path(sys.argv[1])
opened = {key: open_source(folder / f"{key}.safetensors") for key in "AB"}
plan = plan_merge_file(parse_line("A:0.5 B:0.5"), opened, output=folder / "out.safetensors")
kill = lambda done, total, _: done == total and os.kill(os.getpid(), signal.SIGKILL)
merge_file(plan, folder / "out.safetensors", progress=kill)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_killed_process_leaves_nothing_under_the_name(folder):
    done = subprocess.run([sys.executable, "-c", KILLED, folder], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (folder / "out.safetensors").exists()
