"""Asks a ComfyUI tree for names: `python ask_comfyui.py COMFYUI` under its own Python, questions on stdin.

Questions and answers are JSON. A checkpoint is a dict of shapes by key: no weights exist.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

questions = json.load(sys.stdin)
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]

# Names need no pictures or sound: where these are not installed, stand-ins let the rest import.
for package in ("torchvision", "torchaudio"):
    if importlib.util.find_spec(package) is None:
        for module in ("", ".transforms", ".transforms.functional", ".ops", ".io", ".functional"):
            spec = ModuleSpec(package + module, None)
            sys.modules[package + module] = MagicMock(__spec__=spec, __version__="0")

import torch  # noqa: E402

import comfy.options  # noqa: E402  # isort: skip

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402  # isort: skip
import comfy.model_detection  # noqa: E402  # isort: skip
import comfy.ops  # noqa: E402  # isort: skip
import comfy.utils  # noqa: E402  # isort: skip

PREFIX = "model.diffusion_model."


class Model:
    """As much of a loaded model as the key map looks at."""

    def __init__(self, names, config=None):
        self.names = names
        self.model_config = config

    def state_dict(self):
        return dict.fromkeys(self.names)


def tensors(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def table(shapes):
    config = comfy.model_detection.detect_unet_config(tensors(shapes), PREFIX)
    return comfy.utils.unet_to_diffusers(config)


def checkpoint(shapes):
    """Class found, text encoders as loaded, and what adapters may call the weights."""
    state = tensors(shapes)
    config = comfy.model_detection.model_config_from_unet(state, PREFIX)
    if config is None:
        return {"class": None}
    clip = config.process_clip_state_dict(dict(state))
    clip = {key: list(value.shape) for key, value in clip.items() if key.startswith("clip_")}
    unet = [key[len("model.") :] for key in shapes if key.startswith(PREFIX)]
    maps = comfy.lora.model_lora_keys_unet(Model(unet, config), {})
    maps = comfy.lora.model_lora_keys_clip(Model(clip), maps)
    return {"class": type(config).__name__, "clip": clip, "maps": maps}


def patches(shapes, adapter):
    """The weights that an adapter would patch, and the keys that nothing used."""
    lora = tensors(adapter) | {
        key: torch.ones(shape) for key, shape in adapter.items() if key.endswith(".alpha")
    }
    found = comfy.lora.load_lora(lora, checkpoint(shapes)["maps"], log_missing=False)
    used = {key for key in lora if key.endswith((".diff", ".diff_b"))}
    for patch in found.values():
        used |= getattr(patch, "loaded_keys", set())
    return {"patched": sorted(found), "left": sorted(lora.keys() - used)}


def model(module, name, arguments):
    """Names and shapes of a model of ComfyUI's own."""
    built = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)(
        **arguments, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    return {key: list(value.shape) for key, value in built.state_dict().items()}


answers = {
    "models": {name: model(*one) for name, one in questions["models"].items()},
    "tables": {name: table(shapes) for name, shapes in questions["tables"].items()},
    "checkpoints": {name: checkpoint(one) for name, one in questions["checkpoints"].items()},
    "adapters": {name: patches(*one) for name, one in questions["adapters"].items()},
}
sys.stdout.write(json.dumps(answers))
