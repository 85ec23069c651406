"""What the core says, in the command line's words: options and commands in place of Python's."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

from ..lora_ops.elements import DTYPES
from ..lora_ops.text import CALL, PARAMETER

#: The option for each parameter that a message may name.
OPTIONS = {
    **{name: f"--{name}" for name in ("architecture", "base", "dtype", "exclude", "force")},
    **{
        name: f"--{name}" for name in ("format", "quantise", "reference", "rounding", "to", "where")
    },
    "whole": "--whole",
    "auto_full": "--auto-full",
    "embeddings": "--embeddings",
    "allow_other": "--allow-other",
    "allow_partial": "--allow-partial",
    "full_differences": "--full-differences",
    "memory": "--vram",
    "output": "-o",
    "rule": "--rank",
    "thumbnail": "--thumbnail",
}
#: The command for each function that a message may name.
COMMANDS = {
    "add": "add",
    "bake": "bake",
    "convert": "convert",
    "convert_file": "convert",
    "describe": "info",
    "extract": "extract",
    "read_metadata": "metadata",
    "scale": "scale",
    "scale_file": "scale",
}
# A shell would take its values for patterns of its own.
_PATTERNS = ("exclude", "quantise", "where", "whole")
# What a device is chosen by is no command here.
_ON_THE_CPU = '`place("cpu")`'
# What a recipe says, where an option says it too.
_PHRASES = {
    "(`allow_nonfinite`)": "(--allow-nonfinite)",
    'set `keep = "on"` or `"off"` in the recipe': "give --keep on or off",
}
# An option stands in backticks where the sentence has no other word for what it does.
_AS_CODE = re.compile(r"(?:convert (?:it|them)(?: with)?|as in) $")


def worded(text: str) -> str:
    """Return a message, a note, a reason or a cure as the command line says it.

    Args:
        text: As the core says it; see `lora_ops.errors`.
    """
    if text.partition("(")[0] in COMMANDS:  # a cure is the call itself, without backticks
        return _command(text) or text
    for said, told in _PHRASES.items():
        text = text.replace(said, told)
    text = CALL.sub(_called, text.replace(_ON_THE_CPU, "--device cpu"))
    return PARAMETER.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name not in OPTIONS:
        return found[0]
    shown = f"'{value}'" if name in _PATTERNS and value else value.removeprefix("True")
    told = f"{OPTIONS[name]} {shown}".rstrip()
    return f"`{told}`" if _AS_CODE.search(found.string[: found.start()]) else told


def _called(found: re.Match[str]) -> str:
    command = _command(found[0].strip("`")) if found[1] in COMMANDS else None
    return f"`{command}`" if command else found[0]


def _command(code: str) -> str | None:
    """The command line that does what a call does; None for what is no call of ours."""
    try:
        call = ast.parse(code, mode="eval").body
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ):  # a stranger's name, in backticks
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    source, *output = _positional(call) or [""]
    words = ["lorakit", COMMANDS[call.func.id], source, *(f"-o {path}" for path in output)]
    for name, value in _keywords(call):
        for one in value.elts if isinstance(value, ast.List) else (value,):
            words += [OPTIONS.get(name, name), _value(one)]
    return " ".join(word for word in words if word)


def _positional(call: ast.Call) -> list[str]:
    """What is given by place, also to the calls within: `open_source("a")` is the file."""
    return [
        word
        for one in call.args
        for word in (_positional(one) if isinstance(one, ast.Call) else [_value(one)])
    ]


def _keywords(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """What is given by name, also to the calls within."""
    for one in call.args:
        if isinstance(one, ast.Call):
            yield from _keywords(one)
    yield from ((one.arg, one.value) for one in call.keywords if one.arg is not None)


def _value(given: ast.expr) -> str:
    if isinstance(given, ast.Name):  # something that the user has
        return given.id.upper()
    if isinstance(given, ast.Attribute):  # torch.float16
        return next((n for n, title in DTYPES.items() if title == given.attr), given.attr)
    value = given.value if isinstance(given, ast.Constant) else None
    return "" if value is True else shlex.quote(str(value))
