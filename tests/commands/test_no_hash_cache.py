"""--no-hash-cache: hashes are taken anew, and none is remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import DIGITS, lorakit_here

from lorakit.cli import main
from lorakit.lora_ops.files import file_sha256
from lorakit.lora_ops.files import remembered as room

#: Those that hash what they read.
COMMANDS = [
    "add",
    "bake",
    "convert",
    "extract",
    "lint",
    "merge",
    "recipe",
    "requantise",
    "resize",
    "scale",
    "unbake",
    "verify",
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which files of any size are remembered."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(room, "LARGE", 10)
    monkeypatch.setattr(room, "_SETTLED", 0)
    return tmp_path / "sha256"


def test_every_command_that_hashes_has_it() -> None:
    found = {
        name: [word for option in command.params for word in option.opts]
        for name, command in main.commands.items()
    }
    assert sorted(name for name, words in found.items() if "--no-hash-cache" in words) == COMMANDS


def test_hashes_are_taken_anew_and_not_remembered(cache: Path, tmp_path: Path) -> None:
    lora = DIGITS / "lora.safetensors"
    words = ("scale", lora, "--strength", "2", "-o")
    assert lorakit_here(*words, tmp_path / "a.safetensors", "--no-hash-cache").status == 0
    assert not cache.exists()
    assert os.environ["LORAKIT_CACHE"] == str(tmp_path)

    assert lorakit_here(*words, tmp_path / "b.safetensors").status == 0
    (entry,) = cache.glob("*-file")
    sound = entry.read_text("ascii")
    assert file_sha256(lora) in sound
    wrong = "0" * 64
    entry.write_text(sound.replace(file_sha256(lora), wrong), "ascii")

    assert lorakit_here(*words, tmp_path / "c.safetensors").status == 0
    assert wrong in _metadata(tmp_path / "c.safetensors")
    assert lorakit_here(*words, tmp_path / "d.safetensors", "--no-hash-cache").status == 0
    assert wrong not in _metadata(tmp_path / "d.safetensors")
    assert wrong in entry.read_text("ascii")


def test_it_ends_with_the_command_that_fails(cache: Path, tmp_path: Path) -> None:
    run = lorakit_here("scale", tmp_path / "none", "--strength", "2", "-o", "x", "--no-hash-cache")
    assert run.status == 2
    assert os.environ["LORAKIT_CACHE"] == str(tmp_path)


def _metadata(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8")
