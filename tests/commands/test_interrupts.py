"""Signals in the middle of an extraction: no half file, and what was there stays."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import PLAIN, SCRIPT, lorakit_here
from safetensors import safe_open
from safetensors.torch import save_file

fcntl = pytest.importorskip("fcntl", reason="POSIX alone has terminals to close")
pty = pytest.importorskip("pty", reason="POSIX alone has terminals to close")
termios = pytest.importorskip("termios", reason="POSIX alone has terminals to close")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

LAYERS, SIDE = 12, 1024
EXTRACT = ("extract", "--exact", "--device", "cpu")
#: By the slowest of methods, with the base for the third model.
MERGE = ("merge", "--base", "base.safetensors", "-m", "smooth_add", "base.safetensors")


@pytest.fixture(scope="module")
def slow_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints whose exact extraction takes seconds."""
    folder = tmp_path_factory.mktemp("slow")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.diffusion_model.middle_block.1.transformer_blocks.{i}.attn1.to_q.weight": torch.randn(
            SIDE, SIDE, generator=generator
        ).half()
        for i in range(LAYERS)
    }
    save_file(tensors, folder / "base.safetensors")
    # Turned by a row, the same numbers are another model, and quickly made.
    save_file({k: v.roll(1, 0) for k, v in tensors.items()}, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


def interrupted(
    pair: tuple[Path, Path],
    output: Path,
    how: signal.Signals,
    ignored: signal.Signals | None = None,
    command: tuple[str, ...] = EXTRACT,
) -> tuple[int, str, str]:
    """Extract, and send a signal once data is on its way to the disk: status, stdout, stderr."""
    process = started(pair, output, ignored, command=command)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def started(
    pair: tuple[Path, Path],
    output: Path,
    ignored: signal.Signals | None = None,
    terminal: int | None = None,
    command: tuple[str, ...] = EXTRACT,
) -> subprocess.Popen[str]:
    """Begin an extraction, and wait until data is on its way to the disk."""

    def prepare() -> None:
        # What a parent ignores its children ignore: started in the background, or by nohup.
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [SCRIPT, *command, *pair[-2 if command is EXTRACT else -1 :], "-o", output, "--force"],
        cwd=pair[0].parent,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        env=PLAIN,
        start_new_session=terminal is not None,
        preexec_fn=prepare,
    )
    limit = time.monotonic() + 120
    while not any(path.stat().st_size > 0 for path in output.parent.glob(".*.partial")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no data after two minutes"
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    ("how", "there"),
    [
        (signal.SIGINT, b"what was there"),
        (signal.SIGTERM, b"what was there"),
        (signal.SIGTERM, None),
        (signal.SIGHUP, b"what was there"),
        (signal.SIGKILL, None),
    ],
)
def test_there_is_no_half_file(
    how: signal.Signals, there: bytes | None, slow_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "lora.safetensors"
    if there is not None:
        output.write_bytes(there)
    before = [path.read_bytes() for path in slow_pair]
    status, out, err = interrupted(slow_pair, output, how)
    assert out == ""
    left = [path.name for path in tmp_path.iterdir() if path != output]
    if how is not signal.SIGKILL:
        assert status == 128 + how
        assert err.split() == ["Aborted!"]
        assert left == []
    else:
        assert status == -how
        assert err == ""
        assert [name.endswith(".partial") and name.startswith(".lora.") for name in left] == [True]
    assert (output.read_bytes() if output.exists() else None) == there
    assert [path.read_bytes() for path in slow_pair] == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_there_is_no_half_merge(
    how: signal.Signals, slow_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "merged.safetensors"
    status, out, err = interrupted(slow_pair, output, how, command=MERGE)
    assert (out, err.split()) == ("", ["Aborted!"] if how is signal.SIGINT else [])
    assert status == (128 + how if how is signal.SIGINT else -how)
    assert not output.exists()
    assert how is signal.SIGKILL or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_there_is_no_half_copy_with_other_metadata(how: signal.Signals, tmp_path: Path) -> None:
    """Four gigabytes that take no room on the disk, and seconds to copy."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path, output = tmp_path / "in" / "a.safetensors", tmp_path / "out" / "b.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[4000000000],"data_offsets":[0,4000000000]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4_000_000_000)
    output.write_bytes(b"what was there")
    command = ("metadata", "--set", "a=b")
    status, out, err = interrupted((path, path), output, how, command=command)
    assert (status, out, err.split()) == (128 + how, "", ["Aborted!"])
    assert output.read_bytes() == b"what was there"
    assert list(output.parent.iterdir()) == [output]


def test_without_a_signal_it_is_done(slow_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The twin: what was interrupted would have written the file."""
    output = tmp_path / "lora.safetensors"
    status, out, err = interrupted(slow_pair, output, signal.SIGCONT)
    assert (status, err) == (0, "")
    assert out.endswith(f"wrote {output}\n")
    assert list(tmp_path.iterdir()) == [output]
    with safe_open(output, "pt") as file:
        assert len(file.keys()) == 3 * LAYERS


def test_a_terminal_that_closes_leaves_no_half_file(
    slow_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """There is a bar on it, and nowhere to say a word."""
    ours, theirs = pty.openpty()
    process = started(slow_pair, tmp_path / "lora.safetensors", terminal=theirs)
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []


def test_what_is_ignored_stays_ignored(slow_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As nohup has it."""
    output = tmp_path / "lora.safetensors"
    status, _, err = interrupted(slow_pair, output, signal.SIGHUP, ignored=signal.SIGHUP)
    assert (status, err) == (0, "")
    assert list(tmp_path.iterdir()) == [output]


def test_only_a_command_changes_what_signals_do() -> None:
    """Not an import, not what runs a command in a thread, and a command that is done no more."""
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(one) for one in known]
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(lorakit_here("--version").status))
    thread.start()
    thread.join()
    assert [*seen, lorakit_here("--version").status] == [0, 0]
    assert [signal.getsignal(one) for one in known] == before
