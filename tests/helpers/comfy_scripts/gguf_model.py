"""A Flux from a GGUF file, as ComfyUI-GGUF and ComfyUI load it: what it answers to inputs that are drawn."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch


def answer(question):
    """Write the output, and say which weights ComfyUI missed. The question: `file`, `output`, `pack`, `paths`."""
    folder = Path(question["pack"])
    sys.path[:0] = [str(folder.parent), *question["paths"]]
    loader = importlib.import_module(f"{folder.name}.loader")
    ops = importlib.import_module(f"{folder.name}.ops")
    import comfy.sd
    from safetensors.torch import save_file

    state = loader.gguf_sd_loader(question["file"])
    names = set(state)
    with torch.inference_mode():
        made = comfy.sd.load_diffusion_model_state_dict(
            dict(state), model_options={"custom_operations": ops.GGMLOps()}
        )
        model = made.model.diffusion_model
        draw = torch.Generator().manual_seed(5)
        width, context = model.vector_in.in_layer.in_features, model.txt_in.in_features
        picture, text, pooled = (
            torch.randn(shape, generator=draw)
            for shape in ((1, 16, 8, 8), (1, 6, context), (1, width))
        )
        time = torch.tensor([0.5])
        output = model(picture, time, text, pooled, guidance=time, transformer_options={})
        save_file({"output": output.float().contiguous()}, question["output"])
    held = {name.replace("_norm.scale", "_norm.weight") for name in names}
    # One is the pack's own, for what its largest weight takes.
    return sorted(n for n in model.state_dict() if n not in held and ".temp." not in n)
