"""Parameters that PEFT adapts as such, by `target_parameters`: stacks of experts, and weights of some modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ...models.modules import expert_of

_WEIGHT = ".weight"


def is_lora(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a LoRA."""
    return config.get("peft_type", "LORA") == "LORA"


def target_parameters(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of such parameters, or the ends of names, as a configuration lists them."""
    found = config.get("target_parameters") if is_lora(config) else None
    listed = cast("list[object]", found) if isinstance(found, list) else []
    return tuple(one for one in listed if isinstance(one, str))


def parameter_of(name: str) -> str:
    """Return the parameter that a layer changes: a module's weight, or the stack of an expert."""
    expert = expert_of(f".{name}")
    return name + _WEIGHT if expert is None else expert[0][1:]


def is_parameter(config: Mapping[str, Any], name: str) -> bool:
    """Return whether PEFT adapts what a layer changes as a parameter, by whose name its rank is then told.

    Args:
        config: Of the adapter.
        name: Of the layer in the model: that of a module, or of an expert's weight.
    """
    entries = target_parameters(config)
    return bool(entries) and f".{parameter_of(name)}".endswith(tuple(f".{one}" for one in entries))
