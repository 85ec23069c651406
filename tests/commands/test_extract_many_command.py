"""`lorakit extract` with several tuned checkpoints: files, table, JSON, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import SD1, grid, trained
from commands import lorakit_here
from safetensors.torch import save_file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A base and two that came of it."""
    base = grid(SD1, torch.float16)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "other")]
    for seed, path in enumerate(paths):
        save_file(trained(base, seed=seed) if seed else base, path)
    return paths


def test_a_table_and_files_that_are_those_of_single_extractions(tmp_path: Path, files: list[Path]):
    options = ["--rank", "energy=0.5,max=8", "--dtype", "bf16", "--seed", 3]
    done = lorakit_here("extract", *files, "-o", tmp_path / "out", *options)
    assert (done.status, done.err) == (0, "")
    assert done.out.count("9 layers") == 2
    assert f"wrote 2 of 2 into {tmp_path / 'out'}" in done.out.replace("\n", "")
    (tmp_path / "alone").mkdir()
    for path in files[1:]:
        output = tmp_path / "alone" / path.name
        alone = lorakit_here("extract", files[0], path, "-o", output, *options)
        assert alone.status == 0
        assert output.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_bad_file_has_its_row_and_the_status_is_1(tmp_path: Path, files: list[Path]):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    report = tmp_path / "report.json"
    done = lorakit_here(
        *("extract", files[0], bad, *files[1:], "-o", tmp_path / "out", "--rank", 4),
        *("--json", report),
    )
    assert done.status == 1
    assert done.err == "Error: 1 of 3 could not be extracted\n"
    assert "none: " in done.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one.safetensors",
        "other.safetensors",
    ]
    found = json.loads(report.read_text("utf-8"))["files"]
    assert list(found) == [str(bad), *map(str, files[1:])]
    assert "not a safetensors file" in found[str(bad)]["error"]
    for path in files[1:]:
        assert found[str(path)]["size"] == (tmp_path / "out" / path.name).stat().st_size
        assert {layer["rank"] for layer in found[str(path)]["layers"]} == {4}


def test_a_dry_run_writes_nothing(tmp_path: Path, files: list[Path]):
    done = lorakit_here("extract", *files, "-o", tmp_path / "out", "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert done.out.count("at most") == 2
    assert not (tmp_path / "out").exists()


def test_verbose_shows_the_layers_of_each(tmp_path: Path, files: list[Path]):
    done = lorakit_here("extract", *files, "-o", tmp_path / "out", "--rank", 2, "-v")
    assert done.out.count("attn1.to_q") == 2
    assert done.out.index("one.safetensors") < done.out.index("attn1.to_q")


def test_notes_of_all_are_said_once(tmp_path: Path, files: list[Path]):
    done = lorakit_here("extract", *files, "-o", tmp_path / "out", "--rank", 60)
    (note,) = {line for line in done.out.splitlines() if line.startswith("note")}
    assert "lowered" in note
    assert ".safetensors:" not in note


def test_what_is_asked_wrongly_ends_it_at_once(tmp_path: Path, files: list[Path]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / files[1].name).write_bytes(b"dear")
    done = lorakit_here("extract", *files, "-o", tmp_path / "out")
    assert done.status == 2
    assert "exists already" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [files[1].name]
    done = lorakit_here("extract", *files, "-o", tmp_path / "out", "--force", "--rank", 2)
    assert done.status == 0
