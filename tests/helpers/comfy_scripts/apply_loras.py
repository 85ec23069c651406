"""Loads base and tuned as a user would, applies LoRA files to base, and measures what is missing."""

from __future__ import annotations

import logging


class Complaints(logging.Handler):
    """Everything that ComfyUI warns of, one line each."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def take(self):
        taken, self.lines = self.lines, []
        return taken


def load(path, loader, te):
    """Diffusion model and text encoders (or None), found out from the file alone."""
    import comfy.sd

    if loader == "diffusion_model":
        return comfy.sd.load_diffusion_model(path), None
    model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(
        path, output_vae=False, te_model_options=te
    )
    return model, clip


def weights(model, clip):
    """All weights that the host holds, by the name that patches go by."""
    held = dict(model.model.state_dict())
    return held | (dict(clip.patcher.model.state_dict()) if clip else {})


def changes(base, tuned):
    """Norm of what differs, for each weight that does."""
    import torch

    norms = {
        key: torch.linalg.vector_norm(tuned[key].float() - weight.float()).item()
        for key, weight in base.items()
    }
    return {key: norm for key, norm in norms.items() if norm}


def apply(path, model, clip, base, tuned, norms):
    """What one LoRA file does to base: for each weight patched, the distance left to tuned.

    Distances are shares of the weight's change, or as they are for a weight without any.
    """
    import comfy.lora
    import comfy.sd
    import comfy.utils
    import torch

    lora = comfy.utils.load_torch_file(path, safe_load=True)
    patched_model, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    patches = patched_model.patches | (patched_clip.patcher.patches if clip else {})
    left = {}
    for key, records in patches.items():
        weight = base[key].to(torch.float32, copy=True)
        weight = comfy.lora.calculate_weight(records, weight, key, intermediate_dtype=torch.float32)
        distance = torch.linalg.vector_norm(weight.sub_(tuned[key])).item()
        left[key] = distance / norms.get(key, 1)
    return left


def answer(question):
    """The class found, what was said while loading, the shapes of what changed, and each LoRA."""
    import torch

    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with torch.inference_mode():
        options = question["loader"], question["te"]
        model, clip = load(question["base"], *options)
        base, tuned = weights(model, clip), weights(*load(question["tuned"], *options))
        norms = changes(base, tuned)
        found = {
            "class": type(model.model.model_config).__name__,
            "loading": complaints.take(),
            "changed": {key: list(base[key].shape) for key in norms},
            "loras": {},
        }
        for name, path in question["loras"].items():
            left = apply(path, model, clip, base, tuned, norms)
            found["loras"][name] = {"left": left, "complaints": complaints.take()}
    logging.getLogger().removeHandler(complaints)
    return found
