"""What `lorakit merge` refuses: one line that says what, where and the way out; no file, no change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, SD1, grid
from commands import contents, lorakit_here
from safetensors.torch import save_file

from lorakit.commands.merge_request import _sorted as sorted_words
from lorakit.commands.terms import parse_term
from lorakit.lora_ops import ArgumentError

LORA = ("a.safetensors", "b.safetensors", "--rank", "2")
AB = ("A=a.safetensors", "B=b.safetensors")
Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints, one of another kind, a broken one and a LoRA, in the working folder."""
    monkeypatch.chdir(tmp_path)
    a, b = grid(SD1, torch.float16), grid(SD1, torch.float16, seed=1)
    save_file(a, "a.safetensors")
    save_file(b, "b.safetensors")
    save_file(grid(FLUX, torch.float16), "flux.safetensors")
    save_file(b | {f"model.{Q}.weight": torch.full((48, 48), torch.nan).half()}, "nan.safetensors")
    save_file(b | {f"model.{Q}.weight": torch.zeros(50, 48).half()}, "shape.safetensors")
    lora = {f"{Q}.lora_B.weight": torch.ones(48, 2), f"{Q}.lora_A.weight": torch.ones(2, 48)}
    save_file(lora, "l.safetensors")
    Path("junk.safetensors").write_bytes(b"no model at all")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        # Files.
        (("a.safetensors", "none.safetensors"), 2, "no such file"),
        (("a.safetensors", "junk.safetensors"), 1, "junk.safetensors"),
        (("a.safetensors", "flux.safetensors"), 1, "nothing to merge"),
        (("a.safetensors", "shape.safetensors"), 1, "models of different kinds"),
        (("a.safetensors", "nan.safetensors"), 1, "NaN"),
        (("a.safetensors", "l.safetensors"), 2, "l.safetensors is a LoRA"),
        (("--base", "l.safetensors", "a.safetensors"), 2, "base `l` is an adapter; give a checkpoint"),
        (("a.safetensors", "b.safetensors", "-o", "a.safetensors"), 2, "the same file as the input"),
        (("a.safetensors", "b.safetensors", "-o", "m.toml"), 2, ".safetensors"),
        (("a.safetensors", "b.safetensors", "--json", "a.safetensors"), 2, "must end in `.json`"),
        (("junk.safetensors",), 1, "junk.safetensors: not a safetensors file"),
        (("a.safetensors",), 2, "give a second model to merge it with"),
        (("a.safetensors", "a.safetensors"), 1, "a.safetensors is the only model; give another"),
        (("a.safetensors", "b.safetensors", "r.toml"), 2, "`r.toml` is a recipe, which says all"),
        # Terms.
        (("a.safetensors", "b.safetensors:much"), 2, "is not a finite strength"),
        (("a.safetensors", "b.safetensors:nan"), 2, "is not a finite strength"),
        (("a.safetensors:0", "b.safetensors:0"), 1, "weight other than 0"),
        (("--base", "a.safetensors", "b.safetensors:1:NOPRESET"), 2, "nearest: "),
        (("a.safetensors", "b.safetensors", "--blocks", "OUTALL"), 2, "give the model that is changed as --base"),
        (("--base", "a.safetensors", "b.safetensors", "--where", "nothing=1"), 2, "fits none of"),
        # Lines.
        (("A + 0.3*(B - A)",), 2, "say which files its names are, as in A=PATH"),
        (("A + 0.3*(B - A", *AB), 2, "a `)` is missing at column 15 of the line `A + 0.3*(B - A`"),
        (("0.7*A + 0.4*B", *AB), 2, "add up to 1.1, not to 1"),
        (("A + 0.3*(C - A)", *AB), 2, "`C`, which is neither a file nor a step"),
        (("A + 0.3*(B - A)", *AB, "C=b.safetensors"), 2, "`C` is given and not in the line"),
        (("A + 0.3*(B - A)", *AB, "A=b.safetensors"), 2, "`A` is given twice"),
        (("A + 0.3*(B - A)", *AB, "--base", "a.safetensors"), 2, "a line says its base itself"),
        (("A + $x*(B - A)", *AB), 2, "--set x=0.3"),
        (("A + $x*(B - A)", *AB, "--set", "x"), 2, "`x`: write NAME=NUMBER, as in a=0.3"),
        (("A + $x*(B - A)", *AB, "--set", "x=nan"), 2, "`$x` is nan, not a finite number"),
        (("A + $x*(B - A)", *AB, "--set", "x=1", "--set", "$x=2"), 2, "`$x` is given twice"),
        (("A + 0.3*(B - A)", *AB, "--set", "x=1"), 2, "the recipe has no `$x`"),
        # Methods.
        (("a.safetensors", "b.safetensors", "-m", "slrp"), 2, "did you mean `slerp`?"),
        (("a.safetensors", "b.safetensors", "-m", "ties"), 2, "`ties` needs a base"),
        (("a.safetensors", "b.safetensors", "-m", "lerp"), 2, "`lerp` needs a base, and beside it 1 of"),
        (("a.safetensors", "b.safetensors", "-m", "slerp,t=2"), 2, "give a number from 0 to 1"),
        (("a.safetensors", "b.safetensors", "-m", "slerp,t"), 2, "write NAME,PARAMETER=VALUE"),
        (("a.safetensors", "b.safetensors", "-m", "slerp,u=1"), 2, "no parameter `u`"),
        (("--base", "a.safetensors", "b.safetensors", "-m", "dare,sparsify=some"), 2, "some"),
        # The rest.
        (("a.safetensors", "b.safetensors", "--dtype", "fp12"), 2, "fp12"),
        (("a.safetensors", "b.safetensors", "--dtype", "vea=fp16"), 2, "vea"),
        (("a.safetensors", "b.safetensors", "--component", "clip"), 2, "unet, te or vae"),
        (("a.safetensors", "--component", "clip=b.safetensors"), 2, "clip"),
        (("a.safetensors", "--component", "vae=none.safetensors"), 2, "no such file"),
        (("flux.safetensors", "--component", "te=b.safetensors"), 2, "the file has unet"),
        (("a.safetensors", "--component", "vae="), 2, "write PART=MODEL"),
        (("a.safetensors", "--component", "vae=b.safetensors", "--component", "vae"), 2, "given twice"),
        (("a.safetensors", "b.safetensors", "--shard-size", "big"), 2, "is not a size"),
        (("a.safetensors", "b.safetensors", "--shard-size", "1MB"), 2, "`.safetensors.index.json`"),
        (("a.safetensors", "b.safetensors", "--full-differences"), 2, "write one with --rank"),
        ((*LORA, "--shard-size", "1MB"), 2, "--shard-size is for a model, and a LoRA is written"),
        ((*LORA, "--rounding", "stochastic"), 2, "--rounding is for a model"),
        ((*LORA, "--keep", "on"), 2, "--keep is for a model"),
        ((*LORA, "--dtype", "unet=fp32"), 2, "--dtype unet=fp32 is for a model"),
        ((*LORA, "--component", "vae=b.safetensors"), 2, "--component vae=b.safetensors is for a model"),
        (("a.safetensors", "nan.safetensors"), 1, "keep the base's weights there (--allow-nonfinite)"),
        (("a.safetensors", "b.safetensors", "--search", "."), 2, "one recipe"),
        (("a.safetensors", "b.safetensors", "--seed", "-1"), 2, "--seed"),
        (("--base", "a.safetensors", "b.safetensors", "-r", "none"), 2, "`none`"),
        ((), 2, "Missing argument"),
    ],
)  # fmt: skip
def test_it_is_one_line_and_no_file(
    words: tuple[str, ...], status: int, said: str, folder: Path
) -> None:
    before = contents(folder)
    run = lorakit_here("merge", "-o", "m.safetensors", *words)
    assert run.status == status, run.err
    assert run.out == ""
    *_, last = run.err.strip().splitlines()
    assert last.startswith("Error: ")
    assert said in run.err
    assert run.err.startswith("Usage: ") or run.err.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('B = {name = "b.safetensors", kind = "lora"}', 'b.safetensors is no LoRA, and the recipe says `kind = "lora"`'),
        ('B = {name = "l.safetensors", kind = "checkpoint"}', "l.safetensors is a LoRA, and the recipe says"),
        ('B = {name = "b.safetensors"}', "Error: method `ties` has no parameter `densty`; did you mean `density`?"),
        ('B = {name = "b.safetensors"}+', "step `step1`: method `ties` has no parameter `densty`"),
    ],
)  # fmt: skip
def test_a_recipe_and_its_files(document: str, said: str, folder: Path) -> None:
    text = f'lorakit = 1\nfiles = {{A = {{name = "a.safetensors"}}, {document.rstrip("+")}}}\n'
    text += '[[step]]\nbase = "A"\nmethod = "ties"\ndensty = 0.3\nterms = [{of = "B"}]\n'
    if document.endswith("+"):
        text += '[[step]]\nbase = "step1"\nterms = [{of = "B", weight = 0.1}]\n'
    (folder / "r.toml").write_text(text, "utf-8")
    run = lorakit_here("merge", "r.toml", "-o", "m.safetensors")
    assert (run.status, run.out) == (2, "")
    assert said in run.err
    assert run.err.count("\n") == 1


