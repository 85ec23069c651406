"""lorakit metadata, and what lorakit info says of what a file says: shown, written again, refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from commands import REAL, contents, lorakit_here, lorakit_there, tiny
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.adapters.metadata.thumbnail import read_thumbnail

SAID = {
    "ss_tag_frequency": json.dumps({"1_a": {"ohwx": 4, "rare": 1}}),
    "ss_network_dim": "4",
    "notes": "text that is no list",
    "modelspec.author": "a [red]person[/]\n",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of a few thousand numbers that says something."""
    path = tmp_path / "model.safetensors"
    save_file(tiny(), path, SAID)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())


def test_all_of_it_is_shown_and_nothing_is_marked_up(file: Path) -> None:
    shown = lorakit_here("metadata", file)
    assert shown.status == 0
    lines = [line.split(maxsplit=1) for line in shown.out.splitlines()]
    assert [key for key, _ in lines] == sorted(SAID)
    assert ["modelspec.author", "a [red]person[/]\\n"] in [[k, v.rstrip()] for k, v in lines]


def test_json_is_exact(file: Path, tmp_path: Path) -> None:
    shown = lorakit_here("metadata", file, "--json", "-")
    assert json.loads(shown.out) == {"name": str(file), "metadata": SAID}
    report = tmp_path / "said.json"
    assert lorakit_here("metadata", file, "--json", report).out.count("\n") == len(SAID)
    assert json.loads(report.read_text("utf-8"))["metadata"] == SAID


def test_long_ones_are_shortened_and_a_picture_is_its_size(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "red").save(tmp_path / "red.png")
    output = tmp_path / "out.safetensors"
    words = ("--set", f"note={'x' * 5000}", "--thumbnail", tmp_path / "red.png")
    assert lorakit_here("metadata", file, *words, "-o", output).status == 0
    shown = " ".join(lorakit_here("metadata", output).out.split())
    assert "(5000 characters)" in shown
    assert "modelspec.thumbnail image/jpeg, " in shown
    assert "base64" not in shown


def test_info_tells_what_a_file_and_its_sidecar_say(file: Path) -> None:
    file.with_suffix(".json").write_text('{"activation text": "zzz", "preferred weight": 0.5}')
    rows = dict(
        line.split(maxsplit=1) if "  " not in line else line.split("  ", 1)
        for line in lorakit_here("info", file).out.splitlines()
        if line.strip()
    )
    told = {key: value.strip() for key, value in rows.items()}
    assert told["trigger words"] == "zzz"
    assert told["preferred weight"] == "0.5"
    assert told["training tags"] == "ohwx: 4; rare: 1"
    assert told["author"] == "a [red]person[/]"
    told = json.loads(lorakit_here("info", file, "--json", "-").out)
    assert told["described"]["trigger_words"] == ["zzz"]
    assert told["metadata"] == SAID


