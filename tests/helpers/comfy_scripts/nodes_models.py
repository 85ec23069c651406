"""Models for the scripts that try the nodes: this pack, and small models in the host's own classes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import lora_names
import torch

ROOT = Path(__file__).parents[3]


def load_pack():
    """Make this folder importable as `lorakit`, as an installed package would be."""
    if "lorakit" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "lorakit", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["lorakit"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["lorakit"])
        from lorakit.nodes.host import model_files

        model_files.name_activations()  # as when the host asks for the nodes


def tree(tensors):
    """A module that has these parameters under these names."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    return root


def patched(module):
    """A module in the host's patcher."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(module, load_device=cpu, offload_device=cpu)


def model_of(tensors, base="BaseModel", config=None):
    """A MODEL whose diffusion model has these parameters, of a class of the host's."""
    from types import SimpleNamespace

    import comfy.model_base

    kind = type("Small", (getattr(comfy.model_base, base),), {"__init__": torch.nn.Module.__init__})
    model = kind()
    model.model_config = SimpleNamespace(unet_config=config or {})
    model.diffusion_model = tree(tensors)
    return patched(model)


def clip_of(tensors):
    """A CLIP with these parameters."""
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = tree(tensors)
    clip.patcher = patched(clip.cond_stage_model)
    clip.tokenizer, clip.layer_idx, clip.tokenizer_options = None, None, {}
    clip.use_clip_schedule, clip.apply_hooks_to_conds = False, None
    return clip


def hosted(question):
    """A MODEL of one of the host's own classes, without numbers."""
    shapes = lora_names.shapes_of(question)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return model_of(tensors, question["base"], question["config"])


def numbers(key, shape):
    """A weight: the same for the same name."""
    generator = torch.Generator().manual_seed(sum(key.encode()))
    return torch.randn(shape, generator=generator) * 0.1
