"""Headers of GGUF files: what is read without the package that decodes, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from lorakit.lora_ops import describe
from lorakit.lora_ops.errors import FormatError, QuantisedError
from lorakit.lora_ops.files import open_source, refuse_quantised
from lorakit.lora_ops.files.quantised import gguf as scheme

Q8_0, Q4_K, F32 = 8, 12, 0
NAME = "double_blocks.0.img_attn.qkv.weight"


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word.encode())) + word.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


WORDS = struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("")
ENTRIES = [
    entry("general.architecture", 8, text("flux")),
    entry("some.list", 9, WORDS),
    entry("some.number", 6, struct.pack("<f", 0.5)),
    entry("general.alignment", 4, struct.pack("<I", 32)),
]
TENSORS = [tensor(NAME, (4, 64), Q8_0, 0), tensor("norm.scale", (5,), F32, 288)]


def gguf(entries: list[bytes] = ENTRIES, tensors: list[bytes] = TENSORS, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    head += b"".join([*entries, *tensors])
    return head + bytes(-len(head) % 32)


def saved(content: bytes, folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(content)
    return folder / "a.gguf"


DATA = bytes(4 * 2 * 34 + 16) + torch.arange(5.0).numpy().tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_names_shapes_and_plain_numbers_need_no_package(version: int, tmp_path: Path) -> None:
    with open_source(saved(gguf(version=version) + DATA, tmp_path)) as source:
        assert source.keys() == [NAME, "norm.scale"]
        assert source.shape(NAME) == (4, 64)
        assert source.storage(NAME) == "Q8_0"
        assert torch.equal(source.tensor("norm.scale"), torch.arange(5.0))
        assert source.metadata == {"general.architecture": "flux"}
        assert [part.parameters for part in describe(source).components.values()] == [4 * 64 + 5]


def test_without_the_package_it_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(scheme.importlib, "import_module", absent)
    with (
        open_source(saved(gguf() + DATA, tmp_path)) as source,
        pytest.raises(QuantisedError, match="`pip install gguf`"),
    ):
        refuse_quantised(source)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    content = gguf() + DATA
    for length in range(4, len(content)):
        with pytest.raises(FormatError, match="truncated"):
            open_source(saved(content[:length], tmp_path))


def test_no_byte_leads_to_anything_but_an_error_of_ours(tmp_path: Path) -> None:
    content = gguf() + DATA
    opened = 0
    for place in range(4, len(gguf())):
        for byte in (0x00, 0x7F, 0xFF):
            broken = bytearray(content)
            broken[place] = byte
            try:
                with open_source(saved(bytes(broken), tmp_path)) as source:
                    for key in source.keys():  # noqa: SIM118
                        assert len(source.shape(key)) <= 4
                opened += 1
            except FormatError:
                pass
    assert opened > 20, "letters of names are free"


BIG = 2**62


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf(version=1), "its version is 1"),
        (b"GGUF\0\0\0\x03" + bytes(60), "its version is 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, BIG, 0) + bytes(99), "truncated|damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, BIG) + bytes(99), "truncated|damaged"),
        (gguf([entry("a", 8, struct.pack("<Q", BIG))]), "it is truncated"),
        (gguf([entry("a", 9, struct.pack("<IQ", 4, BIG))]), "it is truncated"),
        (gguf([entry("a", 9, struct.pack("<IQ", 9, 1) * 9)]), "an entry of kind 9"),
        (gguf([entry("a", 13, b"")]), "an entry of kind 13"),
        (gguf([entry("a", 8, struct.pack("<Q", 1) + b"\xff")]), "not valid Unicode"),
        (gguf([entry("general.alignment", 4, bytes(4))]), "its alignment is no number"),
        (gguf(tensors=[tensor("a", (1,) * 6, F32, 0)]) + DATA, "has 6 axes"),
        (gguf(tensors=[tensor("a", (4, 64), 4, 0)]) + DATA, "of type 4, which is not known"),
        (gguf(tensors=[tensor("a", (4, 60), Q8_0, 0)]) + DATA, r"\[4, 60\].* is none of Q8_0"),
        (gguf(tensors=[tensor("a", (BIG, 64), Q8_0, 0)]) + DATA, "is none of Q8_0"),
        (gguf(tensors=[tensor("a", (4, 64), Q8_0, BIG)]) + DATA, "truncated"),
        (gguf(tensors=[TENSORS[0], TENSORS[0]]) + DATA, "appears twice"),
        (gguf(tensors=[TENSORS[0], tensor("b", (4,), F32, 64)]) + DATA, "overlaps"),
        (gguf(tensors=[]), "without tensors"),
        (
            gguf([entry(f"comfy.gguf.orig_shape.{NAME}", 9, struct.pack("<IQ2i", 5, 2, 4, 65))])
            + DATA,
            r"told as \(4, 65\), but it holds \[4, 64\]",
        ),
    ],
)
def test_hostile_headers_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        open_source(saved(content, tmp_path))
