"""The example workflows, and models of a few megabytes under the names that they have in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import ROOT
from graphs import Tensors, lora, taesd, tuned, weights
from keys.checkpoints import clip, prefixed, unet
from safetensors.torch import save_file

EXAMPLES = ROOT / "example_workflows"
_BASE, _TUNED = "sd_xl_base_1.0.safetensors", "juggernautXL_v9.safetensors"
#: The same two, for the example that is about the blocks of the kind that they are of.
_SD1 = ("v1-5-pruned-emaonly-fp16.safetensors", "dreamshaper_8.safetensors")
LORAS = ("pixel-art-xl.safetensors", "add-detail-xl.safetensors")
#: One level of an SD1.5 UNet, with attention on the way in, in the middle and on the way out.
_UNET = unet(768, [1], blocks=1)


def example(name: str) -> dict[str, Any]:
    """A workflow as it is shipped."""
    return json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))


def models(base: Path) -> None:
    """Write what the examples name into a server's folder.

    The models are of SD1.5's kind, and of their text encoder they have one layer and no words.
    """
    folder = base / "models"
    layers = {key: shape for key, shape in clip(768, 1).items() if "embedding" not in key}
    encoder = prefixed("cond_stage_model.transformer.", layers)
    started = weights(
        prefixed("model.diffusion_model.", _UNET)
        | encoder
        | prefixed("first_stage_model.", taesd(4))
    )
    changed = tuned({key: one for key, one in started.items() if key.startswith("model.")})
    for names, tensors in zip(
        zip((_BASE, _TUNED), _SD1, strict=True), (started, started | changed), strict=True
    ):
        half = {key: one.half() for key, one in tensors.items()}
        for name in names:
            save_file(half, folder / "checkpoints" / name)
    for seed, name in enumerate(LORAS):
        save_file(_lora(seed), folder / "loras" / name)


def _lora(seed: int) -> Tensors:
    """Of all matrices of the UNet, and of the text encoder's layers."""
    layers = {key: shape for key, shape in clip(768, 1).items() if "layers" in key}
    made = lora(_UNET, 4, seed)
    for key, tensor in lora(layers, 4, seed).items():
        name, role = key.removeprefix("diffusion_model.").split(
            ".lora_" if "lora_" in key else ".alpha", 1
        )
        made[f"lora_te_{name.replace('.', '_')}" + (f".lora_{role}" if role else ".alpha")] = tensor
    return made


def small(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with pictures of 64 x 64 in one step, where it makes any."""
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][:2] = [64, 64]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 1
    if any(node["type"] == "LorakitRecordActivations" for node in workflow["nodes"]):
        _without_words(workflow)
    return workflow


def _without_words(workflow: dict[str, Any]) -> None:
    """Put random conditioning in the place of words: what the text encoder has of these is no number at times."""
    encoders = {node["id"] for node in workflow["nodes"] if node["type"] == "CLIPTextEncode"}
    gone = {link[0] for link in workflow["links"] if link[3] in encoders}
    workflow["links"] = [link for link in workflow["links"] if link[0] not in gone]
    for node in workflow["nodes"]:
        for output in node["outputs"] if node["type"] == "CheckpointLoaderSimple" else ():
            output["links"] = [one for one in output["links"] or () if one not in gone]
        if node["id"] in encoders:
            node |= {"type": "TestConditioning", "inputs": [], "widgets_values": [768, 0, 1]}
            node.pop("widgets_values_named", None)
