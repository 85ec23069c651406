"""What files record of themselves and of their inputs: commands compare it, and say what differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, grid, trained
from commands import lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, what was made of it, and the LoRA between them: of rank 4, another of 2."""
    base = grid(FLUX, torch.float32)
    save_file(base, tmp_path / "base.safetensors")
    save_file(trained(base), tmp_path / "tuned.safetensors")
    save_file({key: value + 1 for key, value in base.items()}, tmp_path / "third.safetensors")
    names = ("base", "tuned")
    pair = [tmp_path / f"{name}.safetensors" for name in names]
    assert lorakit_here("extract", *pair, "-o", tmp_path / "lora.safetensors", "-r", 4).status == 0
    assert lorakit_here("extract", *pair, "-o", tmp_path / "two.safetensors", "-r", 2).status == 0
    return tmp_path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def flip(path: Path) -> None:
    """Turn one bit of the last tensor: no number becomes NaN or infinite."""
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


def verify(folder: Path, *words: object, base: str = "base", tuned: str = "tuned"):
    names = (f"{base}.safetensors", f"{tuned}.safetensors")
    lora = folder / "lora.safetensors"
    return lorakit_here("verify", *(folder / name for name in names), lora, *words)


class TestVerify:
    def test_what_is_recorded_passes(self, folder: Path) -> None:
        done = verify(folder)
        assert done.status == 0, done.err
        assert "sha256" not in done.out

    def test_a_bit_of_the_lora_is_told(self, folder: Path) -> None:
        flip(folder / "lora.safetensors")
        done = verify(folder, "--allow-other")
        assert done.status == 1
        assert "lora.safetensors: the data is not what `sshs_model_hash` says" in done.err

    @pytest.mark.parametrize("side", ["base", "tuned"])
    def test_a_bit_of_a_checkpoint_is_told(self, side: str, folder: Path) -> None:
        flip(folder / f"{side}.safetensors")
        true = hashlib.sha256((folder / f"{side}.safetensors").read_bytes()).hexdigest()
        done = verify(folder)
        assert done.status == 1
        assert f"{side} was `{side}.safetensors`" in done.err
        assert true[:12] in done.err
        other = {"base": "tuned", "tuned": "base"}[side]
        assert f"{other} was" not in done.err

    def test_swapped_is_said_so(self, folder: Path) -> None:
        done = verify(folder, base="tuned", tuned="base")
        assert done.status == 1
        assert "base and tuned are swapped" in done.err

    def test_other_files_pass_where_they_are_allowed(self, folder: Path) -> None:
        assert verify(folder, base="third").status == 1
        done = verify(folder, "--allow-other", "--json", "-", base="third")
        assert done.status == 0, done.err
        (note,) = (one for one in json.loads(done.out)["notes"] if "sha256" in one)
        assert "base was `base.safetensors`" in note
        assert "`third.safetensors`" in note

    @pytest.mark.parametrize("edit", [["resize", "-r", 2], ["scale", "-s", 1]])
    def test_the_record_outlives_an_edit(self, edit: list[object], folder: Path) -> None:
        lora = folder / "lora.safetensors"
        word, *words = edit
        edited = folder / "edited.safetensors"
        assert lorakit_here(word, lora, "-o", edited, *words).status == 0
        edited.replace(lora)
        assert verify(folder).status == 0
        assert "swapped" in verify(folder, base="tuned", tuned="base").err

    def test_no_record_is_no_fault(self, folder: Path) -> None:
        lora = folder / "lora.safetensors"
        save_file(load_file(lora), lora)
        assert verify(folder).status == 0
        assert verify(folder, base="tuned", tuned="base").status == 0


EDITS: dict[str, list[object]] = {
    "convert": ["--format", "kohya"],
    "resize": ["-r", 2],
    "scale": ["-s", 0.5],
    "add": [],
}


@pytest.mark.parametrize("word", EDITS)
@pytest.mark.parametrize("false", [True, False])
def test_a_false_hash_is_not_washed_clean(word: str, false: bool, folder: Path) -> None:
    lora, output = folder / "lora.safetensors", folder / "out.safetensors"
    if false:
        flip(lora)
    done = lorakit_here(word, lora, "-o", output, *EDITS[word])
    assert done.status == 0, done.err
    assert ("lora.safetensors is not what it says it is" in done.out.replace("\n", " ")) is false
    output.unlink()
    done = lorakit_here(word, lora, "-o", output, *EDITS[word], "--json", "-")
    notes = [one for one in json.loads(done.out)["notes"] if "sshs_model_hash" in one]
    assert len(notes) == false
    told = metadata(lora)["sshs_model_hash"]
    assert all(told[:12] in one for one in notes)


