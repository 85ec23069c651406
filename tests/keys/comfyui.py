"""ComfyUI as an oracle for names, in a process of its own, under its own Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def ask(**questions):
    """Answers of ask_comfyui.py; the test skips where there is no ComfyUI that runs."""
    tree = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    if not (tree / "comfy" / "lora.py").is_file():
        pytest.skip("ComfyUI not found: set COMFYUI_PATH to its folder")
    own = [tree / ".venv/bin/python", tree / ".venv/Scripts/python.exe", tree / "venv/bin/python"]
    python = next((path for path in own if path.is_file()), Path(sys.executable))
    asked = {"tables": {}, "checkpoints": {}, "adapters": {}, "models": {}} | questions
    process = subprocess.run(
        [python, Path(__file__).with_name("ask_comfyui.py"), tree],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "ModuleNotFoundError" in process.stderr:
        pytest.skip(f"ComfyUI at {tree} does not run here: its requirements are not installed")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)
