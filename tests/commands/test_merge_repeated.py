"""A merged file says all that made it: how its LoRAs were read, and what was allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import SD1, grid, trained
from commands import DIGITS, contents, lorakit_here
from namings import both
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.models.architectures import architecture_named

BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, one with an infinite weight, and a LoRA with a layer that neither has."""
    monkeypatch.chdir(tmp_path)
    a = grid(SD1, torch.float16)
    b = trained(a)
    b[f"model.{BLOCK}.attn1.to_q.weight"][0, 0] = torch.inf
    layers = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_z")
    lora = {f"{one}.lora_{side}.weight": torch.ones(s) for one in layers for side, s in SIDES}
    for name, tensors in {"a": a, "b": b, "lora": lora}.items():
        save_file(tensors, f"{name}.safetensors")
    return tmp_path


SIDES = (("A", (2, 48)), ("B", (48, 2)))


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (
            ("--base", DIGITS / "base.safetensors", DIGITS / "dora.safetensors", "--dora", "comfy"),
            {"dora": "comfy"},
        ),
        (("a.safetensors", "b.safetensors", "--allow-nonfinite"), {"allow": ["nonfinite"]}),
        (
            ("--base", "a.safetensors", "lora.safetensors", "--allow-partial"),
            {"allow": ["partial"]},
        ),
    ],
)
def test_it_is_made_again_without_being_told_again(
    words: tuple[object, ...], recorded: dict[str, object]
) -> None:
    assert lorakit_here("merge", *words, "-o", "m.safetensors").status == 0
    again = ("m.safetensors", "--search", ".", "--search", DIGITS)
    run = lorakit_here("merge", *again, "-o", "again.safetensors")
    assert (run.status, run.err) == (0, "")
    assert Path("again.safetensors").read_bytes() == Path("m.safetensors").read_bytes()
    run = lorakit_here("recipe", *again, "--verify")
    assert (run.status, run.err) == (0, "")
    assert output_of("m.safetensors") == recorded


def test_what_verifying_finds_is_json() -> None:
    words = ("--base", DIGITS / "base.safetensors", f"{DIGITS / 'tuned.safetensors'}:0.5")
    assert lorakit_here("merge", *words, "-o", "m.safetensors").status == 0
    verify = ("recipe", "m.safetensors", "--search", DIGITS, "--verify", "--json")
    found = json.loads(lorakit_here(*verify, "-").out)
    tensors = load_file("m.safetensors")
    assert (found["same"], found["equal"]) == (True, len(tensors))
    with safe_open("m.safetensors", "pt") as file:
        metadata = file.metadata()
    key = next(key for key, one in tensors.items() if one.ndim == 2)
    save_file(tensors | {key: tensors[key] + 1}, "m.safetensors", metadata)
    assert lorakit_here(*verify, "found.json").status == 1
    found = json.loads(Path("found.json").read_text("utf-8"))
    assert (found["same"], list(found["different"])) == (False, [key])


def test_it_says_what_is_another_models() -> None:
    save_file(trained(grid(SD1, torch.float16)), "b.safetensors")
    run = lorakit_here("merge", "--base", "a.safetensors", "b.safetensors", "-o", "m.safetensors")
    assert "0 weights merged, 24 taken from another, 3 tensors copied" in run.out
    words = ("merge", "a.safetensors", "--component", "vae=b.safetensors", "--keep", "on")
    for dry in ((), ("--dry-run",)):
        run = lorakit_here(*words, *dry, "--force", "-o", "m.safetensors")
        told = "of 29 tensors 0 merged, 2 taken, 27 copied" if dry else "0 weights merged, 2 taken"
        assert told in run.out
        assert run.out.count("component") == 0  # no table without a row


def test_a_lora_of_a_merge_keeps_what_has_no_factors_when_told() -> None:
    save_file(trained(grid(SD1, torch.float16)), "b.safetensors")
    words = ("merge", "--base", "a.safetensors", "b.safetensors:0.5", "-r", "4", "--force")
    run = lorakit_here(*words, "-o", "l.safetensors")
    assert "--full-differences keeps it" in run.out
    run = lorakit_here(*words, "--full-differences", "-o", "l.safetensors")
    assert (run.status, "keeps it" in run.out) == (0, False)
    assert any(key.endswith(".diff_b") for key in load_file("l.safetensors"))


def test_a_folder_is_made_again_from_itself() -> None:
    for seed, name in enumerate("ab"):
        _, tensors = both(architecture_named("flux"), seed, torch.bfloat16)
        weights = Path(name, "transformer", "diffusion_pytorch_model.safetensors")
        weights.parent.mkdir(parents=True)
        save_file({key.removeprefix("transformer."): one for key, one in tensors.items()}, weights)
        weights.with_name("config.json").write_text("{}")
        index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]}
        Path(name, "model_index.json").write_text(json.dumps(index))
    assert lorakit_here("merge", "a", "b:0.5", "-o", "m").status == 0
    assert lorakit_here("recipe", "m").out.startswith("lorakit = 1")
    run = lorakit_here("recipe", "m", "--search", ".", "--verify")
    assert (run.status, f"{len(tensors)} tensors the same" in run.out) == (0, True)
    assert lorakit_here("merge", "m", "--search", ".", "-o", "again").status == 0
    assert contents(Path("again")) == contents(Path("m"))
    run = lorakit_here("merge", "a", "-o", "none")
    assert (run.status, "give a second model" in run.err) == (2, True)
    run = lorakit_here("merge", "a", "b", "--shard-size", "1MB", "-o", "none")
    assert (run.status, "ends in `.safetensors.index.json`" in run.err) == (2, True)


def output_of(path: str) -> object:
    header = Path(path).read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    return json.loads(metadata["lorakit.recipe"])["output"]


def test_who_runs_it_may_read_its_loras_otherwise() -> None:
    files = (DIGITS / "base.safetensors", DIGITS / "dora.safetensors")
    for name in ("comfy", "paper"):
        words = ("--base", *files, "--dora", name, "-o", f"{name}.safetensors")
        assert lorakit_here("merge", *words).status == 0
    words = ("comfy.safetensors", "--search", DIGITS)
    run = lorakit_here("merge", *words, "--dora", "paper", "-o", "m.safetensors")
    assert run.status == 0
    assert Path("m.safetensors").read_bytes() == Path("paper.safetensors").read_bytes()
    run = lorakit_here("recipe", *words, "--verify", "--dora", "paper")
    assert run.status == 1
    assert "comfy.safetensors is not what its recipe gives" in run.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('allow = ["everything"]', "allow `everything` is unknown: partial or nonfinite"),
        ("allow = 1", "`output` `allow` is `1`, not a list of texts in quotes"),
        ('dora = "mine"', "dora `mine` is unknown: paper or comfy"),
    ],
)
def test_other_words_are_errors(line: str, said: str) -> None:
    Path("r.toml").write_text(
        'lorakit = 1\nfiles.A.name = "a.safetensors"\n[[step]]\nbase = "A"\n[output]\n' + line
    )
    run = lorakit_here("merge", "r.toml", "-o", "m.safetensors")
    assert run.status == 2
    assert said in run.err
