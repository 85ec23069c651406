"""What the core says, in the words of a node: inputs and nodes in place of Python's."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from ..host.api import io

Result = TypeVar("Result")

#: For each function that a message may name, the node that does the same, or a verb.
NODES = {
    "add": "Add LoRAs",
    "bake": "bake",
    "convert": "Convert LoRA",
    "describe": "Inspect LoRA",
    "extract": "extract",
    "read_metadata": "LoRA Info",
    "scale": "Scale LoRA",
}
#: The input for each parameter that a message may name.
INPUTS = {
    **{name: name for name in ("allow_other", "allow_partial", "base", "dtype", "exclude")},
    **{name: name for name in ("force", "format", "full_differences", "reference", "where")},
    "architecture": "reference",
    "memory": "memory",
    "rounding": "rounding",
    "rule": "rule",
    "thumbnail": "thumbnail",
    "to": "kind",
    "whole": "whole",
}
# What a message says, the input, or inputs, that it is about, what it means on a node that has them, and
# on one that has not: where the sentence turns out otherwise than name for name. The first that
# fits decides; `\1` and so on are the pattern's groups.
_PHRASES: tuple[tuple[re.Pattern[str], str, str, str], ...] = tuple(
    (re.compile(pattern), names, here, elsewhere)
    for pattern, names, here, elsewhere in (
        (
            r'`convert\(lora, to="lora", base=checkpoint\)`',
            "kind reference",
            "`kind` lora and `base`",
            "Convert LoRA with `kind` lora and `base`",
        ),
        (
            r'convert (it|them) `to="lora"` first',
            "kind reference",
            r"convert \1 with `kind` lora first",
            r"convert \1 with Convert LoRA, `kind` lora, first",
        ),
        (
            r'convert (it|them)(?: with)? `to="lora"`',
            "kind reference",
            r"convert \1 with `kind` lora",
            r"convert \1 with Convert LoRA, `kind` lora",
        ),
        (
            r'add `to="lora"`',
            "kind reference",
            "set `kind` to lora",
            "use Convert LoRA with `kind` lora",
        ),
        (
            r'give `format=`, or `to="lora"`',
            "kind reference",
            "choose a `format`, or `kind` lora",
            "use Convert LoRA with a `format`, or `kind` lora",
        ),
        (
            r'`rule=(\d+)` or `rule="(\S+)"`',
            "rank",
            r"`rank` \1 or `rule` \2",
            r"Resize LoRA with `rank` \1 or `rule` \2",
        ),
        (r"`rule=(\d+)`", "rank", r"`rank` \1", r"Resize LoRA with `rank` \1"),
        (
            r"give a sum its checkpoint \(`base=`\)",
            "loras base",
            "connect its checkpoint to `base`",
            "give its checkpoint to Add LoRAs",
        ),
        (
            r"(method `\w+`) keeps every input whole: it only finds their factors",
            "keep_whole",
            r"\1 keeps every LoRA whole: leave `keep_whole` empty, or choose a method from ties on",
            r"\g<0>",
        ),
        (r"as `base=`", "base", "as `base`", "to Convert LoRA as its `base`"),
        (
            r"as `reference=`, or its name as `architecture=`",
            "reference",
            "as `reference`",
            "to Convert LoRA as its `reference`",
        ),
        (
            r"as `(?:reference|architecture)=`",
            "reference",
            "as `reference`",
            "to Convert LoRA as its `reference`",
        ),
        (
            r'raise `memory=` or use `place\("cpu"\)`',
            "",
            "",
            "free memory on the device, or run ComfyUI on the CPU",
        ),
        (
            r"use `dtype=` (\w+) or (\w+)",
            "dtype",
            r"use `dtype` \1 or \2",
            "use less strength",
        ),
        (r"`dtype=`", "dtype", "`dtype`", "another number format"),
        (
            r"keep them whole \(`whole=`\), store them otherwise \(`to=`\)",
            "storage",
            "choose another `storage`",
            "write another `to` or more `whole` in the recipe",
        ),
        (r"`to=` is ", "storage", "`storage` is ", "a storage is "),
        (
            r"or write `bf16` or `f16`, which need none",
            "storage",
            "or choose `storage` gguf bf16 or gguf f16, which need none",
            r"\g<0>",
        ),
        (
            r"give a picture as `thumbnail=`",
            "thumbnail",
            "give a picture as `thumbnail`",
            "give a picture to Edit Metadata",
        ),
        (
            r"is to hold the weights of (.*?): `to=` is",
            "storage",
            r"is to hold the weights of \1: `storage` is",
            r"is to hold the weights of \1:",
        ),
        (r"; keep (?:it|them) whole \(`whole=`\)", "", "", ""),
        (r"keep (it|them) whole \(`whole=`\)", "", "", r"keep \1 whole"),
        (r"choose another name or use `force=True`", "", "", "choose another name"),
        (r"another `format=`", "format", "another `format`", "another format with Convert LoRA"),
        (
            r'set `keep = "on"` or `"off"` in the recipe',
            "v_pred_flags",
            "set `v_pred_flags` to on or off",
            r"\g<0>",
        ),
        (
            r", or keep the base's weights there \(`allow_nonfinite`\)",
            "allow_nonfinite",
            ", or turn `allow_nonfinite` on to keep those of the base there",
            "",
        ),
        (
            r'\(`rounding="stochastic"`\)',
            "rounding",
            "(`rounding` stochastic)",
            '(`rounding = "stochastic"` in the recipe)',
        ),
        (
            r"files are looked for where you say when it is run",
            "",
            "",
            "files are looked for in the folders of ComfyUI's models",
        ),
        (r"or say which names are LoRAs", "", "", "or put the files of LoRAs into models/loras"),
        (r"; see what the files are with `info`", "", "", "; are they models of different kinds?"),
        (r'`exclude="([^`]*)"`', "", "", r"`exclude` '\1'"),
        (r'`where="(\S+)"`', "where", r"`where` \1", r"Scale LoRA with `where` \1"),
    )
)


def worded(message: str, inputs: Collection[str] | None = None) -> str:
    """Return a message that speaks of a node's inputs, or of the node that has what is meant.

    Args:
        message: As the core says it; see `lora_ops.errors`.
        inputs: Names of the inputs of the node that says it; None: whatever is meant.
    """
    from ...lora_ops.text import CALL, PARAMETER

    for pattern, names, here, elsewhere in _PHRASES:
        has_all = inputs is None or all(name in inputs for name in names.split())
        message = pattern.sub(here if names and has_all else elsewhere, message)
    message = CALL.sub(lambda found: NODES.get(found[1], found[0]), message)
    return PARAMETER.sub(_input, message)


def _input(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name not in INPUTS:
        return found[0]
    told = f"`{INPUTS[name]}`"
    return told if value in ("", "True") else f"{told} {value}"


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
        from ...lora_ops import LoraOpsError

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
    from ...lora_ops import ArgumentError

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
