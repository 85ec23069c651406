from __future__ import annotations

import json

import pytest
from commands import KEYS
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import checkpoints, comfyui
from keys.models import MODELS as CLASSES

from lorakit.lora_ops.models.architectures import (
    ARCHITECTURES,
    detect,
    naming,
    parameters,
    recognise_layers,
    unet_names,
)

UNET = "model.diffusion_model."
BLOCKS = json.loads((KEYS / "sd15_blocks.json").read_text())


MODELS = {
    "sd1": checkpoints.sd1(),
    "sd2": checkpoints.sd2(),
    "sdxl": checkpoints.sdxl(),
    "flux": checkpoints.prefixed(UNET, checkpoints.flux()),
    "flux_schnell": checkpoints.prefixed(UNET, checkpoints.flux(guidance=False)),
    "wan": checkpoints.prefixed(UNET, checkpoints.wan()),
    "qwen_image": checkpoints.prefixed(UNET, checkpoints.qwen_image()),
}
TINY_SD1 = checkpoints.prefixed(UNET, checkpoints.unet(768, [1], blocks=1))
SMALL = checkpoints.prefixed(UNET, checkpoints.unet(32, [1, 1], width=32))


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI's answers to all that this file asks: starting it takes seconds."""
    unets = {name: getattr(checkpoints, f"{name}_unet")() for name in ("sd1", "sd2", "sdxl")}
    return comfyui.ask(
        tables={name: checkpoints.prefixed(UNET, shapes) for name, shapes in unets.items()},
        checkpoints=MODELS | {"tiny": TINY_SD1, "small": SMALL},
        models=CLASSES,
    )


def canonical(shapes):
    return parameters(checkpoints.source(shapes))


def by_key(found):
    return {one.key: one.name for one in found.values()}


def assert_complete(shapes, found):
    """Every key is there once as a whole, or in rows that cover it without gap or overlap."""
    rows = {}
    for name, one in found.items():
        assert one.name == name
        size = shapes[one.key][0] if one.rows or shapes[one.key] else 1
        start, stop = one.rows or (0, size)
        if one.rows:
            assert one.shape == (stop - start, *shapes[one.key][1:])
        else:
            stored = tuple(shapes[one.key])
            assert one.shape == (stored[::-1] if one.transposed else stored)
        rows.setdefault(one.key, []).append((start, stop, size))
    assert list(rows) == list(shapes), "a key is missing, or the order is not the source's"
    for parts in rows.values():
        starts, stops, sizes = zip(*sorted(parts), strict=True)
        assert starts == (0, *stops[:-1])
        assert stops[-1] == sizes[0]


# --- the block table of the UNet


def test_block_table_of_sd1_is_the_known_one():
    table = unet_names(checkpoints.sd1_unet())
    assert {name: table.to_diffusers(name) for name in BLOCKS} == BLOCKS
    assert {to: table.to_native(to) for to in BLOCKS.values()} == {
        to: name for name, to in BLOCKS.items()
    }


@pytest.mark.parametrize(
    "shapes",
    [
        checkpoints.sd1_unet(),
        checkpoints.sdxl_unet(),
        checkpoints.unet(768, [1], blocks=1),
        checkpoints.unet(768, [0, 1], blocks=3),
    ],
    ids=["sd1", "sdxl", "one level of one block", "three blocks a level"],
)
def test_every_name_of_a_unet_goes_to_diffusers_and_back(shapes):
    table = unet_names(shapes)
    there = {name: table.to_diffusers(name) for name in shapes}
    assert None not in there.values()
    assert len(set(there.values())) == len(shapes)
    back = unet_names(there.values())
    assert {name: back.to_native(to) for name, to in there.items()} == {
        name: name for name in shapes
    }


