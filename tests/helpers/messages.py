"""What the core says, read from its source: every message that names a parameter or a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from commands import ROOT

from lorakit.lora_ops.text import CALL, PARAMETER

CORE = ROOT / "lora_ops"
# Written as parameters are: words of rank rules, of block weights, and `x` for a value.
_OTHERS = {"conv", "depth", "max", "mean", "min", "te", "x"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, with `x` where a value goes."""
    inner = {
        id(part) for one in ast.walk(tree) if isinstance(one, ast.JoinedStr) for part in one.values
    }
    for one in ast.walk(tree):
        if isinstance(one, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "x" for part in one.values)
            yield "".join(map(str, parts))
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in inner:
            yield one.value


def parameters(text: str) -> set[str]:
    """The parameters that a message names."""
    return {found[1] for found in PARAMETER.finditer(text)} - _OTHERS


def calls(text: str) -> set[str]:
    """The functions that a message names."""
    return {found[1] for found in CALL.finditer(text)}


@cache
def advice(*, lint: bool = True) -> tuple[str, ...]:
    """All messages of the core that name a parameter or a function; docstrings are longer.

    Args:
        lint: Whether those of lint are among them, which no node shows.
    """
    return tuple(
        text
        for path in sorted(CORE.rglob("*.py"))
        if lint or "lint" not in path.parts
        for text in texts(ast.parse(path.read_text("utf-8")))
        if "\n" not in text and (parameters(text) or calls(text))
    )
