"""A file that changes while it is read: no operation writes what is of neither of its states."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, grid, trained
from commands import lorakit_here
from safetensors.torch import save_file

from lorakit.lora_ops import Ingredient, extract_file, open_source, plan_file, verify
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import INDEX
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.run.workers import Progress

Work = Callable[[Path, Path, Progress], object]
OUTPUT = "out.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, what was made of it, and the LoRA between them."""
    base = grid(FLUX, torch.float32)
    save_file(base, tmp_path / "base.safetensors")
    save_file(trained(base), tmp_path / "tuned.safetensors")
    extract(tmp_path, tmp_path / "lora.safetensors", lambda *_: None)
    return tmp_path


def extract(folder: Path, output: Path, progress: Progress) -> None:
    with (
        open_source(folder / "base.safetensors") as base,
        open_source(folder / "tuned.safetensors") as tuned,
    ):
        plan = plan_file(base, tuned, 4, output=output)
        extract_file(plan, base, tuned, output, progress=progress)


def scale(folder: Path, output: Path, progress: Progress) -> None:
    with open_source(folder / "lora.safetensors") as lora:
        scale_file(Ingredient(lora, 0.5), output, progress=progress)


def add(folder: Path, output: Path, progress: Progress) -> None:
    with open_source(folder / "lora.safetensors") as lora:
        add_files([Ingredient(lora), Ingredient(lora)], output, progress=progress)


def convert(folder: Path, output: Path, progress: Progress) -> None:
    with open_source(folder / "lora.safetensors") as lora:
        convert_file(lora, output, "kohya", progress=progress)


def to_peft(folder: Path, output: Path, progress: Progress) -> None:
    with open_source(folder / "lora.safetensors") as lora:
        convert_file(lora, output.with_suffix(""), "peft", progress=progress)


def resize_beside_weights(folder: Path, output: Path, progress: Progress) -> None:
    """What is only compared with counts too."""
    with (
        open_source(folder / "lora.safetensors") as lora,
        open_source(folder / "base.safetensors") as base,
    ):
        resize_file(lora, output, "mean=2", relative_to=base, progress=progress)


def bake(folder: Path, output: Path, progress: Progress) -> None:
    with (
        open_source(folder / "base.safetensors") as base,
        open_source(folder / "lora.safetensors") as lora,
    ):
        plan = plan_bake_file(base, [Ingredient(lora)], output=output)
        bake_file(plan, base, output, progress=progress)


def bake_shards(folder: Path, output: Path, progress: Progress) -> None:
    bake(folder, output.with_name(f"out{INDEX}"), progress)


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    # Clocks of file systems may be too coarse for a test.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def replaced(path: Path) -> None:
    times = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy.replace(path)


def grown(path: Path) -> None:
    times = path.stat()
    with path.open("ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


WORK: dict[str, tuple[Work, str]] = {
    "extract": (extract, "tuned"),
    "scale": (scale, "lora"),
    "add": (add, "lora"),
    "convert": (convert, "lora"),
    "convert to a folder": (to_peft, "lora"),
    "resize": (resize_beside_weights, "base"),
    "bake": (bake, "lora"),
    "bake into": (bake, "base"),
    "bake shards": (bake_shards, "base"),
}


@pytest.mark.parametrize("change", [rewritten, replaced, grown])
@pytest.mark.parametrize("name", WORK)
def test_nothing_is_written(name: str, change: Callable[[Path], None], folder: Path) -> None:
    work, which = WORK[name]
    path = folder / f"{which}.safetensors"
    before = {one.name for one in folder.iterdir()}
    changed: list[Path] = []

    def progress(*_: object) -> None:
        if not changed:
            changed.append(path)
            change(path)

    with pytest.raises(FormatError, match="changed while it was read") as error:
        work(folder, folder / OUTPUT, progress)
    assert error.value.path == path
    assert {one.name for one in folder.iterdir()} == before


@pytest.mark.parametrize("name", WORK)
def test_twin_what_stays_is_written(name: str, folder: Path) -> None:
    WORK[name][0](folder, folder / OUTPUT, lambda *_: None)
    assert any(one.name.startswith("out") for one in folder.iterdir())


def test_a_verdict_on_what_changed_is_none(folder: Path) -> None:
    with (
        open_source(folder / "base.safetensors") as base,
        open_source(folder / "tuned.safetensors") as tuned,
        open_source(folder / "lora.safetensors") as lora,
        pytest.raises(FormatError, match="changed while it was read"),
    ):
        verify(base, tuned, lora, progress=lambda *_: rewritten(folder / "tuned.safetensors"))


READ = {
    "compare": ("compare", "tuned-lora.safetensors", "lora.safetensors"),
    "compare with": ("compare", "lora.safetensors", "tuned-lora.safetensors"),
    "lint": ("lint", "lora.safetensors"),
    "info": ("info", "lora.safetensors", "--picture", "out.png"),
}


@pytest.mark.parametrize("change", [rewritten, replaced, grown, truncated])
@pytest.mark.parametrize("name", READ)
def test_nothing_is_said_of_what_changed(name, change, folder: Path, monkeypatch) -> None:
    """Also where what it became cannot be read: the change is what is said."""
    shutil.copy(folder / "lora.safetensors", folder / "tuned-lora.safetensors")
    monkeypatch.chdir(folder)
    assert lorakit_here(*READ[name]).status == 0
    (folder / "out.png").unlink(missing_ok=True)
    changed: list[Path] = []

    @contextlib.contextmanager
    def watched(*_: object, **__: object):
        def progress(*_: object) -> None:
            if not changed:
                changed.append(folder / "lora.safetensors")
                change(changed[0])

        yield progress

    monkeypatch.setattr("lorakit.terminal.progress.progress_bar", watched)
    run = lorakit_here(*READ[name])
    assert changed
    assert (run.status, run.out) == (1, "")
    assert "lora.safetensors: the file changed while it was read" in run.err
    assert not (folder / "out.png").exists()