def test_the_layout_is_read_off_the_names():
    name = "output_blocks.1.1.transformer_blocks.0.attn1.to_q"
    tiny = unet_names(checkpoints.unet(768, [1], blocks=1))
    assert tiny.to_diffusers(name).startswith("up_blocks.0.attentions.1.")
    assert tiny.to_diffusers("input_blocks.1.0.out_layers.3") == "down_blocks.0.resnets.0.conv2"
    assert unet_names().to_diffusers("input_blocks.4.1.norm") == "down_blocks.1.attentions.0.norm"
    assert tiny.to_diffusers("input_blocks.4.1.norm") is None


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_block_table_is_that_of_comfyui(comfy, name):
    shapes = getattr(checkpoints, f"{name}_unet")()
    theirs = {to: native for to, native in comfy["tables"][name].items() if native in shapes}
    table = unet_names(shapes)
    assert {to: table.to_native(to) for to in theirs} == theirs
    ours = {native: table.to_diffusers(native) for native in shapes}
    assert all(theirs[to] == native for native, to in ours.items())


# --- canonical names


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_diffusion_model_has_one_name_whatever_the_prefix(prefix):
    found = canonical(checkpoints.prefixed(prefix, checkpoints.flux()))
    names = checkpoints.prefixed("diffusion_model.", checkpoints.flux())
    # ComfyUI's Flux calls the scales of the query and key norms weights, since February 2026.
    assert set(found) == {name.replace("_norm.scale", "_norm.weight") for name in names}
    assert {one.component for one in found.values()} == {"unet"}


def test_single_file_of_sd1():
    shapes = checkpoints.sd1()
    found = by_key(canonical(shapes))
    clip = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert found[f"cond_stage_model.transformer.{clip}"] == (
        f"text_encoders.clip_l.transformer.{clip}"
    )
    assert found["first_stage_model.quant_conv.weight"] == "vae.quant_conv.weight"
    assert found["betas"] == "other.betas"
    old = {key.replace("transformer.text_model.", "transformer."): to for key, to in found.items()}
    assert by_key(canonical({key: shapes[one] for key, one in zip(old, found, strict=True)})) == old


def test_fused_projections_of_openclip_are_three_parameters_of_one_key():
    key = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_"
    found = canonical(checkpoints.sd2())
    layer = "text_encoders.clip_h.transformer.text_model.encoder.layers.1.self_attn."
    for index, part in enumerate(("q_proj", "k_proj", "v_proj")):
        weight, bias = found[f"{layer}{part}.weight"], found[f"{layer}{part}.bias"]
        assert (weight.key, weight.shape) == (f"{key}weight", (1024, 1024))
        assert (bias.key, bias.shape) == (f"{key}bias", (1024,))
        assert weight.rows == bias.rows == (1024 * index, 1024 * (index + 1))
        assert weight.target == f"{layer}{part}"
        assert weight.component == "te"


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_text_encoders_are_called_what_comfyui_calls_them(comfy, name):
    shapes = MODELS[name]
    theirs = dict(comfy["checkpoints"][name]["clip"])
    ours = {
        one.name.removeprefix("text_encoders."): list(one.shape)
        for one in canonical(shapes).values()
        if one.component == "te"
    }
    assert ours == theirs


@pytest.mark.parametrize("build", ["sd1_unet", "sd2_unet", "sdxl_unet"])
def test_a_diffusers_unet_gets_its_own_names_back(build):
    native = getattr(checkpoints, build)()
    table = unet_names(native)
    theirs = {f"unet.{table.to_diffusers(name)}": shape for name, shape in native.items()}
    assert naming(theirs) == "diffusers"
    found = canonical(theirs)
    assert {name: one.shape for name, one in found.items()} == checkpoints.prefixed(
        "diffusion_model.", native
    )
    assert naming(found) == "native"
    bare = {key.removeprefix("unet."): shape for key, shape in theirs.items()}
    assert set(canonical(bare)) == set(found)


def test_a_diffusers_pipeline():
    t5 = {"shared.weight": (32128, 64), "encoder.block.0.layer.0.SelfAttention.q.weight": (64, 64)}
    transformer = {
        "single_transformer_blocks.0.attn.to_q.weight": (64, 64),
        "transformer_blocks.0.attn.add_q_proj.weight": (64, 64),
        "x_embedder.weight": (64, 64),
    }
    shapes = checkpoints.prefixed("transformer.", transformer)
    shapes |= checkpoints.prefixed("text_encoder.", checkpoints.clip(768))
    shapes |= checkpoints.prefixed("text_encoder_2.", t5)
    found = canonical(shapes)
    assert set(checkpoints.prefixed("transformer.", transformer)) < set(found)
    assert found["transformer.x_embedder.weight"].component == "unet"
    assert "text_encoders.t5xxl.transformer.shared.weight" in found
    assert detect(found).title == "Flux.1 schnell"
    assert naming(found) == "diffusers"