def test_strict_and_what_is_not_finite(folder: Path) -> None:
    run = lorakit_here(
        *("merge", "a.safetensors", "nan.safetensors"), "--allow-nonfinite", "-o", "m.safetensors"
    )
    assert run.status == 0
    assert "not finite in some model: the base's is kept" in run.out
    more = grid(SD1 | {"model.diffusion_model.out.0.weight": (40,)}, torch.float16)
    save_file(more, "more.safetensors")
    words = ("merge", "a.safetensors", "more.safetensors", "--force", "-o", "m.safetensors")
    assert "only in others 1" in lorakit_here(*words).out
    strict = lorakit_here(*words, "--strict")
    assert strict.status == 1
    assert "not all models have all parameters" in strict.err


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("A=a.safetensors", {"A": "a.safetensors"}),
        (r"A=C:\models\a.safetensors", {"A": r"C:\models\a.safetensors"}),
        ("my name=x=y.safetensors", {"my name": "x=y.safetensors"}),
        (r"C:\x=y\a.safetensors:0.5", {}),
        ("models/x=y.safetensors:0.5", {}),
        ("a.safetensors:0.5:IN04=0.5", {}),
        ("$a*A", {}),
    ],
)
def test_files_by_name_are_told_from_terms(word: str, given: dict[str, str]) -> None:
    found, rest = sorted_words([word])
    assert {name: os.fspath(path) for name, path in found.items()} == given
    assert rest == ([] if given else [word])


