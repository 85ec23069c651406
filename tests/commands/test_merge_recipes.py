"""`lorakit merge` of recipes: documents, merged files, other programs'; their files found; verified."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once
from checkpoints import SD1, Tensors, grid, trained
from commands import contents, lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import parse_document

A = grid(SD1, torch.float16)
B, C = trained(A, seed=1), trained(A, seed=2)
MODELS = {"a": A, "b": B, "c": C}
Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
RECIPE = """lorakit = 1
files = {A = {name = "a.safetensors"}, B = {name = "b.safetensors"}}
[[step]]
base = "A"
method = "lerp"
terms = [{of = "B", weight = "$share"}]
[output]
dtype = "fp32"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints in a folder, and a recipe in the working folder."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, tensors in MODELS.items():
        save_file(tensors, f"models/deep/{name}.safetensors")
    Path("r.toml").write_text(RECIPE, "utf-8")
    return tmp_path


def merged(*words: object, output: str = "m.safetensors") -> Tensors:
    run = lorakit_here("merge", *words, "-o", output)
    assert (run.status, run.err) == (0, "")
    return load_file(output)


def is_mix(found: Tensors, share: float) -> bool:
    return is_rounded_once(found[Q], (1 - share) * A[Q].double() + share * B[Q].double())


def test_a_document_with_its_number() -> None:
    found = merged("r.toml", "--set", "share=0.3", "--search", "models")
    assert found[Q].dtype == torch.float32
    assert is_mix(found, 0.3)


def test_the_name_of_the_output_decides_its_format() -> None:
    Path("r.toml").write_text(f'{RECIPE}format = "200kB"\n', "utf-8")
    words = ("merge", "r.toml", "--set", "share=0.3", "--search", "models", "-o")
    run = lorakit_here(*words, "m.safetensors")
    assert 'note the recipe\'s format is "200kB"; m.safetensors is one file' in run.out
    run = lorakit_here(*words, "m.safetensors.index.json")
    assert "the recipe's format" not in run.out
    assert len(list(Path().glob("m-0000*-of-0000*.safetensors"))) > 1


def test_its_json_twin_and_the_files_by_name() -> None:
    twin = json.dumps({**json.loads(as_json("r.toml")), "title": "twin"})
    Path("r.json").write_text(twin, "utf-8")
    given = [f"{name}=models/deep/{name.lower()}.safetensors" for name in "AB"]
    assert is_mix(merged("r.json", *given, "--set", "$share=0.4"), 0.4)


def as_json(path: str) -> str:
    from lorakit.lora_ops.operations.merge.recipes.document import as_json as written

    return written(parse_document(Path(path).read_text("utf-8")))


def test_a_file_given_by_name_takes_the_place_of_the_recipes() -> None:
    found = merged(
        "r.toml", "B=models/deep/c.safetensors", "--set", "share=1", "--search", "models"
    )
    assert torch.equal(found[Q], C[Q].float())


def test_a_merged_file_gives_itself_again_whatever_its_files_are_called(folder: Path) -> None:
    words = (*(f"models/deep/{name}.safetensors" for name in "abc"), "--component", "unet")
    merged("--base", words[0], *words[1:], "-m", "dare,density=0.5", "--seed", "5")
    for name in "abc":
        Path(f"models/deep/{name}.safetensors").rename(f"models/{name}{name}.safetensors")
    run = lorakit_here("merge", "m.safetensors", "--search", "models", "-o", "n.safetensors")
    assert run.status == 0
    assert "note made again by the recipe in m.safetensors" in run.out
    assert same_but_names("m.safetensors", "n.safetensors")
    check = lorakit_here("recipe", "m.safetensors", "--search", "models", "--verify")
    assert (check.status, check.err) == (0, "")
    assert f"{len(A)} tensors the same as the recipe gives, 0 different" in check.out


@pytest.mark.parametrize(
    "words",
    [
        ("A:0.7", "B:0.3"),
        ("A + 0.35*(B - C)",),
        ("--base", "C", "A", "B:0.5", "-m", "dare_ties,density=0.4", "--seed", "7"),
        ("A", "--component", "vae=B"),
        ("A", "B:0.3", "--component", "unet", "--component", "vae", "--dtype", "fp32,vae=bf16"),
        ("--base", "A", "B:0.01", "--rounding", "stochastic", "--seed", "2", "--keep", "on"),
    ],
    ids=" ".join,
)
def test_every_kind_of_merge_gives_the_same_bytes_again(words: tuple[str, ...]) -> None:
    where = {letter: f"models/deep/{letter.lower()}.safetensors" for letter in "ABC"}
    if len(words) == 1:
        words = (*words, *(f"{letter}={path}" for letter, path in where.items()))
    else:
        words = tuple(
            re.sub(r"(?<![\w/-])[ABC]$|^[ABC](?=:)", lambda one: where[one[0]], word)
            for word in words
        )
    merged(*words)
    assert merged_again() == Path("m.safetensors").read_bytes()


