"""Language models of transformers: PEFT's adapters baked, and extracted ones that PEFT loads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorakit.lora_ops import Ingredient, bake, decode, extract, open_source, save_adapter
from lorakit.lora_ops.errors import UnsupportedLayerError
from lorakit.lora_ops.operations.convert.file import convert_file

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
hf = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)

# Both warn of what is old in each other; what counts here is made an error in `loaded`.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
}
KEYS = {"num_key_value_heads": 1}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
DISTIL = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 40}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **KEYS)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, **KEYS)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**SIZES, **KEYS, head_dim=8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, **KEYS)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, pad_token_id=0)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5 encoder": lambda: hf.T5EncoderModel(hf.T5Config(**T5)),
    "clip": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**SIZES)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt2 body": lambda: hf.GPT2Model(hf.GPT2Config(**GPT2)),
    "starcoder": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT2)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(**DISTIL)),
    "distilbert body": lambda: hf.DistilBertModel(hf.DistilBertConfig(**DISTIL)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
}
CONV1D = ["c_attn", "c_proj", "c_fc"]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
#: Names that depend on the version of transformers.
NEEDS_REFERENCE = ("clip",)


def saved(name: str, folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The base in a folder, PEFT's adapter of it in another, and what PEFT's own merge gives."""
    torch.manual_seed(0)
    base = MODELS[name]()
    base.save_pretrained(folder / "base")
    targets = CONV1D if name.startswith(("gpt2", "starcoder")) else _linears(base)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets))
    for own, one in tuned.named_parameters():
        if "lora_" in own:
            nn.init.normal_(one, 0, 0.3)
    tuned.save_pretrained(folder / "adapter")
    merged = tuned.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return base, load_file(folder / "merged" / "model.safetensors")


def _linears(model: nn.Module) -> list[str]:
    return [
        own
        for own, one in model.named_modules()
        if isinstance(one, nn.Linear) and not own.endswith(("head", "decoder", "projector", "out"))
    ]


def loaded(name: str, folder: Path) -> dict[str, Tensor]:
    """The weights of the base with an adapter of ours merged in by PEFT, which finds all its keys."""
    plain = MODELS[name]()
    plain.load_state_dict(load_file(folder / "base" / "model.safetensors"), strict=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        model = peft.PeftModel.from_pretrained(plain, folder / "ours")
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_of_peft_is_baked_as_peft_merges_it(name: str, tmp_path: Path) -> None:
    _, expected = saved(name, tmp_path)
    with open_source(tmp_path / "base") as base, open_source(tmp_path / "adapter") as adapter:
        baked, report = bake(base, [Ingredient(adapter)])
        found = {base.own_key(key): one for key, one in baked.items()}
        assert len(report.layers) == len(decode(adapter).layers)
    assert expected.keys() <= found.keys()
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, **CLOSE, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_what_is_extracted(name: str, tmp_path: Path) -> None:
    _, expected = saved(name, tmp_path)
    with open_source(tmp_path / "base") as base, open_source(tmp_path / "merged") as tuned:
        adapter, _ = extract(base, tuned, 2)
        save_adapter(adapter, tmp_path / "lora.safetensors")
    with (
        open_source(tmp_path / "lora.safetensors") as lora,
        open_source(tmp_path / "base") as base,
    ):
        if name in NEEDS_REFERENCE:
            with pytest.raises(UnsupportedLayerError, match="`reference=`"):
                convert_file(lora, tmp_path / "ours", "peft")
            assert not (tmp_path / "ours").exists()
        for reference in (base, *(() if name in NEEDS_REFERENCE else (None,))):
            report = convert_file(lora, tmp_path / "ours", "peft", reference=reference, force=True)
            assert any("`reference=`" in note for note in report.notes) == (reference is None)
            found = loaded(name, tmp_path)
            shared = expected.keys() & found.keys()  # heads may have another name in a file
            assert len(shared) >= len(expected) - 1
            for key in shared:
                torch.testing.assert_close(found[key], expected[key], **CLOSE, msg=key)


def test_a_body_takes_the_adapter_of_a_whole_model(tmp_path: Path) -> None:
    """GPT-2 is published as its body alone, without `transformer.` before the names."""
    _, expected = saved("gpt2", tmp_path)
    body = load_file(tmp_path / "base" / "model.safetensors")
    short = {key.removeprefix("transformer."): one for key, one in body.items()}
    save_file(short, tmp_path / "body.safetensors")
    with (
        open_source(tmp_path / "body.safetensors") as base,
        open_source(tmp_path / "adapter") as adapter,
    ):
        baked, _ = bake(base, [Ingredient(adapter)])
    for key, one in expected.items():
        torch.testing.assert_close(baked[key.removeprefix("transformer.")], one, **CLOSE)


def test_keys_that_the_model_does_not_have_are_not_written(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with open_source(tmp_path / "base") as base, open_source(tmp_path / "merged") as tuned:
        adapter, _ = extract(base, tuned, 2)
        save_adapter(adapter, tmp_path / "lora.safetensors")
    MODELS["gpt2"]().save_pretrained(tmp_path / "other")
    with (
        open_source(tmp_path / "lora.safetensors") as lora,
        open_source(tmp_path / "other") as other,
        pytest.raises(UnsupportedLayerError, match=r"has no module `model\.layers\.0\."),
    ):
        convert_file(lora, tmp_path / "ours", "peft", reference=other)
    assert not (tmp_path / "ours").exists()


def test_two_models_are_not_put_into_one_folder(tmp_path: Path) -> None:
    pair = {"lora_A.weight": torch.ones(1, 8), "lora_B.weight": torch.ones(8, 1)}
    names = (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    )
    save_file(
        {f"{name}.{end}": one.clone() for name in names for end, one in pair.items()},
        tmp_path / "two.safetensors",
    )
    with (
        open_source(tmp_path / "two.safetensors") as source,
        pytest.raises(UnsupportedLayerError, match="a folder of it is of one model"),
    ):
        convert_file(source, tmp_path / "ours", "peft", architecture="sd1")
