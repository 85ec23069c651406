"""Checkpoints under diffusers' names, as diffusers' own conversions make them, read as the native ones."""

from __future__ import annotations

import re

import pytest
import torch
from keys import checkpoints, comfyui
from keys.models import MODELS

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.models.architectures import UNET, detect, parameters
from lorakit.lora_ops.models.differences import read_parameter

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
conversions = pytest.importorskip("diffusers.loaders.single_file_utils")

CONVERSIONS = {
    "flux": "flux_transformer_checkpoint",
    "flux_schnell": "flux_transformer_checkpoint",
    "flux2": "flux2_transformer_checkpoint",
    "chroma": "chroma_transformer_checkpoint",
    "hunyuan_video": "hunyuan_video_transformer",
    "wan": "wan_transformer",
    "ltxv": "ltx_transformer_checkpoint",
    "sd3": "sd3_transformer_checkpoint",
    "auraflow": "auraflow_transformer_checkpoint",
    "lumina2": "lumina2",
    "z_image": "z_image_transformer_checkpoint",
    "hidream": "hidream_transformer",
    "cosmos": "cosmos_transformer_checkpoint",
    "krea2": "krea2_transformer_checkpoint",
    "ernie": "ernie_image_transformer_checkpoint",
    "minimax_h3": "minimax_h3_transformer_checkpoint",
}
# Names of the published files, which the conversions expect; ComfyUI has others.
SCALES = (r"_norm\.weight$", "_norm.scale"), (r"(guidance_layer\.norms\.\d+)\.weight$", r"\1.scale")
HUNYUAN = (
    *((f"_{part}\\.{native}\\.", f"_{part}{published}.")
      for part, native, published in (("attn", "qkv", "_qkv"), ("attn", "proj", "_proj"),
                                      ("mod", "lin", ".linear"), ("mlp", "0", ".fc1"), ("mlp", "2", ".fc2"))),
    (r"\.modulation\.lin\.", ".modulation.linear."),
    (r"_attn\.norm\.query_norm\.", "_attn_q_norm."), (r"_attn\.norm\.key_norm\.", "_attn_k_norm."),
    (r"(single_blocks\.\d+)\.norm\.query_norm\.", r"\1.q_norm."),
    (r"(single_blocks\.\d+)\.norm\.key_norm\.", r"\1.k_norm."),
    (r"\.in_layer\.", ".mlp.0."), (r"\.out_layer\.", ".mlp.2."),
    (r"\.c_embedder\.mlp\.0\.", ".c_embedder.linear_1."), (r"\.c_embedder\.mlp\.2\.", ".c_embedder.linear_2."),
    (r"self_attn\.qkv\.", "self_attn_qkv."), (r"self_attn\.proj\.", "self_attn_proj."),
    (r"(individual_token_refiner\.blocks\.\d+)\.mlp\.0\.", r"\1.mlp.fc1."),
    (r"(individual_token_refiner\.blocks\.\d+)\.mlp\.2\.", r"\1.mlp.fc2."),
    (r"vector_in\.mlp\.0\.", "vector_in.in_layer."), (r"vector_in\.mlp\.2\.", "vector_in.out_layer."),
)  # fmt: skip
PUBLISHED = {"hunyuan_video": HUNYUAN, **dict.fromkeys(("flux", "flux_schnell", "chroma"), SCALES)}
# Computed, or without a place in diffusers' model.
DROPPED = {"rope.inv_freq"}


def published(name, key):
    for pattern, to in PUBLISHED.get(name, ()):
        key = re.sub(pattern, to, key)
    return key


