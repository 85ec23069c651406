"""diffusers and PEFT load what is converted for them: their own merged weights against ours."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import lora

from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.models.architectures import UNET, architecture_named, module_renames
from lorakit.lora_ops.operations.convert.file import convert_file

diffusers = pytest.importorskip("diffusers", reason="its loaders are what is asked here")
peft = pytest.importorskip("peft", reason="its loader is what is asked here")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
_AXES = {"axes_dims_rope": (4, 4, 8), "joint_attention_dim": 32, "num_single_layers": 1}
MODELS = {
    "flux": (
        "FluxTransformer2DModel",
        {**_HEADS, **_AXES, "pooled_projection_dim": 32, "guidance_embeds": True, "in_channels": 4},
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {**_HEADS, **_AXES, "axes_dims_rope": (4, 4, 4, 4), "in_channels": 4},
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {
            **_HEADS,
            **_AXES,
            "in_channels": 4,
            "approximator_num_channels": 64,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "num_layers": 2,
            "sample_size": 8,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "axes_dim_rope": (4, 2, 2),
            "cap_feat_dim": 32,
            "in_channels": 4,
        },
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        {
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 32,
            "axes_dims": (8, 4, 4),
            "in_channels": 4,
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            **_HEADS,
            "attention_head_dim": 12,
            "ffn_dim": 32,
            "text_dim": 32,
            "image_dim": 32,
            "added_kv_proj_dim": 24,
        },
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {**_HEADS, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8), "in_channels": 16},
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {
            **_HEADS,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "rope_axes_dim": (4, 4, 8),
            "text_embed_dim": 32,
            "pooled_projection_dim": 32,
            "guidance_embeds": True,
        },
    ),
    "ltxv": (
        "LTXVideoTransformer3DModel",
        {**_HEADS, "cross_attention_dim": 32, "caption_channels": 16},
    ),
    "cosmos": (
        "CosmosTransformer3DModel",
        {**_HEADS, "text_embed_dim": 32, "adaln_lora_dim": 8, "mlp_ratio": 2},
    ),
    "kandinsky5": (
        "Kandinsky5Transformer3DModel",
        {
            "model_dim": 32,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (4, 4, 8),
            "time_dim": 16,
            "in_text_dim": 32,
            "in_text_dim2": 32,
        },
    ),
    "sd1": (
        "UNet2DConditionModel",
        {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 768, "norm_num_groups": 8},
    ),
}


def built(name):
    torch.manual_seed(0)
    kind, arguments = MODELS[name]
    return getattr(diffusers, kind)(**arguments).eval()


def native_adapter(name, model):
    """A layer on each linear module of a model, fused as ComfyUI has them."""
    table = module_renames(architecture_named(name))
    weights = {
        key.removesuffix(".weight"): value.shape
        for key, value in model.state_dict().items()
        if key.endswith(".weight") and value.ndim == 2
    }
    natives = dict.fromkeys(table.find(module).native for module in weights)
    parts = []
    for native in natives:
        spread = [module for module, _ in table.foreign_parts(native)]
        rows = sum(weights[module][0] for module in spread)
        width = weights[spread[0]][1]
        parts.append(lora(UNET + native, rows, width, rank=3, alpha=1.0 + len(parts) % 3))
    return {key: tensor for part in parts for key, tensor in part.items()}, weights


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_ours(name, tmp_path):
    model = built(name)
    tensors, weights = native_adapter(name, model)
    save_file(tensors, tmp_path / "native.safetensors")
    written = {"diffusers": tmp_path / "lora.safetensors", "peft": tmp_path / "folder"}
    for format, output in written.items():
        with open_source(tmp_path / "native.safetensors") as source:
            convert_file(source, output, format, architecture=name)
    root = architecture_named(name).diffusers
    with open_source(written["diffusers"]) as source:
        layers = decode(source).layers
        exact = {m.removeprefix(root): layers[m].delta(torch.float64) for m in layers}
    assert exact.keys() == weights.keys(), "every linear module is there, under diffusers' name"
    loaded = copy.deepcopy(model)
    loaded.load_lora_adapter(load_file(written["diffusers"]), prefix=root.removesuffix("."))
    loaded.fuse_lora()
    loaded.unload_lora()
    folded = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(written["peft"]))
    before = model.state_dict()
    for after in (loaded.state_dict(), folded.merge_and_unload().state_dict()):
        assert after.keys() == before.keys()
        for key, weight in before.items():
            found = after[key].double() - weight.double()
            change = exact.get(key.removesuffix(".weight"))
            if change is None:
                assert not found.any(), key
            else:
                assert (found - change).norm() <= 1e-5 * change.norm(), key


def test_what_peft_saves_is_read(tmp_path):
    """Different ranks and alphas of a module each, as patterns of its configuration."""
    model = built("flux")
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["to_q", "proj_mlp"],
        rank_pattern={"proj_mlp": 6}, alpha_pattern={"proj_mlp": 3}, init_lora_weights=False,
    )  # fmt: skip
    trained = peft.get_peft_model(copy.deepcopy(model), config)
    trained.save_pretrained(tmp_path / "saved")
    exact = trained.merge_and_unload().state_dict()
    with open_source(tmp_path / "saved") as source:
        layers = decode(source).layers
        for module, layer in layers.items():
            key = module.removeprefix("base_model.model.") + ".weight"
            change = exact[key].double() - model.state_dict()[key].double()
            assert (layer.delta(torch.float64) - change).norm() <= 1e-5 * change.norm(), key
        assert len(layers) == 3
