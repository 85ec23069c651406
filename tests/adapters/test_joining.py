from __future__ import annotations

import pytest
from commands import REAL
from hypothesis import given
from hypothesis import strategies as st
from keys import checkpoints
from safetensors import safe_open

from lorakit.lora_ops.adapters import formats
from lorakit.lora_ops.adapters.formats import COMFY, DIFFUSERS, FORMATS, KOHYA, PEFT, spelling_key
from lorakit.lora_ops.models.architectures import ARCHITECTURES, UNET, parameters, unet_names

KNOWN = {one.name: one for one in ARCHITECTURES}
T5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"


def targets(model):
    """All weights of a model that an adapter can change, by canonical name."""
    shapes = getattr(checkpoints, model)()
    if model in ("flux", "wan", "qwen_image"):
        shapes = checkpoints.prefixed("model.diffusion_model.", shapes)
    found = parameters(checkpoints.source(shapes)).values()
    weights = [one for one in found if one.component in ("unet", "te") and len(one.shape) > 1]
    return [one.target for one in weights] + ([T5] if model == "flux" else [])


def diffusers_names(model):
    """A UNet's targets, and what diffusers calls them: known by layout, not by our joining."""
    inside = [name.removeprefix(UNET) for name in targets(model) if name.startswith(UNET)]
    table = unet_names([f"{name}.weight" for name in inside])
    return {UNET + name: table.to_diffusers(name) for name in inside}


UNETS = ("sd1", "sd2", "sdxl")
MODELS = (*UNETS, "flux", "wan", "qwen_image")


def spellings(target, diffusers):
    """Every name that a file may have for a target of a UNet."""
    native, flat = target.removeprefix(UNET), diffusers.replace(".", "_")
    yield from (prefix + native for prefix in (UNET, "model." + UNET, "base_model.model.", ""))
    yield from (prefix + diffusers for prefix in ("unet.", "base_model.model.", ""))
    yield "unet.base_model.model." + diffusers
    yield from (prefix + flat for prefix in ("lora_unet_", "lycoris_"))
    yield from (prefix + native.replace(".", "_") for prefix in ("lora_unet_", "lora_unet__"))


def one_key_each(model, key):
    """Whether all spellings of a target have one key and no two targets share one."""
    keys = [
        {key(name) for name in spellings(target, diffusers)}
        for target, diffusers in diffusers_names(model).items()
    ]
    return all(len(one) == 1 for one in keys) and len(set.union(*keys)) == len(keys)


@pytest.mark.parametrize("model", UNETS)
def test_every_target_of_a_unet_has_one_key_in_all_spellings(model):
    assert one_key_each(model, spelling_key)
    assert not one_key_each(model, formats.flat_name), "plain names leave both schemes apart"


@pytest.mark.parametrize("model", MODELS)
def test_no_two_targets_share_a_key(model):
    names = targets(model)
    assert len({spelling_key(name) for name in names}) == len(names)


