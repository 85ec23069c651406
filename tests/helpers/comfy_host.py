"""The real ComfyUI, in a process of its own under its own Python: where it is, and how to ask it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

SCRIPTS = Path(__file__).with_name("comfy_scripts")
_VENVS = (".venv/bin/python", ".venv/Scripts/python.exe", "venv/bin/python")


def find_tree() -> Path:
    """ComfyUI's folder; the test skips where there is none."""
    tree = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    if not (tree / "comfy" / "lora.py").is_file():
        pytest.skip(f"ComfyUI not found at {tree}: set COMFYUI_PATH to its folder")
    return tree


def find_python(tree: Path) -> Path:
    """The Python of ComfyUI's own environment, else this one."""
    return next((tree / name for name in _VENVS if (tree / name).is_file()), Path(sys.executable))


def find_gguf_pack() -> Path:
    """The folder of ComfyUI-GGUF; the test skips where there is none."""
    default = find_tree() / "custom_nodes" / "ComfyUI-GGUF"
    folder = Path(os.environ.get("COMFYUI_GGUF_PATH", default))
    if not (folder / "loader.py").is_file():
        pytest.skip(f"ComfyUI-GGUF not found at {folder}: set COMFYUI_GGUF_PATH to its folder")
    return folder


def find_host() -> tuple[Path, Path]:
    """ComfyUI's folder, and a Python that imports it; the test skips where there is none of either."""
    tree = find_tree()
    python = find_python(tree)
    skip_where_it_lacks(_import_words(python, tree), tree, python)
    return tree, python


def skip_where_it_lacks(words: str, tree: Path, python: Path) -> None:
    """Skip the test if ComfyUI's last words are those of an import that failed."""
    failed = re.findall(r"^(?:ModuleNotFoundError|ImportError): .+$", words, re.MULTILINE)
    if failed:
        pytest.skip(
            f"ComfyUI at {tree} does not import under {python}: {failed[-1]}; install its "
            "requirements.txt into a .venv in its folder"
        )


@functools.cache
def _import_words(python: Path, tree: Path) -> str:
    """What importing all of ComfyUI says on stderr where it fails; asked once a run, for it takes seconds."""
    done = subprocess.run(
        [python, SCRIPTS / "imports.py", tree],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stderr if done.returncode else ""


@contextlib.contextmanager
def started() -> Iterator[Host]:
    """ComfyUI on the CPU, as a Host: one for many questions, for importing it takes seconds."""
    tree, python = find_host()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [python, SCRIPTS / "serve.py", tree],
            cwd=tree,
            # Most of what it does is copying: on busy cores threads wait for each other.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        yield Host(process, log)


class Host:
    """Runs the scripts of comfy_scripts inside ComfyUI."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def ask(self, script: str, question: Any, timeout: float = 300) -> Any:
        """What the script's `answer(question)` returns there; both are JSON."""
        overdue = threading.Timer(timeout, self._process.kill)
        overdue.start()
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), json.dumps([script, question]).encode() + b"\n")
        line = self._process.stdout.readline()
        overdue.cancel()
        assert line, f"ComfyUI failed on `{script}`:\n{self._last_words()}"
        return json.loads(line)["answer"]

    def _last_words(self) -> str:
        """Of a process that ended without an answer, or was ended because it took too long."""
        self._log.seek(0)
        return self._log.read()[-4000:]
