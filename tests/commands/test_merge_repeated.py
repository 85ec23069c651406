"""A merged file says all that made it: how its LoRAs were read, and what was allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import SD1, grid, trained
from commands import DIGITS, lorakit_here
from safetensors.torch import save_file

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
