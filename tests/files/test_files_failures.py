"""Writes that fail, are interrupted or killed: nothing is left under the output's name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bits import assert_equal
from safetensors.torch import load_file

from lorakit.lora_ops.errors import WriteError
from lorakit.lora_ops.files import PlacedWriter, SafetensorsWriter, save

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits or signals")

TENSORS = {"a": torch.ones(1000), "odd": torch.ones(3, dtype=torch.float16)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["between", "finish", "enlarge"])
def test_nothing_is_left_of_what_was_not_finished(
    error: type[BaseException], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")

    def fail(*_: object) -> None:
        raise error

    def write() -> None:
        with SafetensorsWriter(path, header_room=8) as writer:
            writer.write("a", torch.ones(1000))
            assert len(list(tmp_path.iterdir())) == 2, "the data must be on its way to the disk"
            if when == "between":
                fail()
            monkeypatch.setattr("os.fsync" if when == "finish" else "shutil.copyfileobj", fail)
            writer.finish()

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["os.pwrite", "os.fsync", "shutil.copyfileobj"])
def test_nothing_is_left_of_pieces_that_were_not_finished(
    error: type[BaseException], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")

    def fail(*_: object) -> None:
        raise error

    def write() -> None:
        with PlacedWriter(path, [("a", torch.float32, (1000,))]) as writer:
            writer.write_at("a", 500, torch.ones(500))
            assert len(list(tmp_path.iterdir())) == 2, "the data must be on its way to the disk"
            monkeypatch.setattr(when, fail, raising=False)
            writer.write_at("a", 0, torch.ones(500))
            writer.finish({"title": "longer than the room"})

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write to"),
        (errno.EIO, "another place"),
    ],
)
def test_errors_of_the_system_name_the_way_out(
    number: int, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(WriteError, match=f"{os.strerror(number)}; .*{way_out}"):
        save(tmp_path / "a.safetensors", TENSORS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="create the folder"):
        save(tmp_path / "nowhere" / "a.safetensors", TENSORS)


FULL = """
import resource, signal, sys, torch
from lorakit.lora_ops.errors import WriteError
from lorakit.lora_ops.files import SafetensorsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with SafetensorsWriter(sys.argv[1]) as writer:
        for i in range(100):
            writer.write(str(i), torch.ones(1000))
        writer.finish()
except WriteError as error:
    print(error)
"""


def placed(program: str) -> str:
    """The same program with pieces, the last of them first."""
    rows = "[(str(i), torch.float32, (1000,)) for i in range(100)]"
    for old, new in (
        ("range(100)", "range(99, -1, -1)"),
        ("SafetensorsWriter(sys.argv[1])", f"PlacedWriter(sys.argv[1], {rows})"),
        ("import SafetensorsWriter", "import PlacedWriter"),
        (".write(str(i), ", ".write_at(str(i), 0, "),
    ):
        assert old in program
        program = program.replace(old, new)
    return program


@posix_only
@pytest.mark.parametrize("program", [FULL, placed(FULL)], ids=["in a row", "pieces"])
def test_a_full_disk_leaves_what_was_there(program: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")
    run = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"{path}: could not be written: File too large; ")
    assert run.stderr == ""
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys, torch
from lorakit.lora_ops.files import SafetensorsWriter
with SafetensorsWriter(sys.argv[1]) as writer:
    for i in range(100):
        writer.write(str(i), torch.ones(1000))
        if i == 50:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@posix_only
@pytest.mark.parametrize("program", [KILLED, placed(KILLED)], ids=["in a row", "pieces"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_killed_program_leaves_nothing_under_the_name(
    before: bytes | None, program: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    if before is not None:
        path.write_bytes(before)
    run = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert run.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before
    (rest,) = (p.name for p in tmp_path.iterdir() if p != path)
    assert rest.startswith(".a.safetensors.")
    assert rest.endswith(".partial")
    save(path, TENSORS)
    assert_equal(load_file(path)["a"], TENSORS["a"])
