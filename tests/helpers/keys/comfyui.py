"""ComfyUI as an oracle for names, in a process of its own, under its own Python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from comfy_host import find_python, find_tree, skip_where_it_lacks


def ask(**questions):
    """Answers of ask_comfyui.py; the test skips where there is no ComfyUI that runs."""
    tree = find_tree()
    python = find_python(tree)
    asked = {"tables": {}, "checkpoints": {}, "adapters": {}, "models": {}} | questions
    process = subprocess.run(
        [python, Path(__file__).with_name("ask_comfyui.py"), tree],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if process.returncode:
        skip_where_it_lacks(process.stderr, tree, python)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)
