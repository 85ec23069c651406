"""What ComfyUI takes for a module's name in an adapter, and what the adapter then changes."""

from __future__ import annotations

import importlib


def stand_in(question):
    """As much of a loaded model as the key map looks at: its class, configuration and names."""
    from types import SimpleNamespace

    import comfy.model_base

    names = dict.fromkeys(f"diffusion_model.{name}" for name in question["shapes"])
    base = getattr(comfy.model_base, question["base"])
    members = {
        "model_config": SimpleNamespace(unet_config=question["config"]),
        "state_dict": lambda _: names,
    }
    return type("StandIn", (base,), {"__init__": lambda _: None, **members})()


def shapes_of(question):
    """Names and shapes of a diffusion model of ComfyUI's own."""
    import comfy.ops
    import torch

    module = importlib.import_module(f"comfy.ldm.{question['module']}")
    built = getattr(module, question["class"])(
        **question["arguments"],
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return {key: list(value.shape) for key, value in built.state_dict().items()}


def record(target):
    """A target of the key map: its name, its rows or none, whether it has a function."""
    if isinstance(target, str):
        return [target, None, False]
    rows = target[1]
    return [target[0], None if rows is None else list(rows), len(target) > 2]


def change(paths, shapes, names):
    """Write what an adapter does to weights of zero, and return the keys that nothing used."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils
    import torch

    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(paths[0], safe_load=True))
    found = comfy.lora.load_lora(lora, names, log_missing=False)
    used = {key for key in lora if key.endswith((".diff", ".diff_b"))}
    changes = {}
    for key, patch in found.items():
        used |= getattr(patch, "loaded_keys", set())
        name, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
        weight = changes.get(name)
        if weight is None:
            weight = torch.zeros(shapes[name.removeprefix("diffusion_model.")])
        patches = [(1.0, patch, 1.0, offset, function)]
        changes[name] = comfy.lora.calculate_weight(
            patches, weight, name, intermediate_dtype=torch.float32
        )
    comfy.utils.save_torch_file({key: one.contiguous() for key, one in changes.items()}, paths[1])
    return sorted(lora.keys() - used)


def answer(question):
    """The shapes of the model, the targets by name, and the keys left of each adapter."""
    import comfy.lora
    import torch

    shapes = shapes_of(question)
    model = stand_in({**question, "shapes": shapes})
    names = comfy.lora.model_lora_keys_unet(model, {})
    with torch.inference_mode():
        left = {name: change(paths, shapes, names) for name, paths in question["files"].items()}
    return {
        "shapes": shapes,
        "names": {name: record(target) for name, target in names.items()},
        "left": left,
    }
