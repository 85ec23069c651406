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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialised
from torch import Tensor

from lorakit.lora_ops import (
    ArgumentError,
    FormatError,
    MetadataReport,
    WriteError,
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


def test_elements_that_torch_does_not_have_and_any_order_stay(tmp_path: Path) -> None:
    """What another program laid out: four bits, a name from the end of the alphabet first."""
    path, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    rows = {
        "z": ("F4", [4, 6], 12),
        "e": ("U8", [0], 0),
        "a": ("F8_E8M0", [3], 3),
        "b": ("I16", [1], 2),
    }
    header: dict[str, object] = {"__metadata__": {"k": "v"}}
    end = 0
    for key, (dtype, shape, size) in rows.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(end)))
    edited(path, output, changes={"modelspec.tags": "x"})
    assert content(output) == content(path)
    assert (8 + struct.unpack("<Q", output.read_bytes()[:8])[0]) % 8 == 0, "aligned, as it was not"
    report = edited(output, output, removals=["modelspec.*"], force=True)
    assert content(output) == content(path)
    assert report.data_sha256 == hashlib.sha256(bytes(range(end))).hexdigest()
    assert read_metadata(output) == {"k": "v"}


def test_interrupted_it_leaves_nothing(
    tmp_path: Path, large: tuple[Path, dict[str, Tensor]]
) -> None:
    path, _ = large
    before = path.read_bytes()
    seen: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, name: str) -> None:
        seen.append((done, total, name))
        raise KeyboardInterrupt

    plan = plan_metadata_file(path, {"a": "b"}, output=path, force=True)
    with pytest.raises(KeyboardInterrupt):
        edit_metadata_file(plan, path, force=True, progress=stop)
    size = len(content(path)[1])
    assert seen == [(size, size, path.name)]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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
