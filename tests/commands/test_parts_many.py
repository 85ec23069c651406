"""Several tuned checkpoints, shared among runs: each LoRA is made once, and is that of one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import contents, lorakit_here, tiny
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.operations.extract import many_parts


@pytest.fixture
def words(tmp_path: Path) -> tuple[object, ...]:
    """A command with five tuned checkpoints, all but its output."""
    base = tiny()
    save_file(base, tmp_path / "base.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in "abcde"]
    for number, path in enumerate(paths, 1):
        change = tiny(number, 0.1)
        save_file({k: v + change[k] for k, v in base.items()}, path)
    return "extract", tmp_path / "base.safetensors", *paths, "--rank", "2"


@pytest.fixture
def wanted(words, tmp_path: Path) -> dict[str, bytes | None]:
    made = lorakit_here(*words, "-o", tmp_path / "once")
    assert made.status == 0, made.err
    return contents(tmp_path / "once")


def test_each_part_makes_some(words, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(many_parts, "TOGETHER", 1)
    to = tmp_path / "to"
    made = lorakit_here(*words, "-o", to, "--part", "2/2")
    assert made.status == 0, made.err
    assert set(contents(to)) == {"b.safetensors", "d.safetensors"}
    assert "wrote 2 of 2" in made.out
    again = lorakit_here(*words, "-o", to, "--part", "2/2")
    assert (again.status, "2 of 2 were there already" in again.err) == (0, True)
    assert lorakit_here(*words, "-o", to, "--part", "1/2").status == 0
    assert contents(to) == wanted
    assert not (tmp_path / "to.parts").exists()


def test_what_was_stopped_goes_on(words, wanted, tmp_path):
    """The last of them cannot be read at first, and one that is there is left alone."""
    to, last = tmp_path / "to", tmp_path / "e.safetensors"
    data = last.read_bytes()
    last.write_bytes(b"nothing")
    made = lorakit_here(*words, "-o", to, "--resume")
    assert (made.status, "1 of 5 could not be extracted" in made.err) == (1, True)
    before = {path: path.stat().st_mtime_ns for path in to.iterdir()}
    assert len(before) == 4
    last.write_bytes(data)
    made = lorakit_here(*words, "-o", to, "--resume")
    assert made.status == 0, made.err
    assert "4 of 5 were there already" in made.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(to) == wanted
    assert not (tmp_path / "to.parts").exists()


def test_what_another_command_made_is_not_taken_for_it(words, wanted, tmp_path):
    to = tmp_path / "to"
    assert lorakit_here(*words[:-1], "1", "-o", to, "--part", "1/2").status == 0
    before = contents(to)
    made = lorakit_here(*words, "-o", to, "--part", "1/2")
    assert (made.status, "exists already" in made.err) == (2, True)
    assert contents(to) == before
    assert lorakit_here(*words, "-o", to, "--resume", "--force").status == 0
    assert contents(to) == wanted


def test_a_checkpoint_that_changed_is_extracted_again(words, wanted, tmp_path):
    to = tmp_path / "to"
    assert lorakit_here(*words, "-o", to, "--part", "1/2").status == 0
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({k: v + torch.ones_like(v) for k, v in tensors.items()}, tmp_path / "a.safetensors")
    made = lorakit_here(*words, "-o", to, "--part", "1/2")
    assert (made.status, "a.safetensors: exists already" in made.err) == (2, True)


def test_folders_of_peft(tmp_path):
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.0.self_attn.{one}_proj.weight" for one in "qkvo"]
    base = {name: torch.randn(16, 16, generator=draw) for name in names}
    save_file(base, tmp_path / "base.safetensors")
    for name in "ab":
        changed = {k: v + torch.randn(16, 16, generator=draw) for k, v in base.items()}
        save_file(changed, tmp_path / f"{name}.safetensors")
    inputs = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    words = ("extract", *inputs, "--format", "peft", "--rank", "2")
    assert lorakit_here(*words, "-o", tmp_path / "once").status == 0
    for part in ("1/2", "2/2"):
        assert lorakit_here(*words, "-o", tmp_path / "to", "--part", part).status == 0
    assert contents(tmp_path / "to") == contents(tmp_path / "once")


@pytest.mark.parametrize("option", [("--plan", "plan.json"), ("--part", "1/2", "--verify")])
def test_what_has_no_meaning_is_refused(option, words, tmp_path):
    made = lorakit_here(*words, "-o", tmp_path / "to", *option)
    assert (made.status, made.out) == (2, "")
    assert "leave --plan and --verify out" in made.err
    assert not (tmp_path / "to").exists()
