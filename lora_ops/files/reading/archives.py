"""Where a PyTorch file keeps its pickle and its storages: a zip archive, or one after the other.

Zip archives are written since torch 1.6. Before it came five pickles in a row (a magic number, a
version, the machine, the value, the keys of its storages), then each storage: its number of
elements in 8 bytes, and its bytes, both little-endian.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import FormatError
from .ranges import RangeReader
from .stored import Storage
from .unpickling import MAX_PICKLE, Unpickler, damaged

_MAGIC = 0x1950A86A20F9469CFC6C
_ENCRYPTED = 1  # bit of a zip entry's flags
_LOCAL_HEADER = "<4s22xHH"  # its mark, and the lengths of the name and of the extra field behind it
_LOCAL_MARK = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one storage lie.

    Attributes:
        begin: First byte in the file.
        size: Bytes.
        crc: Their CRC-32; 0 where the writer did not compute it.
    """

    begin: int
    size: int
    crc: int = 0


@dataclass(frozen=True, slots=True)
class Contents:
    """What a PyTorch file holds.

    Attributes:
        value: Of its pickle; see `Unpickler.load`.
        places: By the key of the storage, of all that the value names.
        swapped: Whether the bytes of each element are in big-endian order.
    """

    value: object
    places: Mapping[str, Extent]
    swapped: bool = False


def read_contents(file: RangeReader) -> Contents:
    """Read all but the numbers.

    Raises:
        UnsafePickleError: the pickle calls what has nothing to do with tensors.
        FormatError: the file is damaged, or no state dict.
    """
    if file.bytes(0, min(file.size, len(_LOCAL_MARK))) == _LOCAL_MARK:
        return _zipped(file)
    return _in_a_row(file)


def _zipped(file: RangeReader) -> Contents:
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
    except (
        *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
        *(ValueError, LookupError, struct.error),
    ) as error:
        raise damaged(str(error)) from error
    folder = entries[0].filename.partition("/")[0] if entries else ""
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) != len(entries):
        raise damaged("two of its entries have one name")
    if f"{folder}/constants.pkl" in by_name:
        raise FormatError(
            "a TorchScript program, not a checkpoint; give the file of its weights, or save them "
            "with `torch.save(model.state_dict(), ...)`"
        )
    pickled = by_name.get(f"{folder}/data.pkl")
    if pickled is None:
        raise FormatError("a zip archive, but not one of PyTorch: it has no `data.pkl`; unpack it")
    if any(entry.compress_type or entry.flag_bits & _ENCRYPTED for entry in entries):
        raise FormatError(
            "a zip archive with compressed entries, which PyTorch never writes; unpack it"
        )
    text = _entry_bytes(file, pickled)
    reader = Unpickler(io.BytesIO(text), len(text))
    value = reader.load()
    places: dict[str, Extent] = {}
    for key, storage in reader.storages.items():
        entry = by_name.get(f"{folder}/data/{key}")
        if entry is not None:
            places[key] = _place(file, entry)
        _check_held(storage, places.get(key))
    order = by_name.get(f"{folder}/byteorder")
    return Contents(value, places, order is not None and _entry_bytes(file, order) == b"big")


def _entry_bytes(file: RangeReader, entry: zipfile.ZipInfo) -> bytes:
    place = _place(file, entry)
    if place.size > MAX_PICKLE:
        raise damaged(f"`{entry.filename[:80]}` has {place.size} bytes, more than any pickle")
    text = file.bytes(place.begin, place.size)
    if place.crc and zlib.crc32(text) != place.crc:
        raise damaged("the checksum of its pickle is another")
    return text


def _place(file: RangeReader, entry: zipfile.ZipInfo) -> Extent:
    start = entry.header_offset
    length = struct.calcsize(_LOCAL_HEADER)
    if not 0 <= start <= file.size - length:
        raise damaged("an entry lies outside of the file")
    mark, name, extra = struct.unpack(_LOCAL_HEADER, file.bytes(start, length))
    begin = start + length + name + extra
    if mark != _LOCAL_MARK or entry.file_size != entry.compress_size:
        raise damaged("its table of contents is wrong")
    if begin + entry.file_size > file.size:
        raise damaged("an entry lies outside of the file")
    return Extent(begin, entry.file_size, entry.CRC)


def _in_a_row(file: RangeReader) -> Contents:
    stream = io.BufferedReader(_Bounded(file))
    reader = Unpickler(stream, file.size)
    if reader.load() != _MAGIC:
        raise damaged("its pickle is none that `torch.save` writes")
    _version, _machine, value, keys = (reader.load() for _ in range(4))
    if not isinstance(keys, list):
        raise damaged("its list of storages is missing")
    places: dict[str, Extent] = {}
    begin = stream.tell()
    for key in keys:
        storage = reader.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.root in places:
            raise damaged("its list of storages is wrong")
        if begin + 8 > file.size:
            raise damaged("it is truncated")
        count = int.from_bytes(file.bytes(begin, 8), "little")
        places[storage.root] = Extent(begin + 8, count * storage.width)
        begin += 8 + count * storage.width
    if begin > file.size:
        raise damaged(f"it is truncated: {file.size} of {begin} bytes")
    for key, storage in reader.storages.items():
        _check_held(storage, places.get(key))
    return Contents(value, places)


def _check_held(storage: Storage, place: Extent | None) -> None:
    held = place.size if place else 0
    if storage.begin + storage.size > held:
        raise damaged(
            f"storage {storage.root[:80]} claims {storage.begin + storage.size} bytes; "
            f"the file has {held} of it"
        )


class _Bounded(io.RawIOBase):
    """The file as a stream of which nobody reads much at once, whatever sizes it names."""

    def __init__(self, file: RangeReader) -> None:
        self._source = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the file")
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        rest = max(0, self._source.size - self._at)
        size = rest if size < 0 else min(size, rest)
        if size > MAX_PICKLE:
            raise ValueError(f"its table of contents has {size} bytes")
        text = self._source.bytes(self._at, size)
        self._at += size
        return text

    def readinto(self, memory: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        text = self.read(len(memory))
        memory[: len(text)] = text
        return len(text)
