"""Parameters that PEFT trains whole beside its layers: biases, modules to save, vectors of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..naming.suffixes import BIAS, Module

# Behind this root a parameter has the name that it has in the model, but for the parts below.
_ROOT = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.)")
_TOKENS = re.compile(r"(\.token_adapter)?\.trainable_tokens_delta(\.default)?$")
_WEIGHT = ".weight"
# A part of the name that begins like this marks a method's own tensors.
_METHOD = re.compile(r"\.(lora|hada|lokr|oft|boft|ia3|vera|ada)_")


def saved_parameters(extras: Iterable[str]) -> dict[str, Module]:
    """Return which of a file's other keys are trained parameters, as modules by name.

    A bias has a module of its own, the name ending in ``.bias``; so has each weight, which may
    stand beside a layer of the same name.

    Args:
        extras: Keys that belong to no layer.
    """
    found: dict[str, Module] = {}
    for key in extras:
        if not key.startswith(_ROOT):
            continue
        tokens = _TOKENS.search(key)
        if tokens is not None:
            found[key[: tokens.start()]] = Module("rows", {"rows": key})
        elif key.endswith((_WEIGHT, BIAS)) and _METHOD.search(key) is None:
            name = _WRAPPED.sub("", key).removesuffix(_WEIGHT)
            found[name] = Module("set", {"set_weight": key})
    return found
