"""Files written in pieces, out of order, by several threads: the bytes of the streaming writer."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bits import assert_equal, noise
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.errors import ArgumentError, FormatError, WriteError
from lorakit.lora_ops.files import (
    JoinedSource,
    PlacedShardsWriter,
    PlacedWriter,
    SafetensorsFile,
    ShardsWriter,
    save,
)
from lorakit.lora_ops.files.writing.coverage import Coverage

TENSORS = {
    "large": noise(torch.bfloat16, (1500, 1000)),
    "odd": noise(torch.float16, (5, 3)),
    "nothing": torch.empty(0, 4),
    "alpha": torch.tensor(3.0),
    "fp8": noise(torch.float8_e4m3fn, (301,)),
    "steps": torch.arange(7),
    "last": noise(torch.float32, (64, 32)),
}
METADATA = {"title": "ß", "sshs_model_hash": "0" * 64}


def rows(tensors: dict[str, Tensor]) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    return [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]


def pieces(tensors: dict[str, Tensor], size: int) -> list[tuple[str, int, Tensor]]:
    """All tensors in runs of at most so many numbers, in a random order."""
    found = [
        (key, start, tensor.reshape(-1)[start : start + size])
        for key, tensor in tensors.items()
        for start in range(0, tensor.numel(), size)
    ]
    random.Random(0).shuffle(found)
    return found


def streamed(path: Path, tensors: dict[str, Tensor]) -> bytes:
    save(path, tensors, {"title": "ß"}, hash_keys=("sshs_model_hash",))
    return path.read_bytes()


@pytest.fixture(params=["positions", "turns"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the calls that say where, and without them, as on Windows."""
    if request.param == "turns":
        for name in ("preadv", "pwrite", "copy_file_range"):
            monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("size", [997, 1 << 21])
def test_pieces_in_any_order_give_the_same_file(size: int, threads: int, tmp_path: Path) -> None:
    expected = streamed(tmp_path / "expected.safetensors", TENSORS)
    path = tmp_path / "a.safetensors"
    with PlacedWriter(path, rows(TENSORS), metadata=METADATA) as writer:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: writer.write_at(*piece), pieces(TENSORS, size)))
        written = writer.finish({"title": "ß"}, hash_keys=("sshs_model_hash",))
    assert path.read_bytes() == expected
    data = expected[8 + int.from_bytes(expected[:8], "little") :]
    assert written.data_sha256 == hashlib.sha256(data).hexdigest()
    assert (written.size, written.data_size) == (len(expected), len(data))
    assert (written.path, written.tensors) == (path, len(TENSORS))
    for key, tensor in load_file(path).items():
        assert_equal(tensor, TENSORS[key])


@pytest.mark.parametrize("metadata", [None, {"title": "x" * 100_000}])
def test_a_header_of_another_size_than_was_foretold(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    with PlacedWriter(path, rows(TENSORS), metadata=metadata, hashed=False) as writer:
        for piece in pieces(TENSORS, 10**7):
            writer.write_at(*piece)
        written = writer.finish({"title": "y" * 5000})
    assert written.data_sha256 == ""
    assert written.size == path.stat().st_size
    for key, tensor in load_file(path).items():
        assert_equal(tensor, TENSORS[key])
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_of_any_strides_are_written_in_c_order(tmp_path: Path) -> None:
    with PlacedWriter(tmp_path / "a.safetensors", [("a", torch.float32, (2, 3))]) as writer:
        writer.write_at("a", 0, torch.arange(6.0).reshape(2, 3).mT.contiguous().mT)
        writer.finish()
    assert_equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(6.0).reshape(2, 3))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=12))
def test_what_is_there_against_a_byte_for_byte_list(runs: list[tuple[int, int]]) -> None:
    there, coverage = [False] * 40, Coverage()
    for begin, size in runs:
        free = not any(there[begin : begin + size])
        assert coverage.add(begin, begin + size) == free
        if free:
            there[begin : begin + size] = [True] * size
        assert coverage.reach == there.index(False)


def test_what_was_not_written_is_named(tmp_path: Path) -> None:
    tensors = {key: torch.arange(10.0) for key in "abc"}
    for missing in itertools.product("abc", (0, 4, 9)):
        with PlacedWriter(tmp_path / "a.safetensors", rows(tensors)) as writer:
            for key, tensor in tensors.items():
                for start in range(10):
                    if (key, start) < missing or (key == "c" and start == 9 and missing[0] < "c"):
                        writer.write_at(key, start, tensor[start])
            with pytest.raises(WriteError, match=f"of `{missing[0]}` number {missing[1]} is"):
                writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_belong_there_is_refused(tmp_path: Path) -> None:
    table = [("a", torch.float16, (4,)), ("b", torch.float16, (4,))]
    with PlacedWriter(tmp_path / "a.safetensors", table) as writer:
        for start, numbers in ((-1, 2), (3, 2), (5, 1)):
            with pytest.raises(ValueError, match=r"`a` of shape \[4\] has no numbers"):
                writer.write_at("a", start, torch.zeros(numbers, dtype=torch.float16))
        with pytest.raises(ValueError, match=r"as F16, not torch\.float32"):
            writer.write_at("a", 0, torch.zeros(1))
        writer.write_at("a", 1, torch.zeros(2, dtype=torch.float16))
        with pytest.raises(ValueError, match="numbers of `a` cannot be written a second time"):
            writer.write_at("a", 2, torch.zeros(2, dtype=torch.float16))
        with pytest.raises(ValueError, match=r"which that of tensors is not"):
            writer.copy("b", DictSource({"b": torch.zeros(4)}))
        with pytest.raises(KeyError):
            writer.write_at("c", 0, torch.zeros(1))
    with pytest.raises(ValueError, match="is not being written any more"):
        writer.write_at("a", 0, torch.zeros(1, dtype=torch.float16))
    with pytest.raises(ValueError, match="`a` cannot be written a second time"):
        PlacedWriter(tmp_path / "a.safetensors", [*table, *table])
    with pytest.raises(ArgumentError, match="__metadata__"):
        PlacedWriter(tmp_path / "a.safetensors", [("__metadata__", torch.float16, (1,))])
    assert list(tmp_path.iterdir()) == []