def test_shards_are_found_by_their_index() -> None:
    parts = ("models/deep/a.safetensors", "models/deep/b.safetensors")
    words = ("merge", *parts, "--shard-size", "200kB", "-o", "models/s.safetensors.index.json")
    assert lorakit_here(*words).status == 0
    merged("models/s.safetensors.index.json:0.4", "models/deep/c.safetensors:0.6")
    again = merged_again()
    assert again == Path("m.safetensors").read_bytes()
    check = lorakit_here("recipe", "m.safetensors", "--search", "models", "--verify")
    assert (check.status, check.err) == (0, "")


def merged_again() -> bytes:
    run = lorakit_here("merge", "m.safetensors", "--search", "models", "-o", "n.safetensors")
    assert (run.status, run.err) == (0, "")
    return Path("n.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("r.toml", 2, "a merged model is verified"),
        ("models/deep/a.safetensors", 1, "no recipe is recorded in this file"),
        ("lone/m.safetensors", 2, "was not found; say where it is"),
    ],
)
def test_what_cannot_be_verified(name: str, status: int, said: str) -> None:
    Path("lone").mkdir()
    merged("models/deep/a.safetensors", "models/deep/b.safetensors", output="lone/m.safetensors")
    run = lorakit_here("recipe", name, "--verify")
    assert (run.status, run.out, run.err.count("\n")) == (status, "", 1)
    assert said in run.err


