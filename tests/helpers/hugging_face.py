"""Tiny models of transformers, a tuned copy of each, and what PEFT makes of a folder on the base."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
hf = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)

_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_KEYS = {"num_key_value_heads": 1}
_EXPERTS = {**_SIZES, **_KEYS, "num_experts_per_tok": 2, "head_dim": 8}
_VISION = {name: _SIZES[name] for name in list(_SIZES)[:4]}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}
_BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, **_KEYS)),
    "qwen2, tied": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**_SIZES, **_KEYS, tie_word_embeddings=True)
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_SIZES)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SIZES)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**_BLOOM)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=2)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_EXPERTS, num_local_experts=3)),
    "qwen3 moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_EXPERTS, num_experts=3, moe_intermediate_size=12)
    ),
    "qwen2 moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **_SIZES,
            **_KEYS,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
        )
    ),
    "gpt-oss": lambda: hf.GptOssForCausalLM(hf.GptOssConfig(**_EXPERTS, num_local_experts=3)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_SIZES, num_labels=3)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**_T5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    ),
    "clip text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_SIZES)),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(**_VISION, image_size=8, patch_size=4, num_labels=3)
    ),
}


def pair_of(
    name: str, folder: Path, size: float = 0.2, **saved: Any
) -> tuple[nn.Module, nn.Module]:
    """A base and a tuned model, saved in `base` and `tuned`: every weight of the second is changed.

    What is no module's weight or bias stays: PEFT has no place for it.
    """
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    base.save_pretrained(folder / "base")
    torch.manual_seed(0)
    tuned = MODELS[name]().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for own, one in tuned.named_parameters():
            if own.endswith(("weight", ".bias")) or (".experts." in own and "bias" not in own):
                one.add_(torch.randn_like(one) * size * one.std().nan_to_num(1).clamp_min(0.1))
    tuned.save_pretrained(folder / "tuned", **saved)
    return base, tuned


def outputs(model: nn.Module, name: str) -> Tensor:
    """What a model says to the same input each time."""
    torch.manual_seed(2)
    if name == "vit":
        return model(pixel_values=torch.randn(2, 3, 8, 8)).logits
    words = {"input_ids": torch.randint(3, 40, (2, 7))}
    if name == "t5":
        words["decoder_input_ids"] = torch.randint(3, 40, (2, 5))
    found = model(**words)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def loaded(name: str, folder: Path, adapter: str = "ours", **options: Any) -> nn.Module:
    """The base with an adapter, loaded by PEFT, which finds all its keys and misses none."""
    plain = type(MODELS[name]()).from_pretrained(folder / "base", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|no module was).*")
        return peft.PeftModel.from_pretrained(plain, folder / adapter).eval()
