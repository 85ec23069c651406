"""Files that are damaged, hostile, or not what their name says: content and words of the refusal."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import torch

FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def container(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file's bytes, whatever the header says; `length` belies the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _one(data: bytes = bytes(4), **fields: object) -> bytes:
    """A file of one tensor with some of its fields replaced, or with more of them."""
    return container({"a": FOUR | fields}, data)


def _two(first: list[int], second: list[int], size: int) -> bytes:
    entries = zip("ab", (first, second), strict=True)
    header = {k: {"dtype": "U8", "shape": [e - b], "data_offsets": [b, e]} for k, (b, e) in entries}
    return container(header, bytes(size))


_ENTRY = json.dumps(FOUR).encode()

#: name -> (content, words that the message must hold)
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "only 7 bytes long"),
    "length zero": (container(b"", b"{}......", 0), "does not begin with the length"),
    "length zero, nothing else": (bytes(8), "does not begin with the length"),
    "length beyond the file": (container({}, length=1000), "truncated inside its header: 10 of"),
    "length above the limit": (container({}, length=100_000_001), "does not begin with the length"),
    "length of 2**62": (container({}, length=2**62), "does not begin with the length"),
    "length negative": (container({}, length=2**64 - 1), "does not begin with the length"),
    "not UTF-8": (container(b'{"\xff": 1}'), "utf-8"),
    "not JSON": (container(b'{"a": '), "the header is damaged"),
    "two JSON texts": (container(b"{} {}"), "Extra data"),
    "an array": (container([]), "does not begin with the length"),
    "leading space": (container(b" {}"), "does not begin with the length"),
    "deep JSON": (container(b'{"a":' * 200_000), "nested too deeply"),
    "deep arrays": (container(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "huge number": (container(b'{"a":' + b"9" * 10_000 + b"}"), "a number of 10000 digits"),
    "NaN": (container(b'{"a": NaN}'), "NaN is not JSON"),
    "key twice": (
        container(b'{"a":' + _ENTRY + b',"a":' + _ENTRY + b"}", bytes(4)),
        "`a` appears twice",
    ),
    "field twice": (
        container(
            b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
        ),
        "`dtype` appears twice",
    ),
    "half a surrogate in a key": (
        container(b'{"\\ud800":' + _ENTRY + b"}", bytes(4)),
        "not valid Unicode",
    ),
    "entry is a number": (container({"a": 1}), "exactly the fields"),
    "entry is null": (container({"a": None}), "exactly the fields"),
    "field missing": (container({"a": {"dtype": "F32", "shape": [0]}}), "exactly the fields"),
    "field too many": (_one(extra=1), "exactly the fields"),
    "dtype unknown": (_one(dtype="F33"), "unknown dtype, `F33`"),
    "dtype in lower case": (_one(dtype="f32"), "unknown dtype"),
    "dtype is a number": (_one(dtype=32), "unknown dtype"),
    "dtype is a list": (_one(dtype=["F32"]), "unknown dtype"),
    "shape is a number": (_one(shape=1), "shape of `a` is not"),
    "shape of true": (_one(shape=[True]), "shape of `a` is not"),
    "shape of floats": (_one(shape=[1.0]), "shape of `a` is not"),
    "shape of strings": (_one(shape=["1"]), "shape of `a` is not"),
    "shape negative": (_one(shape=[-1]), "shape of `a` is not"),
    "shape twice negative": (_one(shape=[-1, -1]), "shape of `a` is not"),
    "shape of 2**64": (_one(shape=[2**64]), "shape of `a` is not"),
    "product overflows to one": (_one(shape=[2**32 + 1, 2**32 - 1]), "shape of `a` is not"),
    "product overflows to zero": (
        container({"a": FOUR | {"shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
        "shape of `a` is not",
    ),
    "overflow hidden by zero": (
        container({"a": FOUR | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}),
        "shape of `a` is not",
    ),
    "65 axes": (_one(shape=[1] * 65), "shape of `a` is not"),
    "half a byte": (_one(bytes(1), dtype="F4", data_offsets=[0, 1]), "no whole bytes"),
    "offsets swapped": (_one(data_offsets=[4, 0]), "beginning and an end"),
    "three offsets": (_one(data_offsets=[0, 4, 8]), "beginning and an end"),
    "offsets of floats": (_one(data_offsets=[0.0, 4.0]), "beginning and an end"),
    "offsets negative": (_one(data_offsets=[-4, 0]), "beginning and an end"),
    "offsets of true": (
        _one(bytes(1), dtype="U8", data_offsets=[False, True]),
        "beginning and an end",
    ),
    "size too small": (_one(shape=[2]), "needs 8"),
    "size too large": (_one(shape=[]) + bytes(4), "after the data"),
    "size of another dtype": (_one(dtype="F16"), "needs 2"),
    "data missing": (_one(b""), "truncated"),
    "data short by one": (_one(bytes(3)), "truncated"),
    "claims a terabyte": (
        _one(shape=[2**38], data_offsets=[0, 2**40]),
        f"of {2**40 + 8 + len(json.dumps({'a': FOUR | {'shape': [2**38], 'data_offsets': [0, 2**40]}}))} bytes",
    ),
    "trailing byte": (_one(bytes(5)), "1 bytes after the data"),
    "data without tensors": (container({}, bytes(4)), "4 bytes after the data"),
    "overlap": (_two([0, 4], [2, 6], 6), "`b` overlaps"),
    "the same data twice": (_two([0, 4], [0, 4], 4), "`b` overlaps"),
    "hole": (_two([0, 4], [6, 8], 8), "the 2 bytes before `b`"),
    "hole at the start": (_two([2, 4], [4, 8], 8), "the 2 bytes before `a`"),
    "metadata is a list": (container({"__metadata__": []}), "must map strings to strings"),
    "metadata of numbers": (container({"__metadata__": {"a": 1}}), "must map strings to strings"),
    "metadata nested": (container({"__metadata__": {"a": {}}}), "must map strings to strings"),
    "metadata of nothing": (
        container({"__metadata__": {"a": None}}),
        "must map strings to strings",
    ),
}

#: Those that the official library reads all the same, and why we do not.
OFFICIAL_READS = {
    "leading space",  # the format: the header begins with a brace
    "key twice",  # the second one hides the first
    "field too many",  # a later format would mean something by it
    "65 axes",  # nothing can be computed with it
}

#: name -> (content, words that the message must hold): files of other kinds under this name
OTHERS: dict[str, tuple[bytes, str]] = {
    "zip": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(60), "PyTorch zip archive"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "PyTorch pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html><html><body>log in</body></html>", "web page"),
    "json": (b'{"weight_map": {}}', "JSON"),
    "zeros": (bytes(1000), "zeros"),
    "noise": (bytes(range(200, 256)), "does not begin with the length"),
    "text": (b"hello", "only 5 bytes long"),
}


class Payload:
    """Unpickles by calling `os.mkdir`: a folder that is there afterwards was made by the file."""

    def __init__(self, trace: os.PathLike[str]) -> None:
        self.trace = os.fspath(trace)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.trace,)


def malicious(trace: os.PathLike[str], kind: str) -> bytes:
    """A checkpoint that runs code when unpickled: a torch `zip`, a torch `legacy`, or a bare pickle."""
    content = {"weight": torch.zeros(2), "payload": Payload(trace)}
    buffer = io.BytesIO()
    if kind in ("zip", "legacy"):
        torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    else:
        pickle.dump(content["payload"], buffer, protocol=int(kind.removeprefix("protocol ")))
    return buffer.getvalue()


def recompressed(archive: bytes) -> bytes:
    """A zip archive with the same entries, deflated."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()
