"""PEFT's IA3: read, and baked as PEFT merges it, the biases too."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_models import model

from lorakit.lora_ops import (
    DictSource,
    Ingredient,
    bake,
    compare,
    convert,
    decode,
    describe,
    open_source,
    verify,
)
from lorakit.lora_ops.errors import FormatError, LoraOpsError, UnsupportedLayerError
from lorakit.lora_ops.inspect.lint import lint

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
hf = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TARGETS = ["attn.to_q", "attn.to_k", "conv", "space"]
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}


def merged(plain: nn.Module, folder, **options) -> dict[str, torch.Tensor]:
    """What PEFT's own merge gives of the adapter that it saves."""
    made = peft.get_peft_model(plain, peft.IA3Config(**options))
    torch.manual_seed(3)
    for name, one in made.named_parameters():
        if "ia3_l" in name:
            nn.init.normal_(one, 1, 0.3)
    made.save_pretrained(folder / "adapter")
    return made.merge_and_unload().state_dict()


def base() -> DictSource:
    return DictSource(
        {f"diffusion_model.{name}": one for name, one in model().state_dict().items()}
    )


@pytest.mark.parametrize(
    "feedforward",
    [[], ["attn.to_q"], ["to_k", "conv"], TARGETS, ".*to_q|space", "to_q"],
    ids=str,
)
def test_it_is_baked_as_peft_merges_it(feedforward, tmp_path) -> None:
    targets = TARGETS if isinstance(feedforward, list) else r".*(to_q|to_k)|conv|space"
    feedforward = (
        [one if one in TARGETS else f"attn.{one}" for one in feedforward]
        if isinstance(feedforward, list)
        else feedforward
    )
    expected = merged(model(), tmp_path, target_modules=targets, feedforward_modules=feedforward)
    with open_source(tmp_path / "adapter") as adapter:
        assert describe(adapter).kind == "IA3 of PEFT adapter"
        baked, report = bake(base(), [Ingredient(adapter)])
    before = model().state_dict()
    changed = {name for name, one in expected.items() if not torch.equal(one, before[name])}
    assert len(report.layers) == len(changed) >= 4
    for name, one in expected.items():
        torch.testing.assert_close(baked[f"diffusion_model.{name}"], one, **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_language_models_with_what_peft_adapts_of_itself(name, tmp_path) -> None:
    """GPT-2's weights are stored (in, out), `fan_in_fan_out`, and have biases."""
    torch.manual_seed(0)
    made = (
        hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2))
        if name == "gpt2"
        else hf.T5ForConditionalGeneration(hf.T5Config(**T5))
    )
    for one in made.parameters():
        nn.init.normal_(one, 0, 0.5)  # biases are zeros otherwise
    made.save_pretrained(tmp_path / "base")
    peft_model = peft.get_peft_model(made, peft.IA3Config(task_type="FEATURE_EXTRACTION"))
    torch.manual_seed(3)
    for own, one in peft_model.named_parameters():
        if "ia3_l" in own:
            nn.init.normal_(one, 1, 0.3)
    peft_model.save_pretrained(tmp_path / "adapter")
    result = peft_model.merge_and_unload()
    result.save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    with open_source(tmp_path / "base") as plain, open_source(tmp_path / "adapter") as adapter:
        baked, report = bake(plain, [Ingredient(adapter)])
        found = {plain.own_key(key): one for key, one in baked.items()}
        layers = decode(adapter).layers
        biased = sum(not layer.shape[0] < 0 for layer in layers.values()) if name == "gpt2" else 0
        assert len(report.layers) == len(layers) + biased
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, **CLOSE, msg=key)


def test_verify_finds_nothing_left(tmp_path) -> None:
    expected = merged(model(), tmp_path, target_modules=TARGETS, feedforward_modules=[])
    tuned = DictSource({f"diffusion_model.{name}": one for name, one in expected.items()})
    with open_source(tmp_path / "adapter") as adapter:
        report = verify(base(), tuned, adapter)
    assert {layer.target.rpartition(".")[2] for layer in report.layers} >= {"bias", "to_q"}
    assert all(layer.residual <= 1e-5 * layer.norm for layer in report.layers)
    assert not any(skip.norm for skip in report.skips)


def test_it_becomes_a_lora_with_the_base_where_no_bias_is_scaled(tmp_path) -> None:
    expected = merged(
        model(),
        tmp_path,
        target_modules=TARGETS,
        feedforward_modules=["attn.to_q", "conv", "space"],
    )
    with open_source(tmp_path / "adapter") as source:
        lora, _ = convert(decode(source), to="lora", base=base(), rule="64")
    assert len(lora.layers) == 4
    for target, layer in lora.layers.items():
        key = target.removeprefix("base_model.model.") + ".weight"
        weight = model().state_dict()[key] + layer.delta().reshape(expected[key].shape)
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5)


def test_what_has_no_place_is_refused_by_name(tmp_path) -> None:
    merged(model(), tmp_path, target_modules=TARGETS, feedforward_modules=[])
    with open_source(tmp_path / "adapter") as source:
        adapter = decode(source)
        with pytest.raises(UnsupportedLayerError, match=r"multiplies `.*attn\.to_q\.bias`"):
            convert(adapter, to="lora", base=base(), rule="12")
        for format in ("kohya", "comfy", "diffusers", "peft"):
            with pytest.raises(LoraOpsError):
                convert(adapter, format)
        with pytest.raises(UnsupportedLayerError, match="IA3 of PEFT"):
            compare(adapter, adapter)
        assert all(verdict.count("left") == 4 for verdict in lint(source).verdicts)


def test_gains_that_only_a_configuration_explains_need_one(tmp_path) -> None:
    merged(model(), tmp_path, target_modules=TARGETS, feedforward_modules=[])
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(held, tmp_path / "alone.safetensors")
    with (
        open_source(tmp_path / "alone.safetensors") as source,
        pytest.raises(UnsupportedLayerError, match=r"`base_model\.model\.conv`: only the config"),
    ):
        bake(base(), [Ingredient(source)])
    linear = {key: one for key, one in held.items() if one.ndim == 2}
    save_file(linear, tmp_path / "linear.safetensors")
    with open_source(tmp_path / "linear.safetensors") as source:
        baked, report = bake(base(), [Ingredient(source)])
    assert len(report.layers) == 3  # two weights and a bias
    gains = held["base_model.model.attn.to_k.ia3_l"]
    expected = model().attn.to_k.weight * gains
    torch.testing.assert_close(baked["diffusion_model.attn.to_k.weight"], expected, **CLOSE)


def test_a_pattern_that_is_not_read_is_said(tmp_path) -> None:
    merged(model(), tmp_path, target_modules=r".*to_k|conv", feedforward_modules=r".*\bconv")
    with (
        open_source(tmp_path / "adapter") as source,
        pytest.raises(FormatError, match="tells modules by the pattern"),
    ):
        bake(base(), [Ingredient(source)])
