"""Metadata written again: the same tensors, hashes by other programs' formulas, nothing lost."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from commands import REAL
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialised
from torch import Tensor

from lorakit.lora_ops import (
    ArgumentError,
    FormatError,
    MetadataReport,
    WriteError,
    architecture_named,
    edit_metadata,
    edit_metadata_file,
    plan_metadata_file,
    read_metadata,
)

SAID = {"ss_output_name": "one", "ss_network_dim": "4", "format": "pt", "né": "ß"}
PICTURE = "data:image/png;base64," + base64.b64encode(b"a picture").decode()


def content(path: Path) -> tuple[dict[str, object], bytes]:
    """The tensors of the header, and the data section, as they are."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, raw[8 + length :]


def kohya_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """sshs_model_hash and sshs_legacy_hash, of the file that sd-scripts hashes: with `ss_*` alone."""
    own = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    raw = serialised(dict(tensors), own)
    stream = io.BytesIO(raw)
    stream.seek(0x100000)
    legacy = hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    return hashlib.sha256(raw[start:]).hexdigest(), legacy


def metadata(path: Path) -> dict[str, str]:
    """As the official library reads it."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def edited(path: Path, output: Path, **given: object) -> MetadataReport:
    force = bool(given.pop("force", False))
    plan = plan_metadata_file(path, **given, output=output, force=force)  # type: ignore[arg-type]
    return edit_metadata_file(plan, output, force=force)


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """More than the megabyte that the old hash begins at; a dtype and a size of each kind."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(600, 600, generator=generator),
        "a": torch.randn(33, 7, generator=generator).half(),
        "odd": torch.ones(3, dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "f8": torch.ones(5, dtype=torch.float8_e4m3fn),
    }
    path = tmp_path / "large.safetensors"
    model_hash, legacy = kohya_hashes(tensors, SAID)
    save_file(tensors, path, {**SAID, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy})
    return path, tensors


def test_the_data_is_the_same_bytes_and_hashes_are_kohyas(
    tmp_path: Path, large: tuple[Path, dict[str, Tensor]]
) -> None:
    path, tensors = large
    output = tmp_path / "out.safetensors"
    changes = {"modelspec.title": "x" * 5000, "note": "a=b\n✓"}
    report = edited(path, output, changes=changes)
    assert content(output) == content(path)
    about = metadata(output)
    assert {key: about[key] for key in (*SAID, *changes)} == SAID | changes
    assert (about["sshs_model_hash"], about["sshs_legacy_hash"]) == kohya_hashes(tensors, about)
    assert about["modelspec.hash_sha256"] == f"0x{about['sshs_model_hash']}"
    assert report.data_sha256 == about["sshs_model_hash"]
    assert report.size == output.stat().st_size
    assert all(torch.equal(one, tensors[key]) for key, one in load_file(output).items())
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_a_hash_that_would_be_false_goes(
    tmp_path: Path, large: tuple[Path, dict[str, Tensor]]
) -> None:
    path, tensors = large
    output = tmp_path / "out.safetensors"
    report = edited(path, output, changes={"ss_output_name": "another name"})
    about = metadata(output)
    assert "sshs_legacy_hash" not in about
    assert metadata(path)["sshs_legacy_hash"] != kohya_hashes(tensors, about)[1]
    assert report.edit.removed == ("sshs_legacy_hash",)
    assert "no longer true" in report.edit.notes[0]


@pytest.mark.parametrize("path", sorted(REAL.glob("*.safetensors")), ids=lambda path: path.stem)
def test_adapters_of_other_people(tmp_path: Path, path: Path) -> None:
    output = tmp_path / "out.safetensors"
    edited(
        path, output, changes={"modelspec.trigger_phrase": "a word", "modelspec.thumbnail": PICTURE}
    )
    assert content(output) == content(path)
    about = metadata(output)
    assert metadata(path).items() <= about.items()
    assert about["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert {
        "modelspec.sai_model_spec",
        "modelspec.implementation",
        "modelspec.title",
    } <= about.keys()
    assert about["modelspec.hash_sha256"] == "0x" + hashlib.sha256(content(path)[1]).hexdigest()
    assert about["modelspec.thumbnail"] == PICTURE


def test_a_false_hash_is_made_true_and_said(tmp_path: Path) -> None:
    path, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a": torch.ones(3)}, path, {"sshs_model_hash": "0" * 64})
    report = edited(path, output)
    assert metadata(output)["sshs_model_hash"] == hashlib.sha256(content(path)[1]).hexdigest()
    assert "was not what `sshs_model_hash` said" in report.notes[0]
    assert not edited(output, tmp_path / "again.safetensors").notes


def test_no_hash_is_added_where_nobody_asked(tmp_path: Path) -> None:
    path, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a": torch.ones(3)}, path)
    edited(path, output, changes={"note": "x"})
    assert metadata(output) == {"note": "x"}


def test_entries_go_by_name_and_pattern() -> None:
    said = {**SAID, "ss_[x]": "1", "lora_adapter_metadata": "{}", "_quantization_metadata": "{}"}
    edit = edit_metadata(said, {"ss_network_dim": "8"}, ["ss_*", "ss_[x]"])
    assert edit.removed == ("ss_[x]", "ss_output_name")
    assert (edit.changed, edit.added) == (("ss_network_dim",), ())
    assert edit_metadata(said, None, ["*"]).metadata.keys() == {
        *("format", "lora_adapter_metadata", "_quantization_metadata")
    }
    assert len(edit_metadata(said, None, ["*"]).notes) == 3
    named = edit_metadata(said, None, ["*", "lora_adapter_metadata", "format"])
    assert named.metadata.keys() == {"_quantization_metadata"}