def test_names_that_are_the_same_in_diffusers_are_native():
    found = canonical(checkpoints.prefixed("transformer.", checkpoints.qwen_image()))
    assert naming(found) == "native"
    assert detect(found).name == "qwen_image"
    assert set(found) == set(checkpoints.prefixed("diffusion_model.", checkpoints.qwen_image()))


@pytest.mark.parametrize(
    ("width", "clip"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g"), (32, "clip_l")]
)
@pytest.mark.parametrize("build", [checkpoints.clip, checkpoints.openclip])
def test_a_lone_clip_is_told_by_its_width(build, width, clip):
    layer = f"text_encoders.{clip}.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert canonical(build(width))[layer].shape == (4 * width, width)


def test_openclip_and_clip_are_one_model():
    ours = canonical(checkpoints.openclip(1280))
    own = {
        "text_encoders.clip_g.transformer.text_projection.weight",
        "text_encoders.clip_g.logit_scale",
    }
    theirs = canonical(checkpoints.clip(1280))
    assert {name: one.shape for name, one in ours.items() if name not in own} == {
        name: one.shape for name, one in theirs.items()
    }


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (checkpoints.vae(), "vae.quant_conv.weight"),
        (
            {
                "shared.weight": (256384, 4096),
                "encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8),
            },
            "text_encoders.umt5xxl.transformer.shared.weight",
        ),
        (
            {"model.layers.0.self_attn.q_proj.weight": (8, 8), "model.norm.weight": (8,)},
            "text_encoders.transformer.model.norm.weight",
        ),
        ({"brand.new.0.weight": (8, 8)}, "diffusion_model.brand.new.0.weight"),
        (checkpoints.prefixed("net.", checkpoints.wan()), "diffusion_model.blocks.0.ffn.0.weight"),
    ],
    ids=["vae", "umt5", "llm", "unknown network", "wrapped"],
)
def test_lone_files_are_told_by_their_names(shapes, name):
    assert name in canonical(shapes)


def test_bare_names_are_no_model_beside_a_prefixed_one():
    found = canonical(checkpoints.prefixed(UNET, checkpoints.wan()) | {"blocks.9.weight": (8,)})
    assert "other.blocks.9.weight" in found


def test_two_keys_for_one_parameter_are_both_kept():
    found = canonical({f"{UNET}a.weight": (2, 2), "diffusion_model.a.weight": (2, 2)})
    assert set(found) == {"diffusion_model.a.weight", "other.diffusion_model.a.weight"}


PIECES = [
    "model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "model_ema.", "vae.",
    "cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.", "text_encoder.", "text_encoder_2.", "text_encoders.clip_l.",
    "first_stage_model.", "net.", "model.", "",
]  # fmt: skip
NAMES = [
    "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.0.ln_1.weight", "positional_embedding", "text_projection",
    "text_model.encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight",
    "down_blocks.0.resnets.0.conv1.weight", "conv_in.weight", "conv_norm_out.weight",
    "add_embedding.linear_1.bias", "class_embedding.linear_1.bias", "label_emb.0.0.bias",
    "input_blocks.0.0.weight", "input_blocks.3.0.op.weight", "encoder.block.0.x", "betas", "x",
    "shared.weight", "decoder.conv_in.weight", "blocks.0.attn1.to_out.0.weight",
]  # fmt: skip
KEYS = st.builds(str.__add__, st.sampled_from(PIECES), st.sampled_from(NAMES))
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@settings(deadline=None)
@given(st.dictionaries(KEYS, SHAPES))
def test_nothing_is_dropped(shapes):
    assert_complete(shapes, canonical(shapes))


@pytest.mark.parametrize("build", ["sd1", "sd2", "sdxl", "flux", "wan", "qwen_image"])
def test_nothing_of_a_checkpoint_is_dropped_or_other(build):
    shapes = getattr(checkpoints, build)()
    found = canonical(shapes)
    assert_complete(shapes, found)
    assert {name for name in found if name.startswith("other.")} <= {"other.betas"}


# --- recognition