def test_upsamplers_have_one_key_wherever_they_stand():
    """Only a checkpoint tells whether an attention stands before them; a name does not."""
    names = {
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "unet.up_blocks.0.upsamplers.0.conv",
        "diffusion_model.output_blocks.2.1.conv",  # Stable Diffusion 1
        "diffusion_model.output_blocks.2.2.conv",  # XL
    }
    assert len({spelling_key(name) for name in names}) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("lora_unet_down_blocks_1_resnets_0_time_emb_proj", "lora_unet_input_blocks_4_0_emb_layers_1"),
        ("unet.add_embedding.linear_1", "unet.class_embedding.linear_1", "lora_unet_label_emb_0_0"),
        ("mid_block.attentions.0.proj_in", "diffusion_model.middle_block.1.proj_in"),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            "text_encoders.clip_h.transformer.text_model.encoder.layers.0.mlp.fc1",
            "text_encoder.encoder.layers.0.mlp.fc1",
        ),
        (
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
        ),
        (
            T5,
            T5.replace("t5xxl.", ""),
            *(f"lora_te{n}_encoder_block_0_layer_0_SelfAttention_q" for n in ("", 2, 3)),
            *(f"text_encoder{n}.encoder.block.0.layer.0.SelfAttention.q" for n in ("_2", "_3")),
        ),
        (
            "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj",
            "text_encoders.transformer.model.layers.0.mlp.up_proj",
            "lora_te_layers_0_mlp_up_proj",
            "text_encoder.model.layers.0.mlp.up_proj",
        ),
        ("lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q", "blocks.0.self_attn.q"),
        ("transformer.transformer_blocks.0.attn.to_q", "base_model.model.transformer_blocks.0.attn.to_q"),
    ],
)  # fmt: skip
def test_names_of_one_target_have_one_key(names):
    assert len({spelling_key(name) for name in names}) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_encoder_layers_0_mlp_fc1"),
        ("transformer.blocks.0.ffn.0", "transformer_2.blocks.0.ffn.0"),
        ("unet.down_blocks.1.resnets.0.conv1", "unet.down_blocks.1.resnets.0.conv2"),
        ("diffusion_model.input_blocks.1.1.proj_in", "diffusion_model.input_blocks.11.1.proj_in"),
    ],
)  # fmt: skip
def test_names_of_different_targets_stay_apart(names):
    assert len({spelling_key(name) for name in names}) == 2


def test_modules_that_would_share_a_key_keep_their_names():
    clash = ("diffusion_model.a_b.c", "diffusion_model.a.b_c")
    assert formats.spelling_keys([*clash, "diffusion_model.d.e"]) == {
        **{name: name for name in clash},
        "diffusion_model.d.e": "d_e",
    }


PIECES = st.sampled_from(["a", "b_c", "blocks", "input_blocks.1.1", "down_blocks", "0", "resnets"])


@given(st.lists(st.lists(PIECES, min_size=1, max_size=4).map(".".join), unique=True))
def test_no_module_of_a_file_is_lost_to_another(names):
    assert len(set(formats.spelling_keys(names).values())) == len(names)


@pytest.mark.parametrize("name", ["analog_svd_rank4_kohya", "lora_disney_kohya"])
def test_real_names_are_joined_with_those_of_a_checkpoint(name):
    path = REAL / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout: it is not part of the package")
    with safe_open(path, "pt") as file:
        modules = formats.modules(file.keys()).modules
    known = {spelling_key(target): target for target in targets("sd1")}
    respell = formats.respeller(COMFY, known)
    found = {module: respell(module) for module in modules}
    assert len(set(found.values()) & set(targets("sd1"))) == len(modules) == 144
    assert found == formats.resolve(modules, targets("sd1"))
    back = formats.respeller(KOHYA, architecture=KNOWN["sd1"])
    assert all(back(target) == module for module, target in found.items())


@pytest.mark.parametrize("model", ["sd1", "sd2", "sdxl", "flux"])
def test_kohya_names_are_those_that_are_written(model):
    names = [name for name in targets(model) if "embed" not in name and "text_proj" not in name]
    write = formats.module_namer(KOHYA, KNOWN[model], targets(model))
    respell = formats.respeller(KOHYA, architecture=KNOWN[model])
    assert {name: respell(name) for name in names} == {name: write(name) for name in names}


@pytest.mark.parametrize("model", UNETS)
def test_native_names_come_back_from_diffusers_ones(model):
    respell = formats.respeller(COMFY, architecture=KNOWN[model])
    there = formats.respeller(DIFFUSERS, architecture=KNOWN[model])
    for target, diffusers in diffusers_names(model).items():
        if "label_emb" not in target:  # two names for one
            assert (
                respell(f"unet.{diffusers}") == respell(f"base_model.model.{diffusers}") == target
            )
        assert there(target) == f"unet.{diffusers}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_respelled_name_has_the_same_key_and_its_format(model, format):
    respell = formats.respeller(format, architecture=KNOWN[model])
    found = {name: respell(name) for name in targets(model)}
    there = {name: other for name, other in found.items() if other is not None}
    assert all(spelling_key(name) == spelling_key(other) for name, other in there.items())
    assert all(formats.format_of(other) == format for other in there.values())
    assert len(set(there.values())) == len(there)
    assert format in (PEFT, DIFFUSERS) or len(there) == len(found)


