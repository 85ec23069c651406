from __future__ import annotations

from pathlib import Path

import pytest

from lorakit.commands.terms import Term, parse_term
from lorakit.lora_ops.errors import ArgumentError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "path", "strength", "blocks"),
    [
        ("A.safetensors", "A.safetensors", 1.0, None),
        ("A.safetensors:0.7", "A.safetensors", 0.7, None),
        ("A.safetensors:0", "A.safetensors", 0.0, None),
        ("B:-0.3:OUTALL", "B", -0.3, "OUTALL"),
        ("C:1:0,0.5,1", "C", 1.0, "0,0.5,1"),
        ("D:1e-2:depth=0,1", "D", 0.01, "depth=0,1"),
        ("dir/x.y.safetensors:.5", "dir/x.y.safetensors", 0.5, None),
        (r"C:\x.safetensors", r"C:\x.safetensors", 1.0, None),
        (r"C:\x.safetensors:0.5", r"C:\x.safetensors", 0.5, None),
        ("d:/x.safetensors:-1:INS", "d:/x.safetensors", -1.0, "INS"),
    ],
)
def test_terms(text, path, strength, blocks):
    assert parse_term(text) == Term(Path(path), strength, blocks)


@pytest.mark.parametrize("rest", ["", ":0.25", ":0.25:INALL"])
@pytest.mark.parametrize("name", ["a:0.5", "a:1:OUTALL", "x:y", r"C:\x", "plain"])
def test_a_file_that_exists_keeps_its_colons(name, rest):
    Path(name).touch()
    term = parse_term(name + rest)
    assert term.path == Path(name)
    assert term.strength == (0.25 if rest else 1.0)
    assert term.blocks == ("INALL" if rest.endswith("L") else None)


def test_the_longest_file_that_exists_wins():
    Path("a").touch()
    Path("a:0.5").touch()
    assert parse_term("a:0.5") == Term(Path("a:0.5"))
    assert parse_term("a:0.5:2") == Term(Path("a:0.5"), 2.0)
    assert parse_term("a:0.6:2") == Term(Path("a"), 0.6, "2")


@pytest.mark.parametrize("exists", [True, False])
def test_blocks_may_be_longer_than_a_file_name(exists):
    if exists:
        Path("a").touch()
    blocks = ",".join(["0.12345678"] * 61)
    assert parse_term(f"a:0.5:{blocks}") == Term(Path("a"), 0.5, blocks)


@pytest.mark.parametrize("strength", ["", "x", "OUTALL", "nan", "inf", "-inf", "0,5"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_bad_strength_is_refused_with_the_way_out(strength, exists):
    if exists:
        Path("a").touch()
    with pytest.raises(ArgumentError, match=r"not a finite strength; write FILE, FILE:STRENGTH"):
        parse_term(f"a:{strength}")
