"""LoRA of embeddings, whose factors PEFT stores the other way round: to PEFT and back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_models import Model, model, tokens, trained_parameters

from lorakit import lora_ops
from lorakit.lora_ops import Ingredient, collect, inject, open_source, save_adapter
from lorakit.lora_ops.errors import LoraOpsError, UnsupportedLayerError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")

LAYERS = ["table", "attn.to_q"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def theirs(**options) -> nn.Module:
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS, **options)
    made = peft.get_peft_model(model(), config)
    for one in trained_parameters(made).values():
        nn.init.normal_(one, 0.1, 0.5)
    return made


def ours() -> Model:
    module = model()
    inject(module, LAYERS, 3, alpha=5)
    for one in trained_parameters(module).values():
        nn.init.normal_(one, 0.1, 0.5)
    return module


def loaded(folder) -> nn.Module:
    return peft.PeftModel.from_pretrained(model(), folder)


def test_peft_loads_what_is_saved(tmp_path) -> None:
    module = ours()
    save_adapter(collect(module), tmp_path / "ours", format="peft")
    assert "base_model.model.table.lora_embedding_A" in load_file(
        tmp_path / "ours" / "adapter_model.safetensors"
    )
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()), module(tokens()), **CLOSE)
    # In one file too, under the names that it is collected with.
    save_adapter(collect(module), tmp_path / "one.safetensors")
    assert load_file(tmp_path / "one.safetensors")["table.lora_embedding_B"].shape == (12, 3)
    with open_source(tmp_path / "one.safetensors") as source:
        other = model()
        inject(other, lora_ops.decode(source))
    # A lone file of PEFT's names has no alpha: the scale is in the factors.
    torch.testing.assert_close(other(tokens()), module(tokens()), **CLOSE)


def test_what_peft_saves_is_read_and_baked(tmp_path) -> None:
    other = theirs()
    other.save_pretrained(tmp_path / "theirs")
    expected = other(tokens())
    with open_source(tmp_path / "theirs") as source:
        module = model()
        inject(module, lora_ops.decode(source))
        torch.testing.assert_close(module(tokens()), expected, **CLOSE)
        info = lora_ops.describe(source)
        assert info.targets == {"embedding": 1, "linear": 1}
        assert info.ranks == {3: 2}
        plain = {f"diffusion_model.{name}": one for name, one in model().state_dict().items()}
        save_file(plain, tmp_path / "base.safetensors")
        with open_source(tmp_path / "base.safetensors") as base:
            baked, report = lora_ops.bake(base, [Ingredient(source)])
    assert {layer.target for layer in report.layers} == {f"diffusion_model.{x}" for x in LAYERS}
    merged = other.merge_and_unload().state_dict()
    for name, one in merged.items():
        torch.testing.assert_close(baked[f"diffusion_model.{name}"], one, **CLOSE)


@pytest.mark.parametrize("name", ["default", "my-own", "run_2"])
def test_the_name_of_the_adapter_may_be_any(name: str, tmp_path) -> None:
    """A state dict of the whole module has it in its keys."""
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=LAYERS)
    made = peft.get_peft_model(model(), config, adapter_name=name)
    for one in trained_parameters(made).values():
        nn.init.normal_(one, 0.1, 0.5)
    tensors = {key: one for key, one in made.state_dict().items() if "lora_" in key}
    assert any(f".lora_A.{name}.weight" in key for key in tensors)
    save_file(tensors, tmp_path / "state.safetensors")
    with open_source(tmp_path / "state.safetensors") as source:
        module = model()
        inject(module, lora_ops.decode(source))
    torch.testing.assert_close(module(tokens()), made(tokens()), **CLOSE)


def test_two_adapters_in_one_file_are_not_taken_for_one(tmp_path) -> None:
    made = theirs()
    made.add_adapter("other", peft.LoraConfig(r=2, target_modules=LAYERS))
    tensors = {key: one for key, one in made.state_dict().items() if "lora_" in key}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "two.safetensors")
    with (
        open_source(tmp_path / "two.safetensors") as source,
        pytest.raises(UnsupportedLayerError, match="the adapters `default`, `other` of one"),
    ):
        lora_ops.decode(source)


def test_editing_keeps_the_way_round(tmp_path) -> None:
    other = theirs()
    other.save_pretrained(tmp_path / "theirs")
    with open_source(tmp_path / "theirs") as source:
        adapter = lora_ops.decode(source)
        smaller, _ = lora_ops.resize(adapter, "2")
        save_adapter(smaller, tmp_path / "small.safetensors")
        comfy, _ = lora_ops.convert(adapter, "comfy")
        assert comfy.layers["diffusion_model.table"].shape == (20, 12)
    with open_source(tmp_path / "small.safetensors") as source:
        held = dict(lora_ops.decode(source).layers)
    assert {layer.rank for layer in held.values()} == {2}
    for target, layer in smaller.layers.items():
        torch.testing.assert_close(held[target].delta(), layer.delta(), **CLOSE)


def test_dora_of_an_embedding_is_refused(tmp_path) -> None:
    other = theirs(use_dora=True)
    other.save_pretrained(tmp_path / "theirs")
    with open_source(tmp_path / "theirs") as source, pytest.raises(LoraOpsError, match="table"):
        dict(lora_ops.decode(source).layers.items())
