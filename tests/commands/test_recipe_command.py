"""`lorakit recipe`: what other programs left in a model, as a document that reads back as the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors.torch import save_file

from lorakit.lora_ops.operations.merge.recipes.document import parse_document

A, B = "a" * 64, "b" * 64
# As AUTOMATIC1111's web UI writes them, modules/extras.py.
RECIPE = {
    "type": "webui",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": None,
    "interp_method": "Weighted sum",
    "multiplier": 0.3,
    "save_as_half": True,
    "custom_name": "mine",
    "config_source": 0,
    "bake_in_vae": "None",
    "discard_weights": "",
    "is_inpainting": False,
    "is_instruct_pix2pix": False,
}
MODELS = {
    A: {"name": "first.safetensors", "legacy_hash": "1", "sd_merge_recipe": None},
    B: {"name": "second.safetensors", "legacy_hash": "2", "sd_merge_recipe": None},
}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A model that the web UI merged."""
    path = tmp_path / "merged.safetensors"
    metadata = {"sd_merge_recipe": json.dumps(RECIPE), "sd_merge_models": json.dumps(MODELS)}
    save_file({"weight": torch.zeros(2)}, path, metadata)
    return path


def test_the_recipe_in_a_model_is_toml_on_stdout(merged: Path) -> None:
    run = lorakit_here("recipe", merged)
    assert run.status == 0
    recipe = parse_document(run.out)
    (step,) = recipe.steps
    (term,) = step.terms
    first, second = recipe.files[step.base], recipe.files[term.of]
    assert [(one.name, one.sha256) for one in (first, second)] == [
        ("first.safetensors", A),
        ("second.safetensors", B),
    ]
    assert (step.method, term.weight) == ("lerp", 0.3)
    assert recipe.parts == {"vae": step.name}  # the web UI merges the VAE as all else
    assert "not carried: weights that only the second model has" in run.err


def test_what_is_written_is_read_again(merged: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged.toml"
    assert lorakit_here("recipe", merged, "-o", output).status == 0
    assert lorakit_here("recipe", output).out == output.read_text()
    again = lorakit_here("recipe", merged, "-o", output)
    assert (again.status, "--force" in again.err) == (2, True)
    assert lorakit_here("recipe", merged, "-o", output, "--force").status == 0


def test_its_inputs_are_a_tree(merged: Path) -> None:
    lines = lorakit_here("recipe", merged, "--ancestry").out.splitlines()
    assert lines[0].endswith("A + 0.3*(B - A)")
    assert lines[1:] == [f"  first.safetensors ({A[:10]})", f"  second.safetensors ({B[:10]})"]


def test_files_are_looked_for(merged: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "first.safetensors")
    run = lorakit_here("recipe", merged, "--search", tmp_path)
    assert run.status == 0
    assert f"`first.safetensors` is there, but is another file: SHA-256 {A[:12]}" in run.err
    assert f"`second.safetensors`, SHA-256 {B[:12]}…, was not found" in run.err


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        ("none.toml", None, 2, "cannot be read: No such file"),
        ("bad.toml", b"lorakit = 1\nstep = 3\n", 2, "`step`"),
        ("bad.json", b'{"lorakit": 1', 2, "JSON"),
        ("other.txt", b"a cake recipe", 1, "no program is known that writes a recipe like this"),
        ("bytes.toml", b"\xff\xfe", 2, "no UTF-8 text"),
    ],
)
def test_what_is_no_recipe_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, status: int, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run = lorakit_here("recipe", tmp_path / name)
    assert (run.status, run.out) == (status, "")
    assert run.err.startswith("Error: ")
    assert said in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--verify", "--ancestry"), "--ancestry is of no use with --verify"),
        (("--verify", "-o", "r.toml"), "--output is of no use with --verify"),
        (("--json", "-"), "--json is of no use without --verify"),
        (("--dora", "comfy"), "--dora is of no use without --verify"),
        (("--row", "2"), "--row is for a history of merges (.csv)"),
        (("--ancestry", "-o", "r.toml"), "--ancestry shows the tree instead"),
    ],
)
def test_options_that_would_be_for_nothing_are_errors(
    words: tuple[str, ...], said: str, merged: Path
) -> None:
    run = lorakit_here("recipe", merged, *words)
    assert (run.status, run.out) == (2, "")
    assert said in run.err


def test_a_model_without_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    run = lorakit_here("recipe", path)
    assert (run.status, run.out) == (1, "")
    assert "no recipe is recorded in this file" in run.err
