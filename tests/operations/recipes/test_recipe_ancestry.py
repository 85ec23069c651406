"""What a merged file says of how it was made, read back; and its files, found by their hashes."""

from __future__ import annotations

import hashlib
import json

import pytest
from recipes import FOREIGN, MODELS

from lorakit.lora_ops.errors import ArgumentError, FormatError
from lorakit.lora_ops.operations.merge.recipes.ancestry import Parent, merged_metadata, recipe_of
from lorakit.lora_ops.operations.merge.recipes.expression import parse_expression
from lorakit.lora_ops.operations.merge.recipes.find import find_files
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.run.inputs import Input

A, B, C, D = (letter * 64 for letter in "abcd")


def names(ancestor):
    """The tree, as names within names."""
    return {ancestor.file.name: [names(one) for one in ancestor.parents]}


def test_a_merge_of_merges_can_be_read_back():
    webui = {
        "sd_merge_recipe": json.dumps(FOREIGN["records"]["webui weighted"]),
        "sd_merge_models": json.dumps(
            {s: {"name": n, "legacy_hash": None} for s, n in MODELS.items()}
        ),
    }
    inner = merged_metadata(
        parse_expression("M + 0.5*(N - C)"),
        {
            "M": Parent(Input("m.safetensors", D), webui, "01234567"),
            "N": Parent(Input("n.safetensors", "e" * 64)),
            "C": Parent(Input("cmodel.safetensors", C)),
        },
        "0.1",
        base="M",
        v_prediction=True,
    )
    outer = merged_metadata(
        parse_expression("0.9*X + 0.1*N"),
        {
            "X": Parent(Input("x.safetensors", "f" * 64), inner),
            "N": Parent(Input("n.safetensors", "e" * 64)),
        },
        "0.1",
        base="X",
    )
    found = recipe_of(outer, "y.safetensors")
    assert found.program == "lorakit"
    assert found.recipe.files["X"] == RecipeFile("x.safetensors", "f" * 64)
    assert found.recipe.steps == parse_expression("0.9*X + 0.1*N").steps
    assert names(found) == {
        "y.safetensors": [
            {
                "x.safetensors": [
                    {"m.safetensors": [{"amodel.safetensors": []}, {"bmodel.safetensors": []}]},
                    {"n.safetensors": []},
                    {"cmodel.safetensors": []},
                ]
            },
            {"n.safetensors": []},
        ]
    }
    assert found.parents[0].parents[0].program == "AUTOMATIC1111's web UI"
    assert found.parents[0].parents[0].lost != ()
    lines = list(found.lines())
    assert lines[0] == "y.safetensors, by lorakit: X + 0.1*(N - X)"
    assert lines[1] == f"  x.safetensors ({'f' * 10}), by lorakit: M + 0.5*(N - C)"
    assert len(lines) == 8
    # What web UIs show.
    shown = json.loads(outer["sd_merge_recipe"])
    assert (shown["type"], shown["primary_model_hash"], shown["secondary_model_hash"]) == (
        "lorakit",
        "f" * 64,
        "e" * 64,
    )
    models = json.loads(outer["sd_merge_models"])
    assert set(models) == {A, B, C, D, "e" * 64, "f" * 64}
    assert models[D]["legacy_hash"] == "01234567"
    assert json.loads(models["f" * 64]["sd_merge_recipe"])["type"] == "lorakit"
    assert outer["modelspec.merged_from"] == "x.safetensors, n.safetensors"
    assert outer["modelspec.predict_key"] == "v"
    assert outer["lorakit.operation"] == "merge"
    assert json.loads(outer["lorakit.history"])[0]["operation"] == "merge"


def test_what_is_not_recorded_is_not_made_up():
    found = recipe_of({"format": "pt"}, "x.safetensors")
    assert (found.program, found.recipe, found.parents) == ("", None, ())
    assert list(found.lines()) == ["x.safetensors"]


def test_records_that_go_round_or_are_damaged():
    record = {
        **FOREIGN["records"]["webui weighted"],
        "primary_model_hash": A,
        "secondary_model_hash": B,
    }
    models = {s: {"name": f"{s[:1]}.pt", "sd_merge_recipe": json.dumps(record)} for s in (A, B)}
    round_ = {"sd_merge_recipe": json.dumps(record), "sd_merge_models": json.dumps(models)}
    assert len(list(recipe_of(round_).lines())) < 12
    models[A]["sd_merge_recipe"] = json.dumps({"type": "new"})
    found = recipe_of({**round_, "sd_merge_models": json.dumps(models)})
    assert "its recipe is not read" in found.parents[0].lost[0]
    with pytest.raises(FormatError, match=r"`lorakit\.recipe` is damaged: .*not a table"):
        recipe_of({"lorakit.recipe": "[]"})
    with pytest.raises(FormatError, match="multiplier as `None`"):
        recipe_of({"sd_merge_recipe": json.dumps({**record, "multiplier": None})})
    chain = {
        f"{n:064x}": {
            "name": f"{n}.pt",
            "sd_merge_recipe": {**record, "primary_model_hash": f"{n + 1:064x}"},
        }
        for n in range(5000)
    }
    start = {**record, "primary_model_hash": f"{0:064x}"}
    long = recipe_of({"sd_merge_recipe": json.dumps(start), "sd_merge_models": json.dumps(chain)})
    assert 100 < len(list(long.lines())) < 2000


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_files_are_found_by_name_then_by_hash(tmp_path):
    first = write(tmp_path / "models" / "a.safetensors", b"first")
    second = write(tmp_path / "models" / "sub" / "renamed.safetensors", b"second")
    write(tmp_path / "models" / "b.safetensors", b"other")
    write(tmp_path / "models" / "notes.txt", b"third")
    files = {
        "A": RecipeFile("a.safetensors", first),
        "B": RecipeFile("b.safetensors", second, bytes=6),
        "C": RecipeFile("c.safetensors", "0" * 64, url="https://x.org/c", bytes=5),
        "D": RecipeFile("A"),
        "E": RecipeFile("e.safetensors"),
        "F": RecipeFile("b.safetensors", "1" * 64),
    }
    recipe = Recipe((Step("s", tuple(Term(key) for key in files)),), files)
    hashed = []

    def sha256(path):
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    found = find_files(recipe, [tmp_path / "models"], sha256=sha256)
    assert {key: path.name for key, path in found.paths.items()} == {
        "A": "a.safetensors",
        "B": "renamed.safetensors",
        "D": "a.safetensors",
    }
    assert sorted(hashed) == ["a.safetensors", "b.safetensors", "renamed.safetensors"]
    notes = "\n".join(found.notes)
    assert (
        "`c.safetensors`, SHA-256 000000000000…, was not found; it can be had at https://x.org/c"
        in notes
    )
    assert "`A` is known by its name alone" in notes
    assert "`e.safetensors` was not found; the recipe has no hash" in notes
    assert "`b.safetensors` is there, but is another file" in notes
    unsized = Recipe(recipe.steps[:1], {**files, "B": RecipeFile("b.safetensors", second)})
    assert "B" not in find_files(unsized, [tmp_path / "models"]).paths
    assert (
        find_files(unsized, [tmp_path / "models"], hash_all=True).paths["B"].name
        == "renamed.safetensors"
    )
    with pytest.raises(ArgumentError, match="no folder"):
        find_files(recipe, [tmp_path / "none"])
