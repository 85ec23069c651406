"""Tables as TOML text, as a person would lay it out: the standard library only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, cast

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDEST = 100  # characters of a list in one line


def toml_text(tree: Mapping[str, Any], spread: Collection[str] = ()) -> str:
    """Write a tree of dicts, lists, texts, booleans and numbers as TOML.

    Plain values come first, then a header for each table and each row of a list of tables at the top;
    what lies deeper is written in braces.

    Args:
        tree: With texts for keys.
        spread: The tables at the top whose own tables have a header each.
    """
    plain = {key: value for key, value in tree.items() if not _is_table(value)}
    blocks = ["\n".join(f"{_key(key)} = {_value(value)}" for key, value in plain.items())]
    for key, value in tree.items():
        if not _is_table(value):
            continue
        if isinstance(value, list):
            rows = cast("list[dict[str, Any]]", value)
            blocks += [_block(f"[[{_key(key)}]]", row) for row in rows]
        elif key in spread:
            blocks += [_block(f"[{_key(key)}.{_key(name)}]", one) for name, one in value.items()]
        else:
            blocks.append(_block(f"[{_key(key)}]", value))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _is_table(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, dict) for one in cast("list[object]", value))
    return isinstance(value, dict)


def _block(header: str, table: Mapping[str, Any]) -> str:
    return "\n".join([header, *(f"{_key(key)} = {_value(value)}" for key, value in table.items())])


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, list):
        rows = [_value(one) for one in cast("list[object]", value)]
        line = f"[{', '.join(rows)}]"
        return line if len(line) <= _WIDEST else "[\n  " + ",\n  ".join(rows) + ",\n]"
    if isinstance(value, dict):
        table = cast("dict[str, object]", value)
        return f"{{{', '.join(f'{_key(key)} = {_value(one)}' for key, one in table.items())}}}"
    return str(value)


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number: 0.3, 1, 1e-08."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for the delete character, which TOML wants escaped, and for
    # halves of characters, which no TOML can hold.
    whole = value.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")