def resized(name, key, shape):
    """A small shape; of the published height where a conversion counts on it."""
    if name == "krea2":
        return [size // 32 if size >= 512 else size for size in shape]
    if name == "lumina2" and key.endswith(".qkv.weight"):
        return [3840, *shape[1:]]
    if name in ("flux", "flux_schnell", "chroma", "hunyuan_video") and ".linear1." in key:
        return [21504, *shape[1:]]
    if name in ("flux", "flux_schnell") and key.startswith("final_layer.adaLN"):
        return [6144, 3072][: len(shape)]
    return shape


@pytest.fixture(scope="module")
def shapes():
    made = comfyui.ask(models={name: MODELS[name] for name in CONVERSIONS})["models"]
    # Those of ComfyUI's class without a text, and without a bias that the published model lacks.
    made["sd3"] |= {"context_embedder.weight": [64, 32], "context_embedder.bias": [64]}
    del made["flux2"]["final_layer.adaLN_modulation.1.bias"]
    return made


def numbers(shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def read(tensors):
    source = DictSource(tensors)
    return {name: read_parameter(source, one) for name, one in parameters(source).items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_diffusers_converts_is_read_back_bit_for_bit(name, shapes):
    native = numbers({key: resized(name, key, shape) for key, shape in shapes[name].items()})
    convert = getattr(conversions, f"convert_{CONVERSIONS[name]}_to_diffusers")
    options = {"config": {}} if name == "minimax_h3" else {}
    theirs = convert({published(name, key): one.clone() for key, one in native.items()}, **options)
    expected = {UNET + key: one for key, one in native.items() if key not in DROPPED}
    for prefix in ("transformer.", ""):
        source = {f"{prefix}{key}": one for key, one in theirs.items()}
        assert_same(read(source), expected)
    ours = detect(parameters(DictSource(expected)))
    assert ours is not None
    assert detect(parameters(DictSource(source))) is ours


def test_mochi():
    wide, high = 4, 6
    block = {
        **{f"mod_{stream}": (12, wide) for stream in "xy"},
        **{f"attn.qkv_{stream}": (12, wide) for stream in "xy"},
        **{f"attn.proj_{stream}": (wide, wide) for stream in "xy"},
        **{f"attn.{part}_norm_{stream}": (wide,) for stream in "xy" for part in "qk"},
        **{f"mlp_{stream}.w1": (2 * high, wide) for stream in "xy"},
        **{f"mlp_{stream}.w2": (wide, high) for stream in "xy"},
    }
    biased = ("mod_", "attn.proj_")
    made = {}
    for index in range(48):
        for key, shape in block.items():
            if index == 47 and key in ("attn.proj_y", "mlp_y.w1", "mlp_y.w2"):
                continue
            made[f"blocks.{index}.{key}.weight"] = shape
            if key.startswith(biased):
                made[f"blocks.{index}.{key}.bias"] = shape[:1]
    for key in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "t5_yproj",
                "t5_y_embedder.to_q", "t5_y_embedder.to_kv", "t5_y_embedder.to_out",
                "final_layer.mod", "final_layer.linear"):  # fmt: skip
        made |= {f"{key}.weight": (8, 5), f"{key}.bias": (8,)}
    native = numbers(made | {"pos_frequencies": (3, 2, 2)})
    convert = conversions.convert_mochi_transformer_checkpoint_to_diffusers
    theirs = convert({key: one.clone() for key, one in native.items()})
    found = read({f"transformer.{key}": one for key, one in theirs.items()})
    assert_same(found, {UNET + key: one for key, one in native.items()})


CLASSES = {
    "cogvideox": ("CogVideoXTransformer3DModel", {"num_layers": 2, "num_attention_heads": 2, "text_embed_dim": 64, "time_embed_dim": 64, "use_rotary_positional_embeddings": True}),
    "longcat": ("LongCatImageTransformer2DModel", {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64, "pooled_projection_dim": 64}),
    "ideogram4": ("Ideogram4Transformer2DModel", {"num_layers": 2}),
    "ovis": ("OvisImageTransformer2DModel", {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64}),
    "stable_audio": ("StableAudioDiTModel", {"num_layers": 2}),
    "kandinsky5": ("Kandinsky5Transformer3DModel", {"num_text_blocks": 1, "num_visual_blocks": 1}),
    "qwen_image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "pixart": ("PixArtTransformer2DModel", {"num_layers": 1, "sample_size": 128, "caption_channels": 64}),
    "hunyuan_dit": ("HunyuanDiT2DModel", {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 4, "patch_size": 2, "sample_size": 16, "cross_attention_dim": 64, "cross_attention_dim_t5": 64, "hidden_size": 128, "pooled_projection_dim": 64, "text_len": 77, "text_len_t5": 8, "use_style_cond_and_image_meta_size": False}),
}  # fmt: skip
# The null prompt of training, and a mode that is chosen by configuration.
LACKING = {
    "pixart": {"y_embedder.y_embedding"},
    "stable_audio": {"timestep_features.weight", "transformer.rotary_pos_emb.inv_freq"},
}
NORMS = [f"{part}_norm" for part in ("pre", "cross_attend", "ff")]
OWN = {
    "stable_audio": {
        "transformer.time_proj.weight",
        # Zeros in ComfyUI, which it does not read.
        *(f"transformer.layers.{index}.{norm}.beta" for index in (0, 1) for norm in NORMS),
    }
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_diffusers_class_has_its_native_name(name):
    native = set(comfyui.ask(models={name: MODELS[name]})["models"][name])
    kind, options = CLASSES[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**options)
    source = DictSource({f"transformer.{key}": one for key, one in model.state_dict().items()})
    found = {one.removeprefix(UNET) for one in parameters(source)} - OWN.get(name, set())
    assert found == native - LACKING.get(name, set())


def vae_shapes():
    width, made = 32, {"quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}

    def resnet(name, into, out):
        made.update({f"{name}.norm1": (into,), f"{name}.norm2": (out,)})
        made.update({f"{name}.conv1": (out, into, 3, 3), f"{name}.conv2": (out, out, 3, 3)})
        if into != out:
            made[f"{name}.nin_shortcut"] = (out, into, 1, 1)

    for side, top, ends in (("encoder", "down", (3, 8)), ("decoder", "up", (4, 3))):
        widths = [width, 2 * width, 2 * width]
        into, out = (width, 2 * width) if side == "encoder" else (2 * width, width)
        made[f"{side}.conv_in"] = (into, ends[0], 3, 3)
        for level in range(3) if side == "encoder" else (2, 1, 0):
            for block in range(2 if side == "encoder" else 3):
                resnet(f"{side}.{top}.{level}.block.{block}", into, widths[level])
                into = widths[level]
            if level != (2 if side == "encoder" else 0):
                made[f"{side}.{top}.{level}.{top}sample.conv"] = (into, into, 3, 3)
        for index in (1, 2):
            resnet(f"{side}.mid.block_{index}", 2 * width, 2 * width)
        made[f"{side}.mid.attn_1.norm"] = (2 * width,)
        for part in ("q", "k", "v", "proj_out"):
            made[f"{side}.mid.attn_1.{part}"] = (2 * width, 2 * width, 1, 1)
        made[f"{side}.norm_out"] = (out,)
        made[f"{side}.conv_out"] = (ends[1], out, 3, 3)
    return {
        f"{name}.{leaf}": shape if leaf == "weight" else shape[:1]
        for name, shape in made.items()
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("older", [False, True])
def test_the_vae(older):
    config = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}  # fmt: skip
    native = {f"first_stage_model.{key}": one for key, one in numbers(vae_shapes()).items()}
    theirs = conversions.convert_ldm_vae_checkpoint(dict(native), config)
    with torch.device("meta"):
        kind = diffusers.AutoencoderKL(
            layers_per_block=2, block_out_channels=(32, 64, 64), **config
        )
    assert set(theirs) == set(kind.state_dict())
    assert {key: tuple(one.shape) for key, one in theirs.items()} == {
        key: tuple(one.shape) for key, one in kind.state_dict().items()
    }
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"} if older else {}  # fmt: skip
    for new, old in names.items():
        theirs = {key.replace(f".{new}.", f".{old}."): one for key, one in theirs.items()}
    expected = read(native)
    for prefix in ("vae.", ""):
        assert_same(read({prefix + key: one for key, one in theirs.items()}), expected)


@pytest.mark.parametrize(("text", "label"), [(32, None), (24, 48)])
def test_the_unet(text, label):
    depths = [1, 1, 0] if label is None else [0, 2, 1]
    shapes = checkpoints.unet(
        text, depths, middle=2, width=32, label=label, mults=[1, 2, 2], linear=label is not None
    )
    native = numbers(shapes)
    attended = [bool(depth) for depth in depths]
    config = {
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attended],
        "up_block_types": [
            "CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attended)
        ],
        "layers_per_block": 2,
        "class_embed_type": None,
        "addition_embed_type": None if label is None else "text_time",
        "num_class_embeds": None,
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
    }
    theirs = conversions.convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": one for key, one in native.items()}, config
    )
    found = read({f"unet.{key}": one for key, one in theirs.items()})
    assert_same(found, {UNET + key: one for key, one in native.items()})


@pytest.mark.parametrize("width", [1024, 1280])
def test_openclip(width):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1,
        num_attention_heads=16, projection_dim=width,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.CLIPTextModelWithProjection(config)
    shapes = checkpoints.openclip(width, layers=1)
    native = numbers(shapes | {"token_embedding.weight": (8, width)})
    prefix = "conditioner.embedders.0.model."
    theirs = conversions.convert_open_clip_checkpoint(
        model, {prefix + key: one for key, one in native.items()}, prefix=prefix
    )
    expected = read({prefix + key: one for key, one in native.items()})
    found = read({f"text_encoder_2.{key}": one for key, one in theirs.items()})
    expected = {re.sub("clip_[hg]", "clip", key): one for key, one in expected.items()}
    found = {re.sub("clip_[hg]", "clip", key): one for key, one in found.items()}
    del expected["text_encoders.clip.logit_scale"]
    assert_same(found, expected)