@pytest.mark.parametrize("name", MODELS)
def test_models_are_recognised(name):
    assert detect(canonical(MODELS[name])).name == name


def test_a_tiny_sd1_is_one_and_a_small_network_of_the_same_names_is_none():
    assert detect(canonical(TINY_SD1)).name == "sd1"
    assert detect(canonical(SMALL)) is None
    assert detect({}) is None


def test_comfyui_recognises_the_same(comfy):
    assert {name: answer["class"] for name, answer in comfy["checkpoints"].items()} == {
        "sd1": "SD15",
        "sd2": "SD20",
        "sdxl": "SDXL",
        "flux": "Flux",
        "flux_schnell": "FluxSchnell",
        "wan": "WAN21_T2V",
        "qwen_image": "QwenImage",
        "tiny": "SD15",
        "small": None,
    }


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("prefix", [UNET, ""])
def test_models_of_comfyui_are_recognised(comfy, name, prefix):
    shapes = comfy["models"][name]
    found = canonical(checkpoints.prefixed(prefix, shapes))
    assert set(found) == set(checkpoints.prefixed("diffusion_model.", shapes))
    assert detect(found).name == name
    assert naming(shapes) == naming(found) == "native"


# Their weights' names are those of the one that comes first.
SAME_NAMES = {
    "flux_schnell": "flux",
    "longcat": "flux",
    "mage_flow": "qwen_image",
    "cosmos": "anima",
}


@pytest.mark.parametrize("name", CLASSES)
def test_adapters_of_models_of_comfyui_are_recognised(comfy, name):
    weights = {
        key.removesuffix(".weight").replace(".", "_"): tuple(shape)
        for key, shape in comfy["models"][name].items()
        if key.endswith(".weight") and len(shape) >= 2
    }
    found = [one.name for one in recognise_layers(weights).possible]
    assert found[0] == SAME_NAMES.get(name, name)
    assert name in found


def test_architectures_have_distinct_names_and_titles():
    assert len({one.name for one in ARCHITECTURES}) == len(ARCHITECTURES)
    assert len({one.title for one in ARCHITECTURES}) == len(ARCHITECTURES)


@pytest.mark.parametrize(
    ("module", "width", "name"),
    [
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, "sd1"),
        ("input_blocks_1_1_transformer_blocks_0_attn2_to_k", 768, "sd1"),
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024, "sd2"),
        ("input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, "sdxl"),
        ("input_blocks_4_1_transformer_blocks_1_attn1_to_q", None, "sdxl"),
        ("te2:text_model_encoder_layers_30_mlp_fc1", None, "sdxl"),
        ("double_blocks_0_img_attn_qkv", None, "flux"),
        ("single_transformer_blocks_0_attn_to_q", None, "flux"),
        ("single_transformer_blocks_0_attn_to_qkv_mlp_proj", None, "flux2"),
        ("double_blocks_0_img_mlp_fc1", None, "hunyuan_video"),
        ("blocks_0_self_attn_q", None, "wan"),
        ("blocks_0_attn1_to_q", None, "wan"),
        ("blocks_0_self_attn_q_proj", None, "anima"),
        ("transformer_blocks_0_img_mlp_net_0_proj", None, "qwen_image"),
        ("transformer_blocks_0_attn1_to_q", 2048, "ltxv"),
        ("joint_blocks_0_x_block_attn_qkv", None, "sd3"),
        ("layers_0_attention_to_q", None, "z_image"),
        ("layers_0_attention_qkv", (3840, 2304), "lumina2"),
    ],
)
def test_adapters_are_recognised_by_their_targets(module, width, name):
    shape = (
        width
        if isinstance(width, tuple) or width is None
        else (320 if "attn2_to_k" in module and width < 2048 else min(width, 2048), width)
    )
    assert recognise_layers({module: shape}).possible[0].name == name


def test_an_adapter_that_says_too_little_is_of_no_certain_architecture():
    shallow = {"down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320)}
    assert recognise_layers(shallow).certain is None
    assert {one.name for one in recognise_layers(shallow).possible} >= {"sd1", "sd2"}
    assert recognise_layers({"te1:text_model_encoder_layers_0_mlp_fc1": (3072, 768)}).possible == ()
    assert recognise_layers({"something_else": None}).possible == ()
