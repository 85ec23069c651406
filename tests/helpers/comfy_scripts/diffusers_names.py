"""What diffusers calls the weights of a UNet, from ComfyUI's own table."""

from __future__ import annotations


def answer(shapes):
    """Native name by diffusers name; `shapes` are the UNet's, by native name."""
    import comfy.model_detection
    import comfy.utils
    import torch

    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = comfy.model_detection.detect_unet_config(state, "")
    table = comfy.utils.unet_to_diffusers(config)
    return {name: native for name, native in table.items() if native in shapes}
