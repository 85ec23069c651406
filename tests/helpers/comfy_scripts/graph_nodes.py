"""Nodes for the tests: what a graph needs beside models, without a text encoder's gigabytes."""

from __future__ import annotations

import comfy.sd
import folder_paths
import safetensors.torch
import torch

# As small as CLIP-L's architecture can be; the tokens stay those of the real one.
TINY_CLIP = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


def conditioning(width, pooled, seed):
    """Random conditioning of a width, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 7, width, generator=generator)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return ([[tokens, extra]],)


def load_checkpoint(ckpt_name):
    """Loads a checkpoint whose CLIP is tiny, which the host's loader has no option for."""
    path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
    tiny = {"clip_l_model_config": TINY_CLIP}
    loaded = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, te_model_options=tiny)
    return loaded[:2]


def lora_model(lora_name):
    """A file of models/loras as other packs' nodes hand it on: a plain dict, as TrainLoraNode's."""
    path = folder_paths.get_full_path_or_raise("loras", lora_name)
    return (safetensors.torch.load_file(path),)


def lora_stack(lora_name, model, clip, lora_stack=()):
    """A stack as other packs make it, longer by one row, or by none where the name is empty."""
    row = [(lora_name, model, clip)] if lora_name else []
    return ([*lora_stack, *row],)


def name(name):
    """A name for an input that is a choice of files."""
    return (name,)


def save(path, latent=None, image=None, conditioning=None):
    """Writes what comes in as a tensor, where a test can read it."""
    if latent is not None:
        image = latent["samples"]
    if conditioning is not None:
        image = conditioning[0][0]
    safetensors.torch.save_file({"tensor": image.contiguous()}, path)
    return {}


def hooks(model, after):
    """How many hooks are on a MODEL's layers, once something else is done."""
    layers = model.model.modules()
    return (str(sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in layers)),)


def node(function, returns, required, optional=None):
    """A node as the host wants it; inputs are types by name."""
    inputs = {
        part: {name: (kind, {}) for name, kind in given.items()}
        for part, given in (("required", required), ("optional", optional or {}))
    }
    members = {
        "CATEGORY": "test",
        "RETURN_TYPES": returns,
        "OUTPUT_NODE": not returns,
        "FUNCTION": "run",
        "INPUT_TYPES": classmethod(lambda cls: inputs),
        "run": staticmethod(function),
    }
    return type(function.__name__, (), members)


NUMBERS = dict.fromkeys(("width", "pooled", "seed"), "INT")
ROW = {"lora_name": "STRING", "model": "FLOAT", "clip": "FLOAT"}
KINDS = {kind.lower(): kind for kind in ("LATENT", "IMAGE", "CONDITIONING")}
NODE_CLASS_MAPPINGS = {
    "TestConditioning": node(conditioning, ("CONDITIONING",), NUMBERS),
    "TestLoadCheckpoint": node(load_checkpoint, ("MODEL", "CLIP"), {"ckpt_name": "STRING"}),
    "TestHooks": node(hooks, ("STRING",), {"model": "MODEL", "after": "*"}),
    "TestLoraModel": node(lora_model, ("LORA_MODEL",), {"lora_name": "STRING"}),
    "TestLoraStack": node(lora_stack, ("LORA_STACK",), ROW, {"lora_stack": "LORA_STACK"}),
    "TestName": node(name, ("COMBO",), {"name": "STRING"}),
    "TestSave": node(save, (), {"path": "STRING"}, KINDS),
}
