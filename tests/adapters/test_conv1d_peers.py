"""GPT-2's layers, which store their weights as (in, out): adapters beside them, merged, and to PEFT."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_models import trained_parameters

from lorakit.lora_ops import collect, eject, inject, merge_into, save_adapter, unmerge

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
hf = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TOKENS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES)).eval()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_paths_beside_them_are_those_of_peft(kind: str, tmp_path) -> None:
    module = gpt2()
    before = module(TOKENS).logits
    found = inject(module, ["*.c_attn", "*.c_proj", "*.c_fc"], 2, alpha=6, kind=kind)
    assert len(found) == 8
    torch.testing.assert_close(module(TOKENS).logits, before, **CLOSE)
    for name, one in trained_parameters(module).items():
        nn.init.normal_(one, 1.0 if name.endswith("magnitude") else 0.0, 0.2)
    live = module(TOKENS).logits
    assert (live - before).abs().max() > 0.05
    save_adapter(collect(module), tmp_path / "ours", format="peft")
    theirs = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "ours")
    torch.testing.assert_close(theirs(TOKENS).logits, live, **CLOSE)
    merge_into(module)
    torch.testing.assert_close(module(TOKENS).logits, live, **CLOSE)
    unmerge(module)
    assert torch.equal(module(TOKENS).logits, live)
    eject(module)
    assert torch.equal(module(TOKENS).logits, before)
    assert type(module.transformer.h[0].attn.c_attn) is hf.pytorch_utils.Conv1D


def test_all_means_them_too() -> None:
    module = gpt2()
    found = inject(module, "all", 2)
    assert sum(".c_" in name for name in found) == 8
    assert inject(gpt2(), "attention", 2) == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]


def test_dora_beside_one_that_is_merged() -> None:
    module = gpt2()
    for name, kind in (("one", "dora"), ("two", "lora")):
        inject(module, "*.c_attn", 2, kind=kind, name=name)
    for name, one in trained_parameters(module).items():
        nn.init.normal_(one, 1.0 if name.endswith("magnitude") else 0.0, 0.2)
    live = module(TOKENS).logits
    merge_into(module, "two")
    torch.testing.assert_close(module(TOKENS).logits, live, **CLOSE)


def test_the_difference_of_a_checkpoint_is_read_the_right_way_round(tmp_path) -> None:
    base, tuned = gpt2(), gpt2()
    layer = tuned.transformer.h[1].mlp.c_fc
    layer.weight.data += 0.1 * torch.randn(16, 2) @ torch.randn(2, 64)
    state = copy.deepcopy(tuned.state_dict())
    state.pop("lm_head.weight")  # tied
    save_file(state, tmp_path / "tuned.safetensors")
    inject(base, "*.c_fc", 2, init=f"svd_of={tmp_path / 'tuned.safetensors'}")
    torch.testing.assert_close(base(TOKENS).logits, tuned(TOKENS).logits, **CLOSE)
