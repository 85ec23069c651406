"""Reads by range: memory that does not grow with the file, and files that fail or shrink meanwhile."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from commands import lorakit_here, python, tiny_pair
from safetensors.torch import save_file

from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import (
    data_sha256,
    file_sha256,
    input_sha256,
    open_folder,
    open_sharded,
    open_source,
)
from lorakit.lora_ops.operations.folder import check_folders

STATE = {"first": torch.arange(1000.0), "second": torch.ones(1000)}
Reading = Callable[[Path], object]


def every_file(folder: Path) -> None:
    """The same state dict in all ways that are read."""
    save_file(STATE, folder / "a.safetensors")
    torch.save(STATE, folder / "a.ckpt")
    torch.save(STATE, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    index = '{"weight_map": {"first": "a.safetensors", "second": "a.safetensors"}}'
    (folder / "a.safetensors.index.json").write_text(index)
    (folder / "model").mkdir()
    save_file(STATE, folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "peft").mkdir()
    save_file(STATE, folder / "peft" / "adapter_model.safetensors")
    (folder / "peft" / "adapter_config.json").write_text("{}")


class FailingFile(io.FileIO):
    """A file on a disk that can be read up to a byte, and no further."""

    good = sys.maxsize

    def _check(self, size: int) -> None:
        if self.tell() + size > self.good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def readinto(self, memory: memoryview, /) -> int:  # type: ignore[override]
        self._check(len(memory))
        return super().readinto(memory)

    def read(self, size: int = -1, /) -> bytes:
        self._check(max(size, 0))
        return super().read(size)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingFile]:
    monkeypatch.setattr("lorakit.lora_ops.files.base.io.FileIO", FailingFile)
    monkeypatch.setattr(FailingFile, "good", sys.maxsize)
    if hasattr(os, "preadv"):
        whole = os.preadv

        def preadv(handle: int, buffers: Sequence[memoryview], offset: int) -> int:
            if offset + sum(map(len, buffers)) > FailingFile.good:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return whole(handle, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
    return FailingFile


READERS: dict[str, tuple[str, Reading]] = {
    "safetensors": ("a.safetensors", open_source),
    "pickled": ("a.ckpt", open_source),
    "pickled, old": ("old.ckpt", open_source),
    "an index": ("a.safetensors.index.json", open_sharded),
    "a folder": ("model", open_folder),
    "a hash": ("a.safetensors", file_sha256),
    "a hash of the data": ("a.safetensors", data_sha256),
}


@pytest.mark.parametrize("name", READERS)
def test_a_disk_that_fails_is_one_line(
    name: str, tmp_path: Path, failing: type[FailingFile]
) -> None:
    every_file(tmp_path)
    place, read = READERS[name]
    failing.good = 0
    with pytest.raises(FormatError, match=rf"{place}.*: .*cannot be read: Input/output error"):
        read(tmp_path / place)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "old.ckpt"])
def test_a_disk_that_fails_later_names_the_tensor(
    name: str, tmp_path: Path, failing: type[FailingFile]
) -> None:
    every_file(tmp_path)
    with open_source(tmp_path / name) as file:
        failing.good = 200
        with pytest.raises(
            FormatError, match=rf"{name}: `second` cannot be read: Input/output error"
        ):
            file.tensor("second")
        with pytest.raises(FormatError, match=rf"{name}: cannot be read: Input/output error"):
            input_sha256(file)


@pytest.mark.parametrize("name", ["model/config.json", "peft/adapter_config.json"])
@pytest.mark.parametrize("call", ["read_text", "stat"])
def test_a_config_that_cannot_be_read_is_not_taken_for_none(
    name: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_file(tmp_path)
    whole = getattr(Path, call)

    def fail(path: Path, *words: object, **named: object) -> object:
        if path == tmp_path / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path, *words, **named)

    monkeypatch.setattr(Path, call, fail)
    with pytest.raises(FormatError, match=rf"{name}: cannot be read: Input/output error"):
        open_source((tmp_path / name).parent)


def test_a_folder_that_cannot_be_listed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_file(tmp_path)

    def fail(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "glob", fail)
    monkeypatch.setattr(Path, "rglob", fail)
    for read in (open_folder, lambda folder: check_folders(folder, folder / "out")):
        with pytest.raises(FormatError, match="cannot be read: Input/output error"):
            read(tmp_path)


COMMANDS = {
    "info": "info lora.safetensors",
    "lint": "lint lora.safetensors",
    "extract": "extract base.safetensors tuned.safetensors -o out.safetensors --rank 2 --force",
    "verify": "verify base.safetensors tuned.safetensors lora.safetensors",
    "bake": "bake base.safetensors lora.safetensors -o out.safetensors --force",
    "resize": "resize lora.safetensors -o out.safetensors --rank 1 --force",
    "scale": "scale lora.safetensors -o out.safetensors --strength 0.5 --force",
    "add": "add lora.safetensors lora.safetensors -o out.safetensors --force",
    "compare": "compare lora.safetensors lora.safetensors",
    "convert": "convert lora.safetensors -o out.safetensors --format comfy --force",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: type[FailingFile]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pair(tmp_path)
    assert lorakit_here("extract", "base.safetensors", "tuned.safetensors", "-o", "lora.safetensors").status == 0  # fmt: skip
    words = COMMANDS[name].split()
    assert lorakit_here(*words).status in (0, 1), "it works while the disk does"
    (tmp_path / "out.safetensors").unlink(missing_ok=True)
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    for failing.good in (0, 8, 300, size // 3, size // 2, size - 100):
        run = lorakit_here(*words)
        if run.status:  # what is read may end before the place that fails
            assert re.fullmatch(
                r"Error: \w+\.safetensors: .*cannot be read: Input/output error\n", run.err
            ), run.err
            assert not (tmp_path / "out.safetensors").exists()
    failing.good = 0
    assert lorakit_here(*words).status == 1


SHRINKING = """
import sys
from pathlib import Path
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import open_source
for left in (0, 5000):
    for name in sys.argv[1:]:
        whole = Path(name).read_bytes()
        with open_source(name) as file:
            with open(name, "r+b") as other:
                other.truncate(left)
            last = file.keys()[-1]
            try:
                file.tensor(last)
            except FormatError as error:
                print(str(error).replace(last, "LAST"), flush=True)
        Path(name).write_bytes(whole)