def test_a_drive_is_no_weight() -> None:
    term = parse_term(r"C:\models\a b.safetensors:0.5:OUTALL")
    assert (os.fspath(term.path), term.strength) == (r"C:\models\a b.safetensors", 0.5)
    assert term.blocks == "OUTALL"
    with pytest.raises(ArgumentError, match="finite strength"):
        parse_term(r"C:\models\a.safetensors:x")


def test_another_programs_meaning_that_the_method_lacks(folder):
    words = ("merge", "b.safetensors", "b.safetensors", "--base", "a.safetensors")
    run = lorakit_here(*words, "-m", "slerp,legacy=mecha", "-o", "m.safetensors")
    assert run.status != 0
    assert "method `slerp` has no meaning of its own in `mecha`" in run.err
    assert not (folder / "m.safetensors").exists()


@pytest.mark.parametrize(
    "words",
    [("merge", "a.safetensors", "b.safetensors"), ("bake", "a.safetensors", "l.safetensors")],
)
@pytest.mark.parametrize("output", ["new/", "new"])
def test_a_folder_of_what_is_no_folder(words, output, folder):
    run = lorakit_here(*words, "-o", output)
    assert (run.status, run.out) == (2, "")
    for word in ("new: ", "must end in `.safetensors`", "no single file", "`from_single_file`"):
        assert word in run.err
    assert not (folder / "new").exists()
