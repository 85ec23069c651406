"""Files written in pieces, out of order, by several threads: the bytes of the streaming writer."""

from __future__ import annotations

import errno
import itertools
import os
import random
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

from lorakit.lora_ops.errors import ArgumentError, FormatError, WriteError
from lorakit.lora_ops.files import (
    JoinedSource,
    MemoryFile,
    SafetensorsFile,
    SafetensorsWriter,
    ShardsWriter,
    open_source,
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


def rows(tensors: dict[str, Tensor]) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    return [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]


def laid_out(path: Path, tensors: dict[str, Tensor], room: int = 0) -> SafetensorsWriter:
    writer = SafetensorsWriter(path, header_room=room, hashed=False)
    writer.lay_out(rows(tensors))
    return writer


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
    save(path, tensors, {"title": "ß"})
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
    with laid_out(path, TENSORS, 1 << 12) as writer:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: writer.write_at(*piece), pieces(TENSORS, size)))
        written = writer.finish({"title": "ß"})
    data = 8 + int.from_bytes(expected[:8], "little")
    found = path.read_bytes()
    assert found[8 + int.from_bytes(found[:8], "little") :] == expected[data:]
    assert (written.path, written.size, written.tensors) == (path, len(found), len(TENSORS))
    for key, tensor in load_file(path).items():
        assert_equal(tensor, TENSORS[key])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=12))
def test_what_is_there_against_a_byte_for_byte_list(runs: list[tuple[int, int]]) -> None:
    there, coverage = [False] * 40, Coverage()
    for begin, size in runs:
        coverage.add(begin, begin + size)
        there[begin : begin + size] = [True] * size
        assert coverage.reach == there.index(False)


def test_what_was_not_written_is_named(tmp_path: Path) -> None:
    tensors = {key: torch.arange(10.0) for key in "abc"}
    for missing in itertools.product("abc", (0, 4, 9)):
        with laid_out(tmp_path / "a.safetensors", tensors) as writer:
            for key, tensor in tensors.items():
                for start in range(10):
                    if (key, start) < missing or (key == "c" and start == 9 and missing[0] < "c"):
                        writer.write_at(key, start, tensor[start])
            with pytest.raises(WriteError, match=f"of `{missing[0]}` number {missing[1]} is"):
                writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_piece_may_be_written_again(tmp_path: Path) -> None:
    """As it is where a batch was too large for a device, and is computed anew."""
    tensors = {"a": torch.arange(10.0)}
    with laid_out(tmp_path / "a.safetensors", tensors) as writer:
        for start, end in ((2, 5), (0, 3), (0, 10)):
            writer.write_at("a", start, tensors["a"][start:end])
        writer.finish()
    assert_equal(load_file(tmp_path / "a.safetensors")["a"], tensors["a"])


def test_what_does_not_belong_there_is_refused(tmp_path: Path) -> None:
    table = {key: torch.zeros(4, dtype=torch.float16) for key in "ab"}
    with laid_out(tmp_path / "a.safetensors", table) as writer:
        for start, count in ((-1, 2), (3, 2), (5, 1)):
            with pytest.raises(ValueError, match=rf"`a` is F16 \[4\]: {count} of torch\.float16"):
                writer.write_at("a", start, torch.zeros(count, dtype=torch.float16))
        with pytest.raises(ValueError, match=r"1 of torch\.float32 from 0 on have no place there"):
            writer.write_at("a", 0, torch.zeros(1))
        with pytest.raises(KeyError):
            writer.write_at("c", 0, torch.zeros(1))
    with pytest.raises(ArgumentError, match="__metadata__"):
        laid_out(tmp_path / "a.safetensors", {"__metadata__": torch.zeros(1)})
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
    streamed(tmp_path / "expected.safetensors", TENSORS)
    IN_BITS.clear()
    if call is not None:
        if call is in_bits and WHOLE is short:
            pytest.skip("the system has no copy_file_range")
        monkeypatch.setattr(os, "copy_file_range", call, raising=False)
    path = tmp_path / "a.safetensors"
    with (
        SafetensorsFile(tmp_path / "expected.safetensors") as source,
        laid_out(path, TENSORS) as writer,
    ):
        for key in reversed(TENSORS):
            writer.copy(key, source, key)
        writer.finish({"title": "ß"})
    assert path.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
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
        for source in (MemoryFile("m", tensors), pickled, joined):
            with laid_out(path, tensors) as writer:
                for key in tensors:
                    writer.copy(key, source, f"unet.{key}" if source is joined else key)
                writer.finish()
            for key, tensor in load_file(path).items():
                assert_equal(tensor, tensors[key])


def test_a_file_that_shrinks_is_noticed_by_a_copy(tmp_path: Path) -> None:
    save(tmp_path / "s.safetensors", TENSORS)
    with (
        SafetensorsFile(tmp_path / "s.safetensors") as source,
        laid_out(tmp_path / "a.safetensors", TENSORS) as writer,
    ):
        os.truncate(tmp_path / "s.safetensors", 10_000)
        with pytest.raises(FormatError, match="became shorter while being read, within `large`"):
            writer.copy("large", source, "large")


def test_shards_are_those_of_the_streaming_writer(tmp_path: Path) -> None:
    keys = [["large", "odd", "alpha"], ["nothing", "fp8", "steps", "last"]]
    found: list[list[tuple[str, bytes]]] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        index = folder / "m.safetensors.index.json"
        with ShardsWriter(index, keys, header_room=0, hashed=False) as writer:
            if name == "one":
                for key, tensor in TENSORS.items():
                    writer.write(key, tensor)
            else:
                writer.lay_out(rows(TENSORS))
                with ThreadPoolExecutor(3) as pool:
                    list(pool.map(lambda one: writer.write_at(*one), pieces(TENSORS, 10_000)))
            writer.finish({"title": "ß"})
        found.append([(one.name, one.read_bytes()) for one in sorted(folder.iterdir())])
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_a_shard_that_lacks_something_is_named_by_the_index(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    with ShardsWriter(index, [["steps"], ["last"]], hashed=False) as writer:
        writer.lay_out(rows({key: TENSORS[key] for key in ("steps", "last")}))
        writer.write_at("steps", 0, TENSORS["steps"])
        with pytest.raises(WriteError, match=r"index\.json: .*of `last` number 0 is"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []
