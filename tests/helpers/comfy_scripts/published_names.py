"""Shapes of the modules of ComfyUI's own classes, at any size: no weights are made."""

from __future__ import annotations

import contextlib
import importlib


def answer(question):
    """(out, in) of each weight of two axes or more, by module, by label."""
    import comfy.ops
    import torch

    found = {}
    for label, (module, name, arguments) in question.items():
        built = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        # Some buffers are computed, which no meta device can.
        where = contextlib.nullcontext() if label == "pixart" else torch.device("meta")
        with where:
            model = built(
                **arguments,
                device="meta",
                dtype=torch.float32,
                operations=comfy.ops.disable_weight_init,
            )
        found[label] = {
            key.removesuffix(".weight"): list(value.shape)[:2]
            for key, value in model.state_dict().items()
            if key.endswith(".weight") and value.ndim > 1
        }
    return found
