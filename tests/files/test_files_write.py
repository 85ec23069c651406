"""Writing safetensors files: the official library reads them, with equal values and metadata."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_equal, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lorakit.lora_ops.errors import ArgumentError, WriteError
from lorakit.lora_ops.files import (
    MemoryFile,
    SafetensorsFile,
    SafetensorsWriter,
    data_sha256,
    file_sha256,
    save,
    writer_of,
)
from lorakit.lora_ops.files.dtypes import DTYPE_BITS, torch_dtypes
from lorakit.lora_ops.files.header import MAX_HEADER

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")

ADAPTER = {
    "a.lora_up.weight": noise(torch.float16, (5, 3)),
    "a.lora_down.weight": noise(torch.float16, (3, 7)),
    "a.alpha": torch.tensor(3.0),
    "b.lora_up.weight": noise(torch.bfloat16, (16, 4)),
    "b.lora_down.weight": noise(torch.float32, (4, 9)),
    "b.alpha": torch.tensor(4.0),
    "c.position_ids": torch.arange(7),
    "c.mask": torch.tensor([True, False, True]),
    "c.nothing": torch.empty(0, 4),
}


def parts(path: Path) -> tuple[dict[str, Any], int, bytes]:
    """A file's header, the length of its text, and the data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), length, content[8 + length :]


def assert_sound(path: Path, tensors: dict[str, Tensor]) -> None:
    """Valid for the official library, equal, aligned, without holes."""
    theirs = load_file(path)
    assert theirs.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert_equal(theirs[key], tensor)
    header, length, data = parts(path)
    header.pop("__metadata__", None)
    assert (8 + length) % 8 == 0
    end = 0
    for entry in header.values():  # in file order
        begin, nxt = entry["data_offsets"]
        assert begin == end
        assert begin % (DTYPE_BITS[entry["dtype"]] // 8) == 0
        end = nxt
    assert end == len(data)


@pytest.mark.parametrize("room", [0, 1, 100, 4096])
def test_the_official_library_reads_it(room: int, tmp_path: Path) -> None:
    """Also where the header outgrows the room that was kept for it."""
    path = tmp_path / "ünï cödé.safetensors"
    with SafetensorsWriter(path, header_room=room) as writer:
        for key, tensor in ADAPTER.items():
            writer.write(key, tensor)
        written = writer.finish({"title": "ß\n😀", "ss_v2": "True"}, hash_keys=("sshs_model_hash",))
    assert_sound(path, ADAPTER)
    header, _, data = parts(path)
    digest = hashlib.sha256(data).hexdigest()
    assert header["__metadata__"] == {"sshs_model_hash": digest, "ss_v2": "True", "title": "ß\n😀"}
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    with safe_open(path, "pt") as file:
        assert file.metadata() == header["__metadata__"]
    assert (written.path, written.size, written.tensors) == (
        path,
        path.stat().st_size,
        len(ADAPTER),
    )
    assert written.data_sha256 == digest == data_sha256(path)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=12).filter(lambda key: key != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(torch_dtypes())),
            st.lists(st.integers(0, 4), max_size=4),
            st.integers(0, 9),
        ),
        max_size=8,
    ),
    st.dictionaries(st.text(max_size=8), st.text(max_size=30), max_size=3),
    st.integers(0, 600),
)
def test_any_content_makes_the_round_trip(
    content: dict[str, tuple[str, list[int], int]], metadata: dict[str, str], room: int
) -> None:
    tensors = {
        k: noise(torch_dtypes()[n], tuple(shape), seed) for k, (n, shape, seed) in content.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        with SafetensorsWriter(path, header_room=room) as writer:
            for key, tensor in tensors.items():
                writer.write(key, tensor)
            writer.finish(metadata)
        assert_sound(path, tensors)
        with SafetensorsFile(path) as file:
            assert file.metadata == metadata
            assert set(file.keys()) == set(tensors)
            for key, tensor in tensors.items():
                assert_equal(file.tensor(key), tensor)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = {"b": "2", "a": "1"}
    save(tmp_path / "1.safetensors", ADAPTER, metadata, hash_keys=("h",))
    save(tmp_path / "2.safetensors", ADAPTER, dict(sorted(metadata.items())), hash_keys=("h",))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_save_leaves_no_room_to_spare(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = save(path, ADAPTER, {"title": "x"}, hash_keys=("sshs_model_hash",))
    assert_sound(path, ADAPTER)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length]
    assert len(text) - len(text.rstrip()) < 8
    assert json.loads(text)["__metadata__"]["sshs_model_hash"] == written.data_sha256


def test_the_data_do_not_depend_on_the_metadata(tmp_path: Path) -> None:
    first = save(tmp_path / "1.safetensors", ADAPTER)
    second = save(tmp_path / "2.safetensors", ADAPTER, {"long": "x" * 5000})
    assert first.data_sha256 == second.data_sha256


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "transposed": base.T,
        "sliced": base[1:, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    save(tmp_path / "a.safetensors", views)
    theirs = load_file(tmp_path / "a.safetensors")
    for key, view in views.items():
        assert torch.equal(theirs[key], view.detach().resolve_conj()), key


def test_what_was_given_may_change_afterwards(tmp_path: Path) -> None:
    odd, even = torch.ones(3), torch.ones(4)
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path) as writer:
        writer.write("odd", odd)
        writer.write("even", even)
        odd.zero_()
        even.zero_()
        writer.finish()
    assert all(tensor.eq(1).all() for tensor in load_file(path).values())


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path) as writer:
        writer.write("a", torch.ones(1))
        for key in ("a", "__metadata__"):
            with pytest.raises(ValueError, match=f"`{key}` cannot be written"):
                writer.write(key, torch.ones(1))
        with pytest.raises(ArgumentError, match="complex128"):
            writer.write("b", torch.ones(1, dtype=torch.complex128))
        with pytest.raises(TypeError, match="strings"):
            writer.finish({"rank": 4})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_no_loader_takes_is_not_written(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "a.safetensors") as writer:
        writer.write("a", torch.ones(1))
        with pytest.raises(WriteError, match="shorten the metadata"):
            writer.finish({"long": "x" * MAX_HEADER})
    assert list(tmp_path.iterdir()) == []


@posix_only
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "a.safetensors", ADAPTER)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~umask


def test_long_names_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".safetensors")
    save(path, ADAPTER)
    assert_sound(path, ADAPTER)


@pytest.mark.parametrize("name", ["half a pair \ud800", "__metadata__"])
def test_a_name_that_no_reader_takes_is_not_written(name: str, tmp_path: Path) -> None:
    words = "not valid Unicode" if "pair" in name else "keeps that name for its metadata"
    path = tmp_path / "a.safetensors"
    with pytest.raises(ArgumentError, match=words):
        save(path, {name: torch.ones(1)})
    assert list(tmp_path.iterdir()) == []
    with (
        writer_of(MemoryFile("a.safetensors"), header_room=8, replace=False) as writer,
        pytest.raises(ArgumentError, match=words),
    ):
        writer.write(name, torch.ones(1))


def test_metadata_may_name_files_whose_names_are_no_unicode(tmp_path: Path) -> None:
    """Linux takes any bytes as a name; Python gives half surrogate pairs for them."""
    path = tmp_path / "a.safetensors"
    save(path, {"a": torch.ones(1)}, {"base": "m\udcff.safetensors"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"base": "m?.safetensors"}
