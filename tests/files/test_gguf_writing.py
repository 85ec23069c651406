"""GGUF files as they are written: what llama.cpp's package reads in them, and nothing where they fail."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorakit.lora_ops.errors import WriteError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.files.quantised.encoding_gguf import ENCODED, FILE_TYPES
from lorakit.lora_ops.files.reading.gguf_header import TYPES
from lorakit.lora_ops.files.writing.gguf_writer import (
    GgufLayout,
    GgufTensor,
    GgufWriter,
    number,
    text,
)

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

RECORD = {"lorakit.operation": "test", "modelspec.title": "ein schöner Name", "format": "pt"}
LONGEST = {**RECORD, "lorakit.error": "-1.23456e-300"}
CODES = torch.arange(4 * 2 * 34, dtype=torch.int32).to(torch.uint8).view(4, 68)
LAYOUT = GgufLayout(
    {
        "bias": GgufTensor("layer.bias", "F32", (5,)),
        "weight": GgufTensor("layer.weight", "Q8_0", (4, 64)),
        "kernel": GgufTensor("conv.weight", "F16", (2, 2, 3, 2), (24,)),
        "deep": GgufTensor("patch.weight", "F32", (1, 2, 1, 2, 2)),
    },
    {"general.architecture": text("flux"), "general.file_type": number(7)},
)
DTYPES = {"bias": "F32", "weight": "U8", "kernel": "F16", "deep": "F32"}
TENSORS = {
    "bias": torch.arange(5.0),
    "weight": CODES,
    "kernel": torch.arange(24.0).half().view(2, 2, 3, 2),
    "deep": torch.arange(8.0).view(1, 2, 1, 2, 2),
}


def write(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, str]) -> int:
    with GgufWriter(path, LAYOUT, DTYPES, LONGEST) as writer:
        for key, tensor in reversed(tensors.items()):
            if key == "deep":
                writer.write(key, tensor)
                continue
            for start in range(0, tensor.numel(), 3):
                writer.write_at(key, start, tensor.view(-1)[start : start + 3])
        return writer.finish(record).size


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    """In pieces, in another order than the file's, and with a record shorter than was said."""
    path = tmp_path / "a.gguf"
    size = write(path, TENSORS, RECORD)
    assert (path.stat().st_size, LAYOUT.size(LONGEST)) == (size, size)
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert found["general.architecture"] == "flux"
    assert found["general.file_type"] == 7
    assert found["modelspec.title"] == RECORD["modelspec.title"]
    assert found["comfy.gguf.orig_shape.conv.weight"] == [2, 2, 3, 2]
    assert reader.fields["comfy.gguf.orig_shape.conv.weight"].types == [
        gguf.GGUFValueType.ARRAY,
        gguf.GGUFValueType.INT32,
    ]
    assert "format" not in found
    names = [one.name for one in LAYOUT.tensors.values()]
    assert [one.name for one in reader.tensors] == names
    for one, (key, tensor) in zip(reader.tensors, TENSORS.items(), strict=True):
        told = LAYOUT.tensors[key]
        assert [int(side) for side in one.shape[::-1]] == list(told.stored or told.shape)
        assert one.tensor_type.name == told.type
        assert one.data_offset % 32 == 0
        assert np.array_equal(one.data.reshape(-1), tensor.numpy().reshape(-1))
    with open_source(path) as source:
        for key in ("kernel", "deep", "bias"):
            assert torch.equal(source.tensor(LAYOUT.tensors[key].name), TENSORS[key])
        assert source.metadata["lorakit.operation"] == "test"
        assert "lorakit.padding" not in source.metadata


def test_what_is_missing_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"what was there")
    with pytest.raises(WriteError, match="`kernel` number 12 is the first missing"):
        write(path, {**TENSORS, "kernel": TENSORS["kernel"][0]}, RECORD)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"what was there", [path])


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"fsync": "os.fsync", "open": "lorakit.lora_ops.files.writing.placed.write_at"}
    monkeypatch.setattr(where[call], fail)
    with pytest.raises(WriteError, match="free some space"):
        write(tmp_path / "a.gguf", TENSORS, RECORD)
    assert list(tmp_path.iterdir()) == []


def test_a_longer_record_than_was_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="room for"):
        write(tmp_path / "a.gguf", TENSORS, {**LONGEST, "more": "x" * 99})
    assert list(tmp_path.iterdir()) == []


def test_types_are_the_packages(tmp_path: Path) -> None:
    """Numbers, sizes and what can be encoded are those of the package."""
    for value, one in TYPES.items():
        kind = gguf.GGMLQuantizationType(value)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (one.name, one.block, one.size)
    encoded: set[str] = set()
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.quants.quantize(np.zeros((1, 256), np.float32), kind)
            encoded.add(kind.name)
        except NotImplementedError:
            continue
    assert set(ENCODED) <= encoded
    for name, value in FILE_TYPES.items():
        assert gguf.LlamaFileType(value).name.endswith(f"_{name.upper()}")
