"""Names without dots get them back from the model's table, where no checkpoint is given."""

from __future__ import annotations

import adapters
import pytest
import torch
from commands import lorakit_here
from safetensors.torch import load_file

from lorakit.lora_ops import DictSource, add, decode
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.models.architectures import architecture_named

SD1 = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
NATIVE = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
TE = "text_encoders.{}.transformer."
T5 = "encoder.block.3.layer.1.DenseReluDense.wi_0"
LLM = "model.layers.7.self_attn.q_proj"
BERT = "bert.encoder.layer.0.attention.self.query"


def pair(module, out=6, into=768, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_up.weight": torch.randn((out, 2), generator=generator),
        f"{module}.lora_down.weight": torch.randn((2, into), generator=generator),
        f"{module}.alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize(
    ("kohya", "native", "into"),
    [
        (SD1, NATIVE, 768),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
            2048,
        ),
        (
            "lora_unet_down_blocks_0_resnets_0_conv1",
            "diffusion_model.input_blocks.1.0.in_layers.2",
            768,
        ),
        ("lora_unet_double_blocks_3_img_mlp_0", "diffusion_model.double_blocks.3.img_mlp.0", 8),
        ("lora_unet__blocks_0_cross_attn_k", "diffusion_model.blocks.0.cross_attn.k", 8),
        ("lora_unet_layers_2_attention_qkv", "diffusion_model.layers.2.attention.qkv", 8),
    ],
)
def test_a_sum_of_kohya_files_gets_native_names(kohya, native, into):
    tensors = pair(kohya, into=into)
    beside = pair(SD1, seed=5) if "down_blocks" in kohya and kohya != SD1 else {}
    one, other = (Term(decode(DictSource(tensors | beside))) for _ in range(2))
    result, _report = add([one, other], format="comfy")
    assert native in result.layers
    exact = 2 * adapters.changes(tensors)[kohya]
    assert (result.layers[native].delta(torch.float64) - exact).norm() < 1e-6 * exact.norm()


def test_the_model_can_be_named_where_names_are_of_none(tmp_path):
    module = "lora_unet_blocks_0_attn1_out_proj"
    with pytest.raises(ArgumentError, match="or its name as `architecture=`"):
        add([Term(decode(DictSource(pair(module, out=600))))], format="comfy")
    path = adapters.written(tmp_path / "lora.safetensors", pair(module, out=600))
    out = tmp_path / "out.safetensors"
    done = lorakit_here(
        *("add", path, "-o", out, "--format", "comfy", "--architecture", "hunyuan_dit")
    )
    assert done.status == 0, done.err
    assert "diffusion_model.blocks.0.attn1.out_proj.lora_B.weight" in load_file(out)
    done = lorakit_here(
        "add", path, "-o", out, "--format", "comfy", "--architecture", "sd9", "--force"
    )
    assert done.status == 2
    assert "unknown architecture `sd9`" in done.err


def test_a_checkpoint_knows_better_than_the_table():
    module = "lora_unet_layers_2_attention_qkv"
    term = Term(decode(DictSource(pair(module))))
    reference = ["diffusion_model.layers_2.attention_qkv"]
    result, _ = add([term], format="comfy", reference=reference)
    assert list(result.layers) == reference


def test_sums_in_the_format_of_the_file_need_no_table():
    result, _ = add([Term(decode(DictSource(pair("lora_unet_brand_new"))))])
    assert list(result.layers) == ["lora_unet_brand_new"]


# --- Text encoders: T5, and language models by one rule


@pytest.mark.parametrize(
    ("names", "target", "kohya"),
    [
        (
            ("lora_te2_{}", "lora_te3_{}", "text_encoder_2.{}", "text_encoder_3.{}"),
            TE.format("t5xxl") + T5,
            "lora_te3_" + T5.replace(".", "_"),
        ),
        (
            ("lora_te_{}", "lora_te4_{}", "text_encoder.{}", "text_encoder_4.{}"),
            TE.removesuffix("{}.transformer.") + f"transformer.{LLM}",
            "lora_te_" + LLM.removeprefix("model.").replace(".", "_"),
        ),
        (
            ("lora_te1_{}", "text_encoder.bert.{}"),
            TE.format("hydit_clip") + BERT,
            "lora_te1_" + BERT.removeprefix("bert.").replace(".", "_"),
        ),
    ],
)
def test_encoders_are_found_under_every_name_and_written_under_one(names, target, kohya):
    inner = next(one for one in (T5, LLM, BERT) if target.endswith(one)).removeprefix("bert.")
    for name in names:
        spelled = name.format(inner.replace(".", "_") if name.startswith("lora_") else inner)
        adapter = decode(DictSource(pair(spelled)))
        model = architecture_named("flux")
        result, _ = add([Term(adapter)], format="comfy", architecture=model)
        assert list(result.layers) == [target], spelled
        result, _ = add([Term(adapter)], format="kohya", architecture=model)
        known = name.startswith("lora_")  # a file's own name is kept
        assert list(result.layers) == [spelled if known else kohya]
