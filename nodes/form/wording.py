"""lorakit's messages in the words of a node: its inputs in place of the command line's options."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from comfy_api.latest import io

Result = TypeVar("Result")

# Commands by the node that does the same.
_COMMANDS = {"info": "Inspect LoRA", "add": "Add LoRAs", "scale": "Scale LoRA", "lint": "Save LoRA"}

# What a message says, the input that it is about, what it means on a node that has the input, and
# on one that has not. The first that fits decides; `\1` and so on are the pattern's groups.
_ADVICE: tuple[tuple[re.Pattern[str], str, str, str], ...] = tuple(
    (re.compile(pattern), name, here, elsewhere)
    for pattern, name, here, elsewhere in (
        (
            r"`lorakit convert (?:LORA )?--to lora --base CHECKPOINT`",
            "kind",
            "`kind` lora and `base`",
            "Convert LoRA with `kind` lora and `base`",
        ),
        (
            r"(?:with )?`lorakit convert --to lora`",
            "kind",
            "with `kind` lora",
            "with Convert LoRA, `kind` lora",
        ),
        (
            r"convert (it|them) `--to lora`( first)?",
            "kind",
            r"convert \1 with `kind` lora\2",
            r"convert \1 with Convert LoRA, `kind` lora,\2",
        ),
        (
            r"add --to lora",
            "kind",
            "set `kind` to lora",
            "use Convert LoRA with `kind` lora",
        ),
        (
            r"give --format, or --to lora",
            "kind",
            "choose a `format`, or `kind` lora",
            "use Convert LoRA with a `format`, or `kind` lora",
        ),
        (
            r"--rank (\d+) or --rank (\S+)",
            "rank",
            r"`rank` \1 or `rule` \2",
            r"Resize LoRA with `rank` \1 or `rule` \2",
        ),
        (r"`?--rank`?", "rank", "`rank` or `rule`", "Resize LoRA with `rank` or `rule`"),
        (r"as --base", "base", "as `base`", "to Convert LoRA as its `base`"),
        (
            r"as --reference, or its name as --architecture",
            "reference",
            "as `reference`",
            "to Convert LoRA as its `reference`",
        ),
        (
            r"as --(?:reference|architecture)",
            "reference",
            "as `reference`",
            "to Convert LoRA as its `reference`",
        ),
        (
            r"raise --vram or use --device cpu",
            "",
            "",
            "free memory on the device, or run ComfyUI on the CPU",
        ),
        (r"use --dtype (\w+) or (\w+)", "dtype", r"use `dtype` \1 or \2", "use less strength"),
        (r"--dtype", "dtype", "`dtype`", "another number format"),
        (r"choose another name or use --force", "", "", "choose another name"),
        (r"another --format", "format", "another `format`", "another format with Convert LoRA"),
        (r"`?--where '(\S+)'`?", "where", r"`where` \1", r"Scale LoRA with `where` \1"),
    )
)
_COMMAND = re.compile(r"`lorakit (\w+)[^`]*`")
_OPTION = re.compile(r"`?--([a-z][a-z-]*)`?")


def worded(message: str, inputs: Collection[str] | None = None) -> str:
    """Return a message that speaks of a node's inputs, or of the node that has what is meant.

    Args:
        message: With options and commands of the command line.
        inputs: Names of the inputs of the node that says it; None: whatever is meant.
    """
    for pattern, name, here, elsewhere in _ADVICE:
        message = pattern.sub(
            here if name and (inputs is None or name in inputs) else elsewhere or here, message
        )
    message = _COMMAND.sub(lambda found: _COMMANDS.get(found[1], found[1]), message)
    return _OPTION.sub(lambda found: f"`{found[1].replace('-', '_')}`", message)


def inputs_of(node: type[io.ComfyNode]) -> set[str]:
    """Names of a node's inputs."""
    return {one.id for one in node.define_schema().inputs}


def explained(execute: Callable[..., Result]) -> Callable[..., Result]:
    """Check what every node's inputs must be, and make its errors speak of them.

    What is None, such as an output of a node that is bypassed, counts as not given.
    """
    _, *taken = inspect.signature(execute).parameters.values()
    named = [one for one in taken if one.kind is not one.VAR_KEYWORD]
    needed = [one.name for one in named if one.default is one.empty]
    # A node that hands its other inputs on leaves them to the one that takes them.
    known = {one.name for one in named} if named == taken else None

    @functools.wraps(execute)
    def run(node: type[io.ComfyNode], **inputs: Any) -> Result:
        from ...lora_ops.errors import LoraOpsError

        given = {name: value for name, value in inputs.items() if value is not None}
        try:
            _check(known, needed, given)
            return execute(node, **given)
        except LoraOpsError as error:
            kind = _shown(type(error))
            raise kind(worded(str(error), inputs_of(node)), target=error.target) from error

    return run


def _check(
    known: Collection[str] | None, needed: Collection[str], given: Mapping[str, Any]
) -> None:
    """Refuse inputs that the host lets through.

    Raises:
        ArgumentError: One is missing, is none of the node's, or is no finite number.
    """
    from ...lora_ops.errors import ArgumentError

    for name in given.keys() - set(given if known is None else known):
        raise ArgumentError(f"there is no input `{name}`: that is one too many; use a second node")
    for name in needed:
        if name not in given:
            raise ArgumentError(f"nothing arrives at `{name}`; connect it, or set it")
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ArgumentError(f"`{name}` is {value}; give a finite number")


def _shown(kind: type[Any]) -> type[Any]:
    """The same error under its bare name: the host shows the name of the module before any other."""
    return kind if kind.__module__ == "builtins" else _bare(kind)


@functools.cache
def _bare(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (kind,), {"__module__": "builtins", "__doc__": kind.__doc__})