def test_entries_are_set_and_taken_away(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    done = lorakit_here(
        *("metadata", file, "--unset", "ss_*", "--set", "ss_network_dim=8", "--set", "a=b=c"),
        *("--set", "empty=", "-o", output),
    )
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(f"wrote {output}\n")
    wanted = {key: SAID[key] for key in ("notes", "modelspec.author")}
    assert metadata(output) == {**wanted, "ss_network_dim": "8", "a": "b=c", "empty": ""}
    held = load_file(output)
    assert all(torch.equal(held[key], one) for key, one in tiny().items())
    rows = [line.split()[:2] for line in done.out.splitlines()]
    assert ["remove", "ss_tag_frequency"] in rows
    assert ["change", "ss_network_dim"] in rows


@pytest.mark.parametrize("words", [(), ("-o", "out.safetensors")])
def test_a_dry_run_writes_nothing(file: Path, words: tuple[str, ...]) -> None:
    before = contents(file.parent)
    given = [*words[:1], *(file.parent / word for word in words[1:])]
    done = lorakit_here("metadata", file, "--set", "a=b", "--dry-run", *given)
    assert done.out.split() == ["add", "a", "b"]
    done = lorakit_here("metadata", file, "--unset", "ss_*", "--dry-run", *given, "--json", "-")
    assert json.loads(done.out)["removed"] == ["ss_network_dim", "ss_tag_frequency"]
    assert contents(file.parent) == before


def test_the_file_itself_is_written_again_only_by_force(file: Path) -> None:
    before = contents(file.parent)
    words = ("metadata", file, "--set", "a=b", "-o", file)
    refused = lorakit_here(*words)
    assert refused.status == 2
    assert "the same file as the input" in refused.err
    assert contents(file.parent) == before
    assert lorakit_here(*words, "--force").status == 0
    assert metadata(file) == {**SAID, "a": "b"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("path", sorted(REAL.glob("*.safetensors")), ids=lambda path: path.stem)
def test_adapters_of_other_people(tmp_path: Path, path: Path) -> None:
    output = tmp_path / "out.safetensors"
    words = ("--set", "modelspec.trigger_phrase=a word, another")
    assert lorakit_here("metadata", path, *words, "-o", output).status == 0
    told = json.loads(lorakit_here("info", output, "--json", "-").out)
    assert told["described"]["trigger_words"] == ["a word", "another"]
    assert told["architecture"] == "Stable Diffusion 1"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("none.safetensors",), 2, "no such file; did you mean"),
        (("--unset", "ss_network_dm", "-o", "o.safetensors"), 2, "did you mean `ss_network_dim`"),
        (("--unset", "zzz", "-o", "o.safetensors"), 2, "see what there is with `lorakit metadata`"),
        (("--set", "a", "-o", "o.safetensors"), 2, "write it as NAME=VALUE"),
        (("--set", "=a", "-o", "o.safetensors"), 2, "an entry needs a name"),
        (("--set", "a=b"), 2, "give one as -o"),
        (("--set", "a=b", "-o", "o.ckpt"), 2, "must end in `.safetensors`"),
        (("--set", "a=b", "-o", "no/o.safetensors"), 2, "does not exist"),
        (("--set", "a=b", "-o", "there.safetensors"), 2, "exists already"),
        (("--set", "sshs_model_hash=0", "-o", "o.safetensors"), 2, "made true by itself"),
        (("--set", "modelspec.thumbnail=a", "-o", "o.safetensors"), 2, "picture as --thumbnail"),
        (("--thumbnail", "there.safetensors", "-o", "o.safetensors"), 2, "is no picture that can"),
        (("--thumbnail", "none.png", "-o", "o.safetensors"), 2, "none.png: cannot be read"),
        (("--thumbnail", ".", "-o", "o.safetensors"), 2, "cannot be read"),
        (("--json", "there.safetensors"), 2, "a report must end in `.json`"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_all_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: int, message: str
) -> None:
    monkeypatch.chdir(file.parent)
    Path("there.safetensors").write_bytes(b"what was there")
    before = contents(file.parent)
    given = words if words[0] == "none.safetensors" else (file.name, *words)
    done = lorakit_here("metadata", *given)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert contents(file.parent) == before


def test_what_is_no_utf_8_is_refused(file: Path) -> None:
    before = contents(file.parent)
    done = lorakit_there("metadata", file, "--set", "a=\udcff", "-o", f"{file}.safetensors")
    assert done.status == 2
    assert "what `a` is to say is no valid Unicode; give it in UTF-8" in done.err
    assert contents(file.parent) == before


def test_damaged_files_and_other_kinds_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.ckpt")
    output = tmp_path / "out.safetensors"
    for words in ((), ("--set", "a=b", "-o", output)):
        assert "not a safetensors file" in lorakit_here("metadata", broken, *words).err
    done = lorakit_here("metadata", tmp_path / "model.ckpt", "--set", "a=b", "-o", output)
    assert "make one of it with `lorakit convert`" in done.err
    assert lorakit_here("metadata", tmp_path / "model.ckpt").out == "the file has no metadata\n"
    assert not output.exists()


def test_a_header_longer_than_loaders_read_is_refused(tmp_path: Path) -> None:
    path, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a": torch.ones(2)}, path, {"note": "x" * 99_999_000})
    done = lorakit_here("metadata", path, "--set", f"more={'y' * 2000}", "-o", output)
    assert done.status == 1
    assert "is more than loaders read (100000000); shorten the metadata" in done.err
    assert list(tmp_path.iterdir()) == [path]
    assert lorakit_here("metadata", path, "--unset", "note", "-o", output).status == 0


def test_a_thumbnail_is_as_the_specification_wants_it(file: Path, tmp_path: Path) -> None:
    wide = Image.new("RGBA", (900, 400), (0, 0, 0, 0))
    wide.paste((0, 255, 0, 255), (300, 0, 600, 400))
    wide.save(tmp_path / "wide.webp", lossless=True)
    output = tmp_path / "out.safetensors"
    given = ("--thumbnail", tmp_path / "wide.webp", "-o", output)
    assert lorakit_here("metadata", file, *given).status == 0
    found = read_thumbnail(metadata(output))
    assert found is not None
    (tmp_path / "thumbnail").write_bytes(found.data)
    with Image.open(tmp_path / "thumbnail") as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (256, 256), "RGB")
        red, green, blue = picture.getpixel((128, 128))  # type: ignore[misc]
        assert (red < 20, green > 235, blue < 20) == (True, True, True), "the middle"
        assert min(picture.getpixel((2, 128))) > 235, "white behind what is clear"  # type: ignore[type-var]
    assert len(found.data) < 20_000
