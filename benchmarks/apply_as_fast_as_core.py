"""Claim: Apply LoRA takes no more of the host's time than ComfyUI's own loader.

A LoRA of rank 64 on the 722 attention and feed-forward layers of SDXL's UNet and the 264 of its text
encoders, from the tensors in memory to patched clones of MODEL and CLIP, in one process and in turns.
The models have SDXL's names and shapes and no numbers: neither way reads them. Prints the best and
the median of a few rounds, for names of kohya's scripts and of ComfyUI.

    COMFYUI/.venv/bin/python benchmarks/apply_as_fast_as_core.py COMFYUI [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from unets import SDXL, targets, unet_shapes

SCRIPTS = Path(__file__).parents[1] / "tests" / "comfy_scripts"
RANK = 64
ENCODERS = {"clip_l": (12, 768), "clip_g": (32, 1280)}
NUMBERS = {"clip_l": "1", "clip_g": "2"}
LINEARS = {
    **{f"self_attn.{part}_proj": (1, 1) for part in ("q", "k", "v", "out")},
    "mlp.fc1": (4, 1),
    "mlp.fc2": (1, 4),
}
Shapes = dict[str, tuple[int, ...]]


def encoder_shapes() -> Shapes:
    """The linears of both text encoders, as ComfyUI calls them, and their biases."""
    found: Shapes = {}
    for encoder, (layers, width) in ENCODERS.items():
        for layer in range(layers):
            root = f"{encoder}.transformer.text_model.encoder.layers.{layer}"
            for name, (out, into) in LINEARS.items():
                found[f"{root}.{name}.weight"] = (out * width, into * width)
                found[f"{root}.{name}.bias"] = (out * width,)
    return found


def kohya_name(target: str) -> str:
    """What kohya's scripts call a target of SDXL."""
    for encoder, number in NUMBERS.items():
        root = f"text_encoders.{encoder}.transformer."
        if target.startswith(root):
            return f"lora_te{number}_" + target.removeprefix(root).replace(".", "_")
    return "lora_unet_" + target.removeprefix("diffusion_model.").replace(".", "_")


def adapters(unet: Shapes, encoders: Shapes) -> dict[str, dict[str, Tensor]]:
    """The tensors of one LoRA by the scheme of its names."""
    layers = {
        f"diffusion_model.{name}": shape
        for name, shape in targets(unet).items()
        if ".transformer_blocks." in name or name.endswith((".proj_in", ".proj_out"))
    }
    layers |= {
        f"text_encoders.{key.removesuffix('.weight')}": shape
        for key, shape in encoders.items()
        if key.endswith(".weight")
    }
    kohya: dict[str, Tensor] = {}
    comfy: dict[str, Tensor] = {}
    for target, (out, into, *_) in layers.items():
        up, down = torch.zeros(out, RANK).half(), torch.zeros(RANK, into).half()
        alpha = torch.tensor(32.0)
        name = kohya_name(target)
        kohya |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        comfy |= {f"{target}.lora_B.weight": up, f"{target}.lora_A.weight": down}
        kohya[f"{name}.alpha"] = comfy[f"{target}.alpha"] = alpha
    return {"kohya": kohya, "comfy": comfy}


def models(unet: Shapes, encoders: Shapes) -> tuple[Any, Any]:
    """A MODEL and a CLIP of these names and shapes, in ComfyUI's classes."""
    import comfy.model_detection
    import nodes_models

    def empty(shapes: Shapes) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    config = comfy.model_detection.detect_unet_config(empty(unet), "")
    return (
        nodes_models.model_of(empty(unet), "SDXL", config),
        nodes_models.clip_of(empty(encoders)),
    )


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a row for each scheme of names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    sys.argv[1:] = ["--cpu"]
    sys.path[1:1] = [str(Path(options.comfyui).expanduser()), str(SCRIPTS)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import nodes_models

    nodes_models.load_pack()
    from lorakit.nodes.apply.apply_lora import ApplyLora

    unet, encoders = unet_shapes(SDXL), encoder_shapes()
    model, clip = models(unet, encoders)
    print(machine())
    with torch.inference_mode():
        for scheme, lora in adapters(unet, encoders).items():

            def ours(lora: dict[str, Tensor] = lora) -> Any:
                return ApplyLora.execute(model, lora, 1.0, 1.0, clip=clip).args

            def core(lora: dict[str, Tensor] = lora) -> Any:
                return comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)

            patched, both, report = ours()
            counts = [len(one.patches) for one in (patched, both.patcher, core()[0])]
            assert counts == [722, 264, 722], (counts, report)
            rounds = [(seconds(ours), seconds(core)) for _ in range(options.rounds)]
            mine, theirs = zip(*rounds, strict=True)
            best, median = ((f(mine), f(theirs)) for f in (min, statistics.median))
            print(
                f"{scheme}: lorakit {1e3 * best[0]:.1f} ms, ComfyUI {1e3 * best[1]:.1f} ms, ratio "
                f"{best[0] / best[1]:.2f}; medians {1e3 * median[0]:.1f}, {1e3 * median[1]:.1f} ms, "
                f"ratio {median[0] / median[1]:.2f}"
            )


if __name__ == "__main__":
    main()
