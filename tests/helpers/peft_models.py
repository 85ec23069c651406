"""What the tests of PEFT's files share: a small model, and folders of every kind that PEFT writes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

peft = pytest.importorskip("peft", reason="what it writes and loads is what is asked here")


class Model(nn.Module):
    """Names and shapes with something for each way that PEFT changes a model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.words = nn.Embedding(12, 24)
        blocks = {"q": nn.Linear(24, 24), "norm": nn.LayerNorm(24), "up": nn.Linear(24, 40)}
        self.blocks = nn.ModuleList(nn.ModuleDict(dict(blocks)) for _ in range(1))
        self.blocks.append(nn.ModuleDict({"q": nn.Linear(24, 24), "up": nn.Linear(24, 40)}))
        self.head = nn.Linear(40, 6)


def trained(folder, config):
    """A folder that PEFT wrote of an adapter whose every trained number is random."""
    model = peft.get_peft_model(Model(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def merged(folder):
    """The weights that PEFT makes of the base model and the folder."""
    return peft.PeftModel.from_pretrained(Model(), folder).merge_and_unload().state_dict()


def loaded(folder):
    """The changes that PEFT makes of a folder."""
    before = Model().state_dict()
    return {key: weight - before[key] for key, weight in merged(folder).items()}


def base_in(folder):
    """The base model as a file."""
    path = folder / "base.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in Model().state_dict().items()}, path)
    return path


def lora(**options):
    return peft.LoraConfig(
        **{"r": 4, "lora_alpha": 10, "target_modules": ["q", "up"], "init_lora_weights": False}
        | options
    )


CONFIGS = {
    "alpha above rank": lambda: lora(),
    "rank-stabilised": lambda: lora(use_rslora=True),
    "patterns": lambda: lora(
        rank_pattern={r"blocks\.(0|2)\.q": 3, "^up": 7, ".*up": 5},
        alpha_pattern={r"\d+\.up": 3, "q": 7},
    ),
    "PiSSA": lambda: lora(init_lora_weights="pissa"),
    "OLoRA": lambda: lora(init_lora_weights="olora"),
    "OLoRA, rank-stabilised": lambda: lora(init_lora_weights="OLoRA", use_rslora=True),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "MiCA": lambda: lora(init_lora_weights="mica"),
    "DoRA": lambda: lora(use_dora=True),
    "DoRA over PiSSA": lambda: lora(use_dora=True, init_lora_weights="pissa"),
    "bias of up": lambda: lora(lora_bias=True),
    "LoHa": lambda: peft.LoHaConfig(
        r=2, alpha=5, target_modules=["q", "up"], init_weights=False, alpha_pattern={"up": 3}
    ),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=["q", "up"], init_weights=False),
    "LoKr of whole matrices": lambda: peft.LoKrConfig(
        r=32, alpha=5, target_modules=["q", "up"], init_weights=False
    ),
}
BESIDE = {
    "biases of layers": lambda: lora(bias="lora_only"),
    "all biases": lambda: lora(bias="all"),
    "modules to save": lambda: lora(modules_to_save=["head", "norm"]),
    "tokens": lambda: lora(trainable_token_indices={"words": [2, 5, 11]}),
    "tokens alone": lambda: peft.TrainableTokensConfig(
        target_modules=["words"], token_indices=[7, 1], init_weights=False
    ),
}
WHERE = {"folder": "", "file": "adapter_model.safetensors"}