@given(
    st.dictionaries(st.text("abc*[é", min_size=1, max_size=3), st.text(max_size=3), max_size=6),
    st.dictionaries(st.text("abc*[é", min_size=1, max_size=3), st.text(max_size=3), max_size=6),
    st.sets(st.text("abc*[é", min_size=1, max_size=3), max_size=3),
)
def test_what_changes_is_told_exactly(
    before: dict[str, str], changes: dict[str, str], removals: set[str]
) -> None:
    held = removals & before.keys()
    edit = edit_metadata(before, changes, held)
    assert edit.metadata == {k: v for k, v in before.items() if k not in held} | changes
    told = {*edit.added, *edit.changed, *edit.removed}
    assert told == {
        key for key in {*before, *edit.metadata} if before.get(key) != edit.metadata.get(key)
    }


def test_a_file_gets_what_the_specification_asks_for_once() -> None:
    sdxl = architecture_named("sdxl")
    first = edit_metadata({}, {"modelspec.tags": "a"}, title="one", architecture=sdxl)
    assert first.metadata == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "one",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": "1024x1024",
        "modelspec.tags": "a",
    }
    assert first.hash_keys == ("modelspec.hash_sha256",)
    known = {"modelspec.sai_model_spec": "1.0.0"}
    second = edit_metadata(known, {"modelspec.tags": "a"}, title="one", architecture=sdxl)
    assert second.metadata == {**known, "modelspec.tags": "a"}
    other = edit_metadata({"modelspec.title": "kept"}, {"modelspec.tags": "a"}, title="one")
    assert other.metadata["modelspec.title"] == "kept"


@pytest.mark.parametrize(
    ("changes", "removals", "words"),
    [
        ({"": "x"}, (), "an entry needs a name"),
        ({"a": "\udcff"}, (), "no valid Unicode"),
        ({"\udcff": "a"}, (), "no valid Unicode"),
        ({"sshs_model_hash": "0"}, (), "made true by itself"),
        ({"sshs_legacy_hash": "0"}, (), "made true by itself"),
        ({"modelspec.hash_sha256": "0"}, (), "made true by itself"),
        ({"modelspec.thumbnail": "a.png"}, (), "give a picture as `thumbnail=`"),
        ({}, ("ss_network_dm",), "did you mean `ss_network_dim`"),
        ({}, ("zzz*",), r"no entry is called `zzz\*`; see what there is"),
    ],
)
def test_what_cannot_be_done_is_refused(
    changes: dict[str, str], removals: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        edit_metadata(SAID, changes, removals)


def test_without_metadata_nothing_can_go() -> None:
    with pytest.raises(ArgumentError, match="the file has no metadata"):
        edit_metadata({}, None, ["a"])


def test_the_input_is_replaced_only_by_force_and_as_a_whole(
    tmp_path: Path, large: tuple[Path, dict[str, Tensor]]
) -> None:
    path, tensors = large
    before = path.read_bytes()
    for name in (path, tmp_path / "other.safetensors"):
        if name != path:
            name.hardlink_to(path)
        with pytest.raises(ArgumentError, match="the same file as the input"):
            plan_metadata_file(path, {"a": "b"}, output=name)
    path.chmod(0o640)
    edited(path, path, changes={"a": "b"}, force=True)
    assert metadata(path)["a"] == "b"
    assert path.stat().st_mode & 0o777 == 0o640
    assert all(torch.equal(one, tensors[key]) for key, one in load_file(path).items())
    assert (tmp_path / "other.safetensors").read_bytes() == before, (
        "another name keeps the old file"
    )


def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, large: tuple[Path, dict[str, Tensor]]
) -> None:
    path, tensors = large
    output = tmp_path / "out.safetensors"
    plan = plan_metadata_file(path, {"a": "b"}, output=output)
    save_file({**tensors, "b": tensors["b"] + 1}, path, SAID)
    with pytest.raises(FormatError, match="changed while it was read"):
        edit_metadata_file(plan, output)
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_that_nobody_would_read_is_refused(tmp_path: Path) -> None:
    path, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a": torch.ones(3)}, path)
    plan = plan_metadata_file(path, {"a": "x" * 100_000_000}, output=output)
    with pytest.raises(WriteError, match=r"a header of \d+ bytes is more than loaders read"):
        edit_metadata_file(plan, output)
    assert list(tmp_path.iterdir()) == [path]


def test_only_one_file_of_the_format_can_be_written_again(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is a folder; give the file in it"):
        plan_metadata_file(tmp_path)
    torch.save({"a": torch.ones(3)}, tmp_path / "model.ckpt")
    with pytest.raises(ArgumentError, match=r"make one of it with `convert\(\)`"):
        plan_metadata_file(tmp_path / "model.ckpt")
    with pytest.raises(ArgumentError, match="no such file"):
        plan_metadata_file(tmp_path / "none.safetensors")


def test_metadata_is_read_as_it_is_stored(tmp_path: Path) -> None:
    """A configuration beside an adapter is another file's, and hashes stay in sight."""
    path = tmp_path / "adapter_model.safetensors"
    said = {**SAID, "sshs_model_hash": "wrong", "_quantization_metadata": "{}"}
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 3)}, path, said)
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "peft_type": "LORA"}')
    assert read_metadata(path) == said