def test_a_false_hash_is_told_of_what_is_baked(folder: Path) -> None:
    flip(folder / "lora.safetensors")
    done = bake(folder, "one", "lora:1")
    assert "lora.safetensors is not what it says it is" in done.out.replace("\n", " ")


def bake(folder: Path, output: str, lora: str, checkpoint: str = "base", word: str = "bake", *more):
    name, _, strength = lora.partition(":")
    return lorakit_here(
        word,
        folder / f"{checkpoint}.safetensors",
        f"{folder / name}.safetensors:{strength}",
        *("-o", folder / f"{output}.safetensors", *more),
    )


class TestUnbake:
    @pytest.fixture(autouse=True)
    def baked(self, folder: Path) -> None:
        assert bake(folder, "one", "lora:0.8").status == 0

    def test_what_is_in_comes_out(self, folder: Path) -> None:
        done = bake(folder, "back", "lora:0.8", "one", "unbake")
        assert done.status == 0, done.err
        assert "stays in" not in done.out
        base, back = (load_file(folder / f"{name}.safetensors") for name in ("base", "back"))
        assert all(torch.allclose(back[key], base[key], atol=1e-5) for key in base)

    @pytest.mark.parametrize(
        ("lora", "said"),
        [
            ("two:0.8", "`two.safetensors` at 0.8 is not among"),
            ("lora:0.7", "in the checkpoint is `lora.safetensors` at 0.8"),
            ("lora:-0.8", "in the checkpoint is `lora.safetensors` at 0.8"),
        ],
    )
    def test_what_is_not_does_not(self, lora: str, said: str, folder: Path) -> None:
        done = bake(folder, "back", lora, "one", "unbake")
        assert done.status == 1
        assert said in done.err
        assert not (folder / "back.safetensors").exists()
        done = bake(folder, "back", lora, "one", "unbake", "--allow-other")
        assert done.status == 0, done.err
        assert said in done.out.replace("\n", " ")

    def test_other_strengths_by_layer_do_not(self, folder: Path) -> None:
        done = bake(folder, "back", "lora:0.8", "one", "unbake", "--where", "*img*=0.5")
        assert done.status == 1
        assert "`lora.safetensors` at 0.8 (*img*=0.5) is to be taken out" in done.err

    def test_a_changed_file_of_the_same_name_does_not(self, folder: Path) -> None:
        (folder / "two.safetensors").replace(folder / "lora.safetensors")
        done = bake(folder, "back", "lora:0.8", "one", "unbake")
        assert (done.status, "another file of the same name" in done.err) == (1, True)

    def test_it_comes_out_once(self, folder: Path) -> None:
        assert bake(folder, "back", "lora:0.8", "one", "unbake").status == 0
        done = bake(folder, "again", "lora:0.8", "back", "unbake")
        assert (done.status, "none any more" in done.err) == (1, True)

    def test_baked_twice_is_said(self, folder: Path) -> None:
        done = bake(folder, "two_times", "lora:0.5", "one")
        assert done.status == 0
        assert "`lora.safetensors` at 0.8 is in the checkpoint already" in done.out
        done = bake(folder, "back", "lora:0.8", "two_times", "unbake")
        assert done.status == 0, done.err
        assert "`lora.safetensors` at 0.5 stays in the checkpoint" in done.out
        done = bake(folder, "clean", "lora:1.3", "two_times", "unbake")
        assert done.status == 0, done.err
        assert "stays in" not in done.out
        base, clean = (load_file(folder / f"{name}.safetensors") for name in ("base", "clean"))
        assert all(torch.allclose(clean[key], base[key], atol=1e-5) for key in base)

    def test_a_checkpoint_without_a_record_is_said(self, folder: Path) -> None:
        done = bake(folder, "back", "lora:1", "tuned", "unbake")
        assert done.status == 0, done.err
        assert "has no record of what was baked into it" in done.out


def test_one_lora_twice_in_one_bake_is_said(folder: Path) -> None:
    lora = folder / "lora.safetensors"
    output = folder / "one.safetensors"
    done = lorakit_here("bake", folder / "base.safetensors", lora, lora, "-o", output)
    assert done.status == 0
    assert "`lora.safetensors` at 1 is in the checkpoint already" in done.out
