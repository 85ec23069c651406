"""A whole model from a file, as ComfyUI's loader makes it: what its weights stand for, and what it answers."""

from __future__ import annotations

import torch


def answer(question):
    """Write the weights in float32, and the output for an input that is drawn; say the formats.

    The question: `source` and `output` are paths; of a Flux with inputs of `width` numbers.
    """
    import comfy.sd
    from safetensors.torch import save_file

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(question["source"]).model.diffusion_model
        formats, found = {}, {}
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if hasattr(weight, "_qdata"):
                formats[name] = module.quant_format
                weight = weight.to(torch.float32).dequantize()
            if weight is not None:
                found[f"{name}.weight"] = weight.float().contiguous()
        draw = torch.Generator().manual_seed(5)
        width = question["width"]
        picture, text, pooled = (
            torch.randn(shape, generator=draw).to(model.dtype)
            for shape in ((1, 16, 8, 8), (1, 6, width), (1, width))
        )
        time = torch.tensor([0.5], dtype=model.dtype)
        output = model(picture, time, text, pooled, guidance=time, transformer_options={})
        save_file({**found, "output": output.float().contiguous()}, question["output"])
    return formats
