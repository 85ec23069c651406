"""ComfyUI-LoRA-Optimizer's own merging of changes, where the pack is; it is run as it is, and nothing of it is here."""

from __future__ import annotations

import ast
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_host import find_tree

_CLASS = "_LoRAMergeBase"


def find_pack() -> Path:
    """The file of the pack; the test skips where there is none."""
    told = os.environ.get("LORA_OPTIMIZER_PATH")
    folder = Path(told) if told else find_tree() / "custom_nodes" / "ComfyUI-LoRA-Optimizer"
    file = folder / "lora_optimizer.py"
    if not file.is_file():
        pytest.skip(
            f"ComfyUI-LoRA-Optimizer not found at {folder}: set LORA_OPTIMIZER_PATH to its folder"
        )
    return file


def merging() -> Any:
    """An object with the pack's functions on changes; without the nodes, which need the host to be imported."""
    (found,) = (
        node
        for node in ast.parse(find_pack().read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == _CLASS
    )
    names: dict[str, Any] = {"torch": torch, "math": math, "logging": logging}
    names |= {"_batched_procrustes": None, "LoRAAdapter": lambda keys, weights: weights}
    exec(compile(ast.Module([found], []), str(find_pack()), "exec"), names)
    return names[_CLASS].__new__(names[_CLASS])
