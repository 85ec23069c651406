"""lorakit's messages in the words of the nodes: inputs in place of the command line's options."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
_OPTION = re.compile(r"`?--([a-z][a-z-]*)(?: lora)?`?")
# Options that no input is called after.
_INPUTS = {"to": "`kind` lora of Convert LoRA", "rank": "`rank` or `rule`"}


def worded(message: str) -> str:
    """Return a message with `allow_partial` where it says --allow-partial, and so on."""
    return _OPTION.sub(lambda option: _INPUTS.get(option[1], _input(option[1])), message)


def explained(execute: Callable[..., Result]) -> Callable[..., Result]:
    """Make a node's errors speak of its inputs."""

    @functools.wraps(execute)
    def run(*inputs: Any, **named: Any) -> Result:
        from ..lora_ops.errors import LoraOpsError

        try:
            return execute(*inputs, **named)
        except LoraOpsError as error:
            raise type(error)(worded(str(error)), target=error.target) from error

    return run


def _input(option: str) -> str:
    return f"`{option.replace('-', '_')}`"