@pytest.mark.parametrize(
    ("module", "format", "architecture", "expected"),
    [
        ("lora_unet_a_b", KOHYA, None, "lora_unet_a_b"),
        ("lora_unet_a_b", COMFY, None, None),
        ("model.diffusion_model.a.b", COMFY, None, "diffusion_model.a.b"),
        ("blocks.0.ffn.0", COMFY, None, "diffusion_model.blocks.0.ffn.0"),
        ("blocks.0.ffn.0", PEFT, None, "blocks.0.ffn.0"),
        ("diffusion_model.blocks.0.ffn.0", KOHYA, None, "lora_unet_blocks_0_ffn_0"),
        ("diffusion_model.blocks.0.ffn.0", PEFT, None, "base_model.model.blocks.0.ffn.0"),
        ("diffusion_model.blocks.0.ffn.0", DIFFUSERS, None, None),
        # A DiT of diffusers is not renamed: ComfyUI knows it by this prefix.
        ("base_model.model.transformer_blocks.0.ff", COMFY, None, "transformer.transformer_blocks.0.ff"),
        ("unet.up_blocks.0.upsamplers.0.conv", COMFY, "sd1", "diffusion_model.output_blocks.2.1.conv"),
        ("unet.up_blocks.0.upsamplers.0.conv", COMFY, "sdxl", "diffusion_model.output_blocks.2.2.conv"),
        ("down_blocks.0.attentions.0.proj_in", KOHYA, "sdxl", "lora_unet_input_blocks_1_1_proj_in"),
        ("text_encoder.encoder.layers.0.mlp.fc1", COMFY, "sd2",
         "text_encoders.clip_h.transformer.text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder_2.text_model.x", KOHYA, "sdxl", "lora_te2_text_model_x"),
        ("text_encoder.text_model.x", KOHYA, None, "lora_te1_text_model_x"),
        ("text_encoder.model.layers.0.q", KOHYA, None, "lora_te_layers_0_q"),
        ("text_encoder_2.encoder.block.0.q", COMFY, None, "text_encoders.t5xxl.transformer.encoder.block.0.q"),
        ("text_encoders.clip_l.transformer.text_model.x", DIFFUSERS, None, "text_encoder.text_model.x"),
        (T5, DIFFUSERS, None, None),
        ("text_encoder.text_model.x", PEFT, None, None),
        ("transformer_2.blocks.0.ffn", COMFY, None, None),
        ("vae.quant_conv", KOHYA, None, None),
    ],
)  # fmt: skip
def test_names_in_other_formats(module, format, architecture, expected):
    known = KNOWN[architecture] if architecture else None
    assert formats.respeller(format, architecture=known)(module) == expected


def test_the_other_file_says_how_it_spells_a_name():
    """A bare PEFT name, and an upsampler behind an attention, are known from their neighbours."""
    known = {
        spelling_key(name): name for name in ("blocks.0.q", "unet.up_blocks.0.attentions.2.proj_in")
    }
    assert formats.respeller(PEFT, known)("lora_unet_blocks_0_q") == "blocks.0.q"
    assert formats.respeller(PEFT, known)("diffusion_model.blocks.0.q") == "blocks.0.q"
    upsampler = "unet.up_blocks.0.upsamplers.0.conv"
    assert formats.respeller(COMFY, known)(upsampler) == f"{UNET}output_blocks.2.2.conv"
    assert formats.respeller(COMFY)(upsampler) == f"{UNET}output_blocks.2.1.conv"
