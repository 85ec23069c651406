"""What a server says of its nodes, cut down to what saved workflows depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from commands import ROOT

DATA = ROOT / "tests" / "data"
SNAPSHOT = DATA / "object_info.json"
WORKFLOWS = sorted((DATA / "workflows").glob("*.json"))
# Texts, which may change freely, and what depends on the folder that the pack is in.
_TEXTS = {"tooltip", "placeholder", "description", "output_tooltips", "search_aliases"}
_ELSEWHERE = {"python_module"}
# Of files that happen to be on a machine.
_ENDINGS = (".safetensors", ".latent", ".png", ".pt")


def interface(info: Mapping[str, Any]) -> dict[str, Any]:
    """Our nodes, and those of ComfyUI that the example workflows use."""
    used = {node["class_type"] for path in WORKFLOWS for node in _nodes(path).values()}
    return {
        name: _bare(node)
        for name, node in sorted(info.items())
        if name.startswith("Lorakit") or name in used
    }


def _nodes(path: Any) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _bare(value: Any) -> Any:
    """Without texts and without the names of files."""
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if k not in _TEXTS | _ELSEWHERE}
    if isinstance(value, list):
        return [_bare(one) for one in value if not str(one).endswith(_ENDINGS)]
    return value
