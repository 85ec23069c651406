"""A module starts from a checkpoint that has its weights under another program's names."""

from __future__ import annotations

import pytest
import torch
from namings import both
from safetensors.torch import save_file
from torch import nn

from lorakit.lora_ops import collect, inject
from lorakit.lora_ops.models.architectures import UNET, architecture_named

FOREIGN = "transformer."


def live(tensors, prefix, names):
    """A module of these linear layers, of zeros."""
    root = nn.Module()
    for name in names:
        weight = tensors[f"{prefix}{name}.weight"]
        module = nn.Linear(weight.shape[1], weight.shape[0])
        nn.init.zeros_(module.weight)
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.add_module(last, module)
    return root


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        (UNET, ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1"]),
        (FOREIGN, ["transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.proj_mlp", "norm_out.linear"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", [True, False])
def test_from_a_file_of_either_naming(prefix, names, own, tmp_path):
    native, foreign = both(architecture_named("flux"))
    mine, other = (native, foreign) if prefix == UNET else (foreign, native)
    file = tmp_path / "tuned.safetensors"
    save_file(mine if own else other, file)
    module = live(mine, prefix, names)
    inject(module, names, 4, init=f"svd_of={file}", prefix=prefix)
    layers = collect(module, prefix=prefix).layers
    for name in names:
        weight = mine[f"{prefix}{name}.weight"]
        torch.testing.assert_close(layers[prefix + name].delta(), weight, rtol=1e-4, atol=1e-4)