def short(*_: object) -> int:
    """Of the system's copy: it ends at once."""
    return 0


def refused(*_: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def in_bits(source: int, target: int, count: int, *offsets: int) -> int:
    """101 bytes at most, three times; then it is refused."""
    IN_BITS.append(count)
    if len(IN_BITS) > 3:
        return refused()
    return WHOLE(source, target, min(count, 101), *offsets)


IN_BITS: list[int] = []
WHOLE: Callable[..., int] = getattr(os, "copy_file_range", short)


@pytest.mark.parametrize("call", [None, short, refused, in_bits])
def test_what_is_unchanged_is_copied(
    call: Callable[..., int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = streamed(tmp_path / "expected.safetensors", TENSORS)
    IN_BITS.clear()
    if call is not None:
        if call is in_bits and WHOLE is short:
            pytest.skip("the system has no copy_file_range")
        monkeypatch.setattr(os, "copy_file_range", call, raising=False)
    path = tmp_path / "a.safetensors"
    with (
        SafetensorsFile(tmp_path / "expected.safetensors") as source,
        PlacedWriter(path, rows(TENSORS), metadata=METADATA) as writer,
    ):
        for key in reversed(TENSORS):
            writer.copy(key, source)
        writer.finish({"title": "ß"}, hash_keys=("sshs_model_hash",))
    assert path.read_bytes() == expected
    assert (len(IN_BITS) > 3) == (call is in_bits)


def test_any_source_is_copied(tmp_path: Path) -> None:
    tensors = {"a": noise(torch.float16, (700, 900)), "b": noise(torch.float32, (33,))}
    save(tmp_path / "s.safetensors", tensors)
    torch.save(tensors, tmp_path / "s.pt")
    path = tmp_path / "a.safetensors"
    with (
        open_source(tmp_path / "s.pt") as pickled,
        SafetensorsFile(tmp_path / "s.safetensors") as file,
    ):
        joined = JoinedSource("m", {f"unet.{key}": (file, key) for key in tensors})
        for source in (DictSource(tensors), pickled, joined):
            with PlacedWriter(path, rows(tensors)) as writer:
                for key in tensors:
                    writer.copy(key, source, f"unet.{key}" if source is joined else None)
                writer.finish()
            for key, tensor in load_file(path).items():
                assert_equal(tensor, tensors[key])


def test_a_file_that_shrinks_is_noticed_by_a_copy(tmp_path: Path) -> None:
    save(tmp_path / "s.safetensors", TENSORS)
    with (
        SafetensorsFile(tmp_path / "s.safetensors") as source,
        PlacedWriter(tmp_path / "a.safetensors", rows(TENSORS)) as writer,
    ):
        os.truncate(tmp_path / "s.safetensors", 10_000)
        with pytest.raises(FormatError, match="became shorter while being read, within `large`"):
            writer.copy("large", source)


def test_a_thread_that_still_writes_closes_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file could get the number of one that was closed under it."""
    inside, go_on = threading.Event(), threading.Event()
    whole = os.fstat

    def slow(file: object, data: memoryview, offset: int) -> None:
        inside.set()
        assert go_on.wait(20)
        whole(writer._file.fileno())  # it is open

    with PlacedWriter(tmp_path / "a.safetensors", [("a", torch.float32, (4,))]) as writer:
        monkeypatch.setattr("lorakit.lora_ops.files.writing.placed.write_at", slow)
        pool = ThreadPoolExecutor(1)
        task = pool.submit(writer.write_at, "a", 0, torch.zeros(4))
        assert inside.wait(20)
    go_on.set()
    task.result()
    pool.shutdown()
    assert writer._file.closed
    assert list(tmp_path.iterdir()) == []


def test_shards_are_those_of_the_streaming_writer(tmp_path: Path) -> None:
    keys = [["large", "odd", "alpha"], ["nothing", "fp8", "steps", "last"]]
    names = ["one.safetensors.index.json", "two.safetensors.index.json"]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with ShardsWriter(tmp_path / "1" / names[0], keys, header_room=0) as writer:
        for key, tensor in TENSORS.items():
            writer.write(key, tensor)
        expected = writer.finish({"title": "ß"}, hash_keys=("h",))
    table = {row[0]: row for row in rows(TENSORS)}
    blank = {"title": "ß", "h": "0" * 64}
    with (
        PlacedShardsWriter(
            tmp_path / "2" / names[0],
            [[table[key] for key in shard] for shard in keys],
            metadata=blank,
        ) as placed,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(lambda piece: placed.write_at(*piece), pieces(TENSORS, 10_000)))
        written = placed.finish({"title": "ß"}, hash_keys=("h",))
    first, second = (sorted((tmp_path / one).iterdir()) for one in "12")
    assert [one.name for one in first] == [one.name for one in second]
    assert len(first) == 3
    assert [one.read_bytes() for one in first] == [one.read_bytes() for one in second]
    assert (written.size, written.tensors) == (expected.size, expected.tensors)
    assert written.data_size == json.loads(first[-1].read_text())["metadata"]["total_size"]
    with pytest.raises(ValueError, match="in two shards"):
        PlacedShardsWriter(tmp_path / names[1], [[table["last"]], [table["last"]]])