"""


def test_a_file_that_shrinks_meanwhile_is_no_crash(tmp_path: Path) -> None:
    every_file(tmp_path)
    paths = [tmp_path / name for name in ("a.safetensors", "a.ckpt", "old.ckpt")]
    run = python(SHRINKING, *paths)
    assert (run.status, run.err) == (0, "")
    what = "the file became shorter while being read, within `LAST`"
    assert run.out.splitlines() == [f"{path}: {what}" for path in paths] * 2


GROWTH = """
import re, sys
from pathlib import Path
import torch
from lorakit.lora_ops.files import open_source
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
with open_source(sys.argv[1]) as file:
    file.tensor("w0")
    before = peak()
    total = sum(file.tensor(key).double().sum().item() for key in list(file.keys()))
    print(total, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory that was used")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_memory_does_not_grow_with_the_file(legacy: bool, tmp_path: Path) -> None:
    state = {f"w{i}": torch.ones(1 << 20) for i in range(24)}  # 96 MiB
    torch.save(state, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    run = python(GROWTH, tmp_path / "a.ckpt")
    assert run.err == ""
    total, growth = run.out.split()
    assert float(total) == 24 * (1 << 20)
    assert int(growth) < 32  # MiB; one tensor in float64 beside itself takes 12


def test_damaged_data_are_noticed_by_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(STATE, path)
    whole = bytearray(path.read_bytes())
    at = whole.find(STATE["second"].numpy().tobytes())
    whole[at + 100] ^= 1
    path.write_bytes(whole)
    with open_source(path) as file:
        assert torch.equal(file.tensor("first"), STATE["first"])
        with pytest.raises(FormatError, match=r"a\.ckpt: the data of `second` are damaged"):
            file.tensor("second")


def test_a_pickle_that_is_damaged_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes().replace(b"second", b"sekond"))
    with pytest.raises(FormatError, match="the checksum of its pickle is another"):
        open_source(path)


def test_checksums_that_were_not_computed_are_not_compared(tmp_path: Path) -> None:
    """`torch.serialization.set_crc32_options(False)` writes zeros."""
    path = tmp_path / "a.ckpt"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        sums = {entry.CRC for entry in archive.infolist()}
    whole = path.read_bytes()
    for crc in sums - {0}:
        whole = whole.replace(crc.to_bytes(4, "little"), bytes(4))
    path.write_bytes(whole)
    with open_source(path) as file:
        assert all(torch.equal(file.tensor(key), tensor) for key, tensor in STATE.items())
