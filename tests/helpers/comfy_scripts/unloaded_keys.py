"""The keys of adapter files that ComfyUI does not load, as it says itself in its log."""

from __future__ import annotations

import logging

import lora_names

PREFIX = "model.diffusion_model."


class Lines(logging.Handler):
    """What is logged, one line each."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def names_of(question):
    """ComfyUI's key map of a model: of a class of its own, or of a checkpoint's shapes."""
    import comfy.lora

    if "checkpoint" not in question:
        shapes = lora_names.shapes_of(question)
        model = lora_names.stand_in({**question, "shapes": shapes})
        names = comfy.lora.model_lora_keys_unet(model, {})
    else:
        names = comfy.lora.model_lora_keys_unet(of_checkpoint(question["checkpoint"]), {})
    encoders = type("Encoders", (), {"state_dict": lambda _: dict.fromkeys(question["encoders"])})
    return comfy.lora.model_lora_keys_clip(encoders(), names)


def of_checkpoint(shapes):
    """As much of a loaded UNet as the key map looks at."""
    from types import SimpleNamespace

    import comfy.model_detection
    import torch

    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    unet = {key.removeprefix("model."): key for key in shapes if key.startswith(PREFIX)}
    config = comfy.model_detection.model_config_from_unet(state, PREFIX)
    return SimpleNamespace(model_config=config, state_dict=lambda: unet)


def left_of(path, names):
    """The keys that are not loaded, or the error that loading ends with."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils

    log = Lines()
    logging.getLogger().addHandler(log)
    try:
        lora = comfy.utils.load_torch_file(path, safe_load=True)
        comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), names)
    except (KeyError, RuntimeError) as error:
        return type(error).__name__
    finally:
        logging.getLogger().removeHandler(log)
    start = "lora key not loaded: "
    return [line.removeprefix(start) for line in log.lines if line.startswith(start)]


def answer(question):
    """By file, what `left_of` says; and all names that are accepted."""
    names = names_of(question)
    left = {name: left_of(path, names) for name, path in question["files"].items()}
    return {"left": left, "names": {k: v if isinstance(v, str) else v[0] for k, v in names.items()}}
