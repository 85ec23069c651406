"""What ComfyUI-GGUF makes of a file: the names, shapes and numbers of its tensors, in float32."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def answer(question):
    """Names and shapes; the numbers go into `truth`. The question: `file`, `truth`, `pack`, `text`."""
    folder = Path(question["pack"])
    sys.path[:0] = [str(folder.parent), *question["paths"]]
    loader = importlib.import_module(f"{folder.name}.loader")
    dequant = importlib.import_module(f"{folder.name}.dequant")
    import torch
    from safetensors.torch import save_file

    load = loader.gguf_clip_loader if question["text"] else loader.gguf_sd_loader
    state = load(question["file"])
    numbers = {
        k: dequant.dequantize_tensor(t, torch.float32, torch.float32) for k, t in state.items()
    }
    save_file({k: t.float().contiguous() for k, t in numbers.items()}, question["truth"])
    return {key: list(tensor.shape) for key, tensor in state.items()}