def same_but_names(first: str, second: str) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_verify_finds_what_was_changed_afterwards() -> None:
    merged("r.toml", "--set", "share=0.3", "--search", "models")
    with safe_open("m.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file("m.safetensors")
    tensors[Q] = tensors[Q] * 1.5
    tensors["new"] = torch.zeros(2)
    del tensors["betas"]
    save_file(tensors, "other.safetensors", metadata)
    run = lorakit_here("recipe", "other.safetensors", "--search", "models", "--verify")
    assert run.status == 1
    assert run.err == "Error: other.safetensors is not what its recipe gives\n"
    assert f"{len(A) - 2} tensors the same as the recipe gives, 1 different" in run.out
    assert "only in the recipe: betas" in run.out
    assert "only in the file: new" in run.out
    assert "attn1.to_q.weight   0.5000" in run.out


def test_another_programs_merge_is_done_again() -> None:
    """The record of a web UI: hashes alone; what it cannot say is told."""
    hashes = [
        hashlib.sha256(Path(f"models/deep/{name}.safetensors").read_bytes()).hexdigest()
        for name in "ab"
    ]
    record = {
        "type": "webui",
        "primary_model_hash": hashes[0],
        "secondary_model_hash": hashes[1],
        "tertiary_model_hash": None,
        "interp_method": "Weighted sum",
        "multiplier": 0.3,
        "save_as_half": True,
        "custom_name": "",
        "config_source": 0,
        "bake_in_vae": "None",
        "discard_weights": "",
        "is_inpainting": False,
        "is_instruct_pix2pix": False,
    }
    models = {
        digest: {"name": f"{name}.safetensors"} for digest, name in zip(hashes, "ab", strict=True)
    }
    metadata = {"sd_merge_recipe": json.dumps(record), "sd_merge_models": json.dumps(models)}
    save_file({"weight": torch.zeros(2)}, "web.safetensors", metadata)
    run = lorakit_here("merge", "web.safetensors", "--search", "models", "-o", "m.safetensors")
    assert (run.status, run.err) == (0, "")
    assert "note not carried: " in run.out
    assert is_mix(load_file("m.safetensors"), 0.3)


def test_the_seed_of_a_recipe_is_its_own_unless_another_is_given() -> None:
    text = RECIPE.replace('"lerp"', '"dare"\ndensity = 0.5\nseed = 3').replace('"$share"', "1")
    Path("r.toml").write_text(text, "utf-8")
    first, own, other = (
        merged("r.toml", "--search", "models", *more, output=f"{n}.safetensors")
        for n, more in enumerate(((), ("--seed", "3"), ("--seed", "4")))
    )
    assert torch.equal(first[Q], own[Q])
    assert not torch.equal(first[Q], other[Q])


def test_a_recipe_may_ask_for_a_lora() -> None:
    text = RECIPE.replace('dtype = "fp32"', 'kind = "lora"\nrank = 4')
    Path("r.toml").write_text(text, "utf-8")
    words = ("merge", "r.toml", "--set", "share=0.5", "--search", "models", "-o", "l.safetensors")
    planned = lorakit_here(*words, "--dry-run")
    assert planned.status == 0
    assert "rank rule 4, float16" in planned.out
    assert lorakit_here(*words).status == 0
    lora = load_file("l.safetensors")
    assert {len(lora[key]) for key in lora if key.endswith("lora_A.weight")} == {4}
    assert {lora[key].dtype for key in lora if "lora_" in key} == {torch.float16}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("r.toml", "--search", "models"), 2, "`$share` has no value; give one, as in --set share=0.3"),
        (("r.toml", "--set", "share=0.3"), 2, "as in `B=PATH`, or look with --search FOLDER") ,
        (("r.toml", "--set", "share=0.3", "--search", "nowhere"), 2, "no folder"),
        (("r.toml", "--set", "share=much", "--search", "models"), 2, "write NAME=NUMBER"),
        (("r.toml", "--set", "other=1", "--set", "share=1", "--search", "models"), 2, "nearest: "),
        (("r.toml", "D=models/deep/a.safetensors", "--set", "share=1"), 2, "no file `D`; nearest"),
        (("r.toml", "-m", "ties", "--set", "share=1"), 2, "a recipe says its own"),
        (("none.toml",), 2, "cannot be read"),
        (("bad.toml",), 2, "line 3"),
        (("models/deep/a.safetensors",), 2, "give a second model to merge it with"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_no_file(
    words: tuple[str, ...], status: int, said: str, folder: Path
) -> None:
    Path("bad.toml").write_text(RECIPE.replace("[[step]]", "[[stepp]]"), "utf-8")
    Path("a.safetensors").write_bytes(Path("models/deep/a.safetensors").read_bytes())
    if "`B=PATH`" in said:
        (folder / "models").rename(folder.parent / f"{folder.name} models")
    before = contents(folder)
    run = lorakit_here("merge", *words, "-o", "m.safetensors")
    assert run.status == status, run.err
    assert run.err.startswith("Error: ")
    assert run.err.count("\n") == 1
    assert said in run.err
    assert contents(folder) == before


def test_a_lora_of_a_merge_has_its_recipe_and_is_made_again_from_itself() -> None:
    models = [f"models/deep/{name}.safetensors" for name in "ab"]
    words = ("--base", models[0], models[1], "--rank", "3", "--dtype", "fp32", "--component", "te")
    assert lorakit_here("merge", *words, "-o", "l.safetensors").status == 0
    with safe_open("l.safetensors", "pt") as file:
        told = file.metadata()
    recipe = json.loads(told["lorakit.recipe"])
    hashes = {hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in models}
    assert {one["sha256"] for one in recipe["files"].values()} == hashes
    assert recipe["output"] == {"dtype": "fp32", "kind": "lora", "rank": "3"}
    assert (told["lorakit.operation"], told["lorakit.rank"]) == ("extract", "3")
    assert told["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    shown = lorakit_here("recipe", "l.safetensors")
    assert shown.status == 0
    assert 'kind = "lora"' in shown.out
    held = lorakit_here("recipe", "l.safetensors", "--verify", "--search", "models")
    assert held.status == 2
    assert "l.safetensors is a LoRA of a merge" in held.err
    again = lorakit_here("merge", "l.safetensors", "--search", "models", "-o", "m.safetensors")
    assert again.status == 0, again.err
    one, other = load_file("l.safetensors"), load_file("m.safetensors")
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_lora_of_two_checkpoints_has_no_recipe() -> None:
    words = ("models/deep/a.safetensors", "models/deep/b.safetensors", "--rank", "3")
    assert lorakit_here("extract", *words, "-o", "l.safetensors").status == 0
    with safe_open("l.safetensors", "pt") as file:
        assert not {"lorakit.recipe", "sd_merge_models"} & file.metadata().keys()
