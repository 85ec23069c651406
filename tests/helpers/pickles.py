"""Pickles by the opcode, and the archives that `torch.save` puts them into."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Iterable, Mapping

PROTO = b"\x80\x02"
MAGIC = 0x1950A86A20F9469CFC6C


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """LONG1."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def many(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + many(*arguments) + b"R"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """BINPERSID of a storage."""
    parts = (text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    return many(*parts) + b"Q"


def tensor(
    held: bytes | None = None, offset: int = 0, shape: Iterable[int] = (4,),
    strides: Iterable[int] = (1,),
) -> bytes:  # fmt: skip
    """`_rebuild_tensor_v2`."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if held is None else held,
        number(offset),
        many(*map(number, shape)),
        many(*map(number, strides)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def fields(values: Mapping[str, bytes]) -> bytes:
    """A dict."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def zipped(value: bytes, storages: Mapping[str, bytes] | None = None, **entries: bytes) -> bytes:
    """The archive that torch 1.6 and later write."""
    held = {"0": bytes(16)} if storages is None else storages
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + value + b".")
        for key, data in held.items():
            archive.writestr(f"archive/data/{key}", data)
        for entry, data in entries.items():
            archive.writestr(f"archive/{entry}", data)
    return buffer.getvalue()


def in_a_row(value: bytes, storages: Mapping[str, bytes] | None = None, width: int = 4) -> bytes:
    """What torch wrote before."""
    held = {"0": bytes(16)} if storages is None else storages
    pickles = [pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, {}, list(held))]
    pickles.insert(3, PROTO + value + b".")
    data = [struct.pack("<q", len(data) // width) + data for data in held.values()]
    return b"".join([*pickles, *data])


#: What the generator below puts together: most of it names what a checkpoint may name.
_FRAGMENTS = [
    *(b"N", b"\x88", b"(", b")", b"]", b"}", b"\x8f", b"K\x07", b"M\xff\xff", b"J\xff\xff\xff\xff"),
    *(b"G" + bytes(8), number(1 << 62), number(-(1 << 300)), number(4), number(0)),
    *(text("w"), text("storage"), text("0"), text("\ud800"), text("__metadata__"), text("items")),
    *(b"T\x01\0\0\0w", b"U\x01\xff", b"C\x02ab", b"B\x01\0\0\0b", b"\x8c\x01x", b"\x8d" + bytes(8)),
    *(b"t", b"\x85", b"\x86", b"\x87", b"\x91", b"\x90", b"a", b"e", b"s", b"u", b"R", b"\x81", b"b"),
    *(b"\x92", b"Q", b"\x93", b"\x94", b"q\x01", b"q\x02", b"h\x01", b"h\x02", b"j\x01\0\0\0"),
    *(b"r\xff\xff\xff\xff", b"0", b"1", b"2", b"o", b"\x82\x01", b"\x95" + bytes(8), b"\x8b\xff\xff\xff\x7f"),
    *(name("torch", one) for one in ("Tensor", "FloatTensor", "Size", "device", "float32", "nn")),
    *(name("torch", one) for one in ("FloatStorage", "HalfStorage", "QInt8Storage", "UntypedStorage")),
    *(name("collections", one) for one in ("OrderedDict", "Counter")),
    *(name("builtins", one) for one in ("bytearray", "set", "eval", "getattr")),
    *(name("torch._utils", f"_rebuild_{one}") for one in ("tensor", "tensor_v2", "tensor_v3", "qtensor")),
    *(name("torch._utils", f"_rebuild_{one}") for one in ("parameter", "sparse_tensor", "nested_tensor")),
    *(name("torch._tensor", "_rebuild_from_type_v2"), name("_codecs", "encode")),
    *(storage(), storage(count=10**15), storage("9"), tensor(), tensor(shape=(2, 2), strides=(2, 1))),
    *(fields({"w": tensor()}), many(number(2), number(2)), call(name("collections", "OrderedDict"))),
]  # fmt: skip


def random_pickle(generator: random.Random) -> bytes:
    """A dict of tensors with something put in, left out or changed, or nothing but fragments."""
    if generator.random() < 0.3:
        return b"".join(generator.choices(_FRAGMENTS, k=generator.randrange(1, 40)))
    held = storage(kind=generator.choice(("FloatStorage", "FloatStorage", "QInt32Storage")))
    values = {"w": tensor(held), "b": tensor(shape=(2,), strides=(2,))}
    values |= {generator.choice("xyzwb"): generator.choice(_FRAGMENTS) for _ in range(2)}
    whole = bytearray(fields(values))
    for _ in range(generator.randrange(3)):
        at = generator.randrange(len(whole))
        match generator.randrange(3):
            case 0:
                whole[at:at] = generator.choice(_FRAGMENTS)
            case 1:
                whole[at] = generator.randrange(256)
            case _:
                del whole[at : at + generator.randrange(1, 12)]
    return bytes(whole)
