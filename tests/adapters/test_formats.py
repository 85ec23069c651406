from __future__ import annotations

import re

import pytest
import torch
from commands import REAL
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import checkpoints, comfyui
from safetensors.torch import load_file

from lorakit.lora_ops.adapters import formats
from lorakit.lora_ops.adapters.formats import COMFY, KOHYA
from lorakit.lora_ops.adapters.layers import DoraLayer, FullLayer, LoraLayer
from lorakit.lora_ops.errors import (
    ArgumentError,
    LayerShapeError,
    QuantisedError,
    UnknownFormatError,
    UnsupportedLayerError,
)
from lorakit.lora_ops.models.architectures import ARCHITECTURES, parameters, unet_names
from lorakit.lora_ops.source import DictSource

KNOWN = {one.name: one for one in ARCHITECTURES}
UNET = "model.diffusion_model."
MODELS = {
    "sd1": checkpoints.sd1(),
    "sd2": checkpoints.sd2(),
    "sdxl": checkpoints.sdxl(),
    "flux": checkpoints.prefixed(UNET, checkpoints.flux()),
    "wan": checkpoints.prefixed(UNET, checkpoints.wan()),
    "tiny": checkpoints.prefixed(UNET, checkpoints.unet(768, [1], blocks=1)),
}
QUERY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def layer(out=4, into=3, kernel=(), alpha=2.0, rank=2):
    ones = tuple(1 for _ in kernel)
    return LoraLayer(torch.ones(out, rank, *ones), torch.ones(rank, into, *kernel), alpha=alpha)


def adapted(shapes):
    """Parameters of a model that an adapter of this format changes: weights, not embeddings."""
    return [
        one
        for one in parameters(checkpoints.source(shapes)).values()
        if one.component in ("unet", "te") and "embeddings." not in one.name
    ]


def loaded(shapes):
    """The names that ComfyUI gives to the parameters of a file that it has loaded."""
    return {name.replace("_norm.scale", "_norm.weight"): shape for name, shape in shapes.items()}


def encoded(format, model, full=False):
    """Shapes of an adapter for all factorisable weights of a model; with full, for all else too."""
    everything = parameters(checkpoints.source(MODELS[model]))
    architecture = KNOWN["sd1" if model == "tiny" else model]
    namer = formats.module_namer(format, architecture, everything)
    shapes, targets = {}, []
    for one in adapted(MODELS[model]):
        if format is KOHYA and one.transposed:
            continue  # kohya's networks leave the projection alone, so it has no name for it
        if len(one.shape) >= 2 and one.name.endswith(".weight"):
            new = layer(*one.shape[:2], kernel=one.shape[2:])
        elif full and not one.name.endswith("logit_scale"):
            new = FullLayer(torch.empty(one.shape, device="meta"))
        else:
            continue
        tensors = formats.encode_layer(format, namer, one.target, new)
        assert not tensors.keys() & shapes.keys()
        shapes |= {key: tuple(value.shape) for key, value in tensors.items()}
        targets.append(one.name.removeprefix("text_encoders."))
    return shapes, sorted(targets)


ADAPTERS = [
    *((COMFY, name, True) for name in MODELS),
    *((KOHYA, name, False) for name in ("sd1", "sd2", "sdxl", "flux", "tiny")),
]


@pytest.fixture(scope="module")
def comfy():
    """What ComfyUI would patch with each adapter: starting it takes seconds."""
    asked = {
        f"{format.name} {name}": (loaded(MODELS[name]), encoded(format, name, full)[0])
        for format, name, full in ADAPTERS
    }
    return comfyui.ask(adapters=asked)["adapters"]


@pytest.mark.parametrize(("format", "name", "full"), ADAPTERS)
def test_comfyui_loads_every_tensor_that_we_write_onto_its_weight(comfy, format, name, full):
    answer = comfy[f"{format.name} {name}"]
    assert answer["left"] == []
    assert answer["patched"] == encoded(format, name, full)[1]


def test_kohya_names_of_each_architecture():
    def name(architecture, target):
        return formats.module_namer(KOHYA, KNOWN[architecture])(target)

    unet, te = "diffusion_model.", "text_encoders.clip_l.transformer.text_model.encoder.layers.0."
    big = te.replace("clip_l", "clip_g")
    assert name("sd1", QUERY) == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    )
    assert name("sdxl", f"{unet}input_blocks.4.1.proj_in") == "lora_unet_input_blocks_4_1_proj_in"
    assert name("flux", f"{unet}double_blocks.0.img_attn.qkv") == (
        "lora_unet_double_blocks_0_img_attn_qkv"
    )
    assert name("sd1", f"{te}mlp.fc1") == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert name("sd2", f"{te}mlp.fc1".replace("clip_l", "clip_h")) == (
        "lora_te_text_model_encoder_layers_0_mlp_fc1"
    )
    assert name("sdxl", f"{te}mlp.fc1") == "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    assert name("sdxl", f"{big}mlp.fc1") == "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    assert name("flux", t5) == "lora_te3_encoder_block_0_layer_0_SelfAttention_q"


@pytest.mark.parametrize("architecture", [None, KNOWN["wan"]])
def test_kohya_is_not_offered_for_the_rest(architecture):
    with pytest.raises(ArgumentError, match=r"only for .*Flux.1.*; use format `comfy`"):
        formats.module_namer(KOHYA, architecture)


@pytest.mark.parametrize(
    "target",
    [
        "diffusion_model.brand.new",
        "vae.quant_conv",
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    ],
)
def test_kohya_has_no_name_for_what_its_loaders_do_not_know(target):
    with pytest.raises(UnsupportedLayerError, match="use format `comfy`") as caught:
        formats.module_namer(KOHYA, KNOWN["sd1"])(target)
    assert caught.value.target == target


def test_comfy_refuses_what_belongs_to_no_part_of_a_model():
    with pytest.raises(UnsupportedLayerError, match=r"no place for `other\.betas`"):
        formats.module_namer(COMFY)("other.betas")
    assert formats.module_namer(COMFY)("vae.quant_conv") == "vae.quant_conv"


def test_only_some_formats_are_written():
    assert formats.writable("comfy") is COMFY
    for name in ("peft", "nonsense"):
        with pytest.raises(ArgumentError, match="choose one of kohya, comfy"):
            formats.writable(name)


def test_a_layer_becomes_tensors():
    namer = formats.module_namer(COMFY)
    conv = layer(out=8, into=4, kernel=(3, 3), alpha=0.5)
    tensors = formats.encode_layer(COMFY, namer, QUERY, conv)
    assert tensors[f"{QUERY}.lora_B.weight"] is conv.up
    assert tensors[f"{QUERY}.lora_A.weight"] is conv.down
    alpha = tensors[f"{QUERY}.alpha"]
    assert (alpha.shape, alpha.dtype, alpha.item()) == ((), torch.float32, 0.5)
    assert len(tensors) == 3


def test_a_layer_without_alpha_gets_its_rank_only_where_tools_need_one():
    plain = layer(alpha=None, rank=2)
    kohya = formats.module_namer(KOHYA, KNOWN["sdxl"])
    assert len(formats.encode_layer(COMFY, formats.module_namer(COMFY), QUERY, plain)) == 2
    written = formats.encode_layer(KOHYA, kohya, QUERY, plain)
    assert written[f"{kohya(QUERY)}.alpha"].item() == 2


def test_tucker_and_dora_are_written_as_comfyui_reads_them():
    ones = torch.ones
    mid = LoraLayer(ones(4, 2, 1, 1), ones(2, 3, 1, 1), 2.0, mid=ones(2, 2, 3, 3))
    written = formats.encode_layer(COMFY, formats.module_namer(COMFY), QUERY, mid)
    assert set(written) == {
        f"{QUERY}.{role}"
        for role in ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha")
    }
    dora = DoraLayer(LoraLayer(ones(4, 2), ones(2, 3)), ones(4, 1))
    written = formats.encode_layer(COMFY, formats.module_namer(COMFY), QUERY, dora)
    assert f"{QUERY}.dora_scale" in written


def test_kohya_has_no_place_for_full_differences():
    assert COMFY.holds_full
    assert not KOHYA.holds_full
    namer = formats.module_namer(KOHYA, KNOWN["sdxl"])
    with pytest.raises(UnsupportedLayerError, match="no place for the full difference"):
        formats.encode_layer(KOHYA, namer, QUERY, FullLayer(torch.ones(3)))


# --- reading

PAIRS = [
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora_B", ".lora_A"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
]


@pytest.mark.parametrize(("up", "down"), PAIRS)
@pytest.mark.parametrize("module", ["lora_unet_mid_block_0_to_q", "unet.mid.to_q", QUERY])
def test_every_spelling_of_a_pair_is_read(module, up, down):
    tensors = {
        module + up: torch.full((4, 2), 3.0),
        module + down: torch.full((2, 5), 0.5),
        f"{module}.alpha": torch.tensor([1], dtype=torch.int64),
    }
    found = formats.modules(tensors)
    assert list(found.modules) == [module]
    assert found.extras == ()
    read = formats.read_kind(DictSource(tensors), module, found.modules[module])
    assert isinstance(read, LoraLayer)
    assert (read.rank, read.alpha) == (2, 1.0)
    assert torch.equal(read.delta(), torch.full((4, 5), 1.5))


SUFFIXES = [suffix for pair in PAIRS for suffix in pair] + [
    ".alpha", ".dora_scale", ".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight", ".hada_w1_a",
    ".lokr_w1", ".a1.weight", ".oft_blocks", ".lora_A.bias", ".weight", ".bias", "", ".lora_mid.weight",
    ".reshape_weight", ".lora_magnitude_vector", ".bias.diff", ".lora_B.bias", ".rescale",
]  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(
        st.builds(str.__add__, st.sampled_from(["a", "b.c"]), st.sampled_from(SUFFIXES)),
        unique=True,
    )
)
def test_every_key_is_in_one_module_or_in_the_extras(keys):
    found = formats.modules(keys)
    listed = [key for module in found.modules.values() for key in module.keys.values()]
    assert sorted([*listed, *found.extras]) == sorted(keys)


@pytest.mark.parametrize(
    ("key", "format"),
    [
        ("lora_unet_x.lora_up.weight", "kohya"),
        ("lora_te1_x.hada_w1_a", "kohya"),
        ("lycoris_x.lokr_w1", "kohya"),
        ("diffusion_model.x.lora_A.weight", "comfy"),
        ("text_encoders.clip_l.transformer.x.lora_A.weight", "comfy"),
        ("base_model.model.x.lora_A.weight", "peft"),
        ("blocks.0.self_attn.q.lora_A.default.weight", "peft"),
        ("transformer.x.lora_A.weight", "diffusers"),
        ("text_encoder_2.text_model.x.lora_linear_layer.up.weight", "diffusers"),
        ("down_blocks.0.attn1.processor.to_q_lora.up.weight", "diffusers"),
    ],
)
def test_formats_are_told_by_their_prefixes(key, format):
    assert formats.detect([key, "lora_unet_left.over", "emb_params"]) == format


def test_a_file_of_no_format_says_what_is_in_it():
    with pytest.raises(UnknownFormatError) as caught:
        formats.detect(["emb_params", "other"], "style.safetensors")
    assert str(caught.value) == (
        "style.safetensors: none of 2 keys belongs to a known adapter format "
        "(kohya, comfy, peft, diffusers); the first is `emb_params`"
    )


@pytest.mark.parametrize(
    ("roles", "error", "text"),
    [
        ({"lora_up.weight": (4, 2)}, LayerShapeError, "layer `m` has no down factor"),
        (
            {"lora_up.weight": (4, 2), "lora_down.weight": (3, 5)},
            LayerShapeError,
            r"layer `m`: up is \(4, 2\) and down is \(3, 5\): their ranks, 2 and 3, differ",
        ),
        (
            {"lora_up.weight": (4, 2), "lora_down.weight": (2, 5), "alpha": (2,)},
            LayerShapeError,
            r"alpha `m.alpha` is \(2,\)",
        ),
        ({"hada_w1_a": (4, 2)}, LayerShapeError, "layer `m` has no w1_b factor, only `m.hada_w1_a`"),
        ({"lora_up.weight": (4, 2), "lora_down.weight": (2, 5), "diff": (4, 5)}, UnsupportedLayerError, "mixed"),
        ({"oft_diag": (2, 4, 4)}, UnsupportedLayerError, "kind OFT with `m.oft_diag`"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_read_say_why(roles, error, text):
    tensors = {f"m.{role}": torch.ones(shape) for role, shape in roles.items()}
    module = formats.modules(tensors).modules["m"]
    with pytest.raises(error, match=text) as caught:
        formats.read_kind(DictSource(tensors, name="a.safetensors"), "m", module)
    assert str(caught.value.path) == "a.safetensors"


def test_factors_of_integers_are_not_read_as_numbers():
    tensors = {
        "m.lora_up.weight": torch.ones(4, 2, dtype=torch.int8),
        "m.lora_down.weight": torch.ones(2, 4, dtype=torch.int8),
    }
    module = formats.modules(tensors).modules["m"]
    with pytest.raises(QuantisedError, match=r"torch\.int8"):
        formats.read_kind(DictSource(tensors), "m", module)


SD1_TARGETS = [one.target for one in adapted(MODELS["sd1"])]


@pytest.mark.parametrize(
    "name",
    [
        QUERY,
        QUERY.removeprefix("diffusion_model."),
        "model." + QUERY,
        "base_model.model." + QUERY,
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
    ],
)
def test_a_target_is_found_under_each_of_its_names(name):
    assert formats.resolve([name], SD1_TARGETS) == {name: QUERY}
    assert formats.resolve([f"{name}.bias"], SD1_TARGETS) == {f"{name}.bias": f"{QUERY}.bias"}


def test_processors_of_old_diffusers_have_no_number_behind_to_out():
    target = QUERY.replace("to_q", "to_out.0")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out"
    assert formats.resolve([name], SD1_TARGETS) == {name: target}


def test_double_underscores_and_second_encoders():
    wan = [one.target for one in adapted(MODELS["wan"])]
    assert formats.resolve(["lora_unet__blocks_0_ffn_0", "nothing"], wan) == {
        "lora_unet__blocks_0_ffn_0": "diffusion_model.blocks.0.ffn.0"
    }
    xl = [one.target for one in adapted(MODELS["sdxl"])]
    inner = "text_model.encoder.layers.0.mlp.fc1"
    flat = inner.replace(".", "_")
    names = [f"lora_te1_{flat}", f"lora_te2_{flat}", f"text_encoder_2.{inner}"]
    found = formats.resolve(names, xl)
    assert [found[name].split(".")[1] for name in names] == ["clip_l", "clip_g", "clip_g"]


def test_encoders_that_are_no_clip_go_without_their_name():
    target = "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj"
    names = [target.replace("qwen25_7b.", ""), "lora_te_layers_0_mlp_up_proj"]
    assert formats.resolve(names, [target]) == dict.fromkeys(names, target)
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    names = ["lora_te3_encoder_block_0_layer_0_SelfAttention_q", t5.replace("t5xxl.", "")]
    assert formats.resolve(names, [t5]) == dict.fromkeys(names, t5)


def test_targets_with_the_names_of_diffusers_are_found():
    target = "transformer.transformer_blocks.0.attn.to_q"
    inner = target.removeprefix("transformer.")
    names = [
        target,
        inner,
        f"base_model.model.{inner}",
        "lora_transformer_" + inner.replace(".", "_"),
    ]
    assert formats.resolve(names, [target]) == dict.fromkeys(names, target)


def test_a_name_of_two_targets_is_nobodys():
    targets = ["diffusion_model.a_b.c", "diffusion_model.a.b_c", "diffusion_model.d.e"]
    assert formats.resolve(["lora_unet_a_b_c", "lora_unet_d_e"], targets) == {
        "lora_unet_d_e": "diffusion_model.d.e"
    }


def test_an_adapter_is_decoded_layer_by_layer():
    namer = formats.module_namer(KOHYA, KNOWN["sd1"], SD1_TARGETS)
    tensors = formats.encode_layer(KOHYA, namer, QUERY, layer(alpha=1.0))
    tensors |= {"lora_unet_odd.hada_w1_a": torch.ones(2, 2), "bundle_emb.x": torch.ones(1)}
    source = DictSource(tensors, {"ss_network_dim": "2"})
    adapter = formats.decode(source, SD1_TARGETS)
    assert list(adapter.layers) == [QUERY, "lora_unet_odd"]
    assert (adapter.format, adapter.metadata) == ("kohya", {"ss_network_dim": "2"})
    assert adapter.layers[QUERY].scale == 0.5
    assert dict(adapter.extras) == {"bundle_emb.x": tensors["bundle_emb.x"]}
    with pytest.raises(LayerShapeError, match="`lora_unet_odd` has no w1_b factor"):
        adapter.layers["lora_unet_odd"]
    assert len(formats.decode(source).layers) == 2


def test_two_modules_for_one_target_are_both_kept():
    tensors = {}
    for module in ("lora_unet_a_b", "diffusion_model.a.b"):
        tensors |= {f"{module}.lora_up.weight": torch.ones(2, 1)}
        tensors |= {f"{module}.lora_down.weight": torch.ones(1, 2)}
    adapter = formats.decode(DictSource(tensors), ["diffusion_model.a.b"])
    assert set(adapter.layers) == {"lora_unet_a_b", "diffusion_model.a.b"}


@pytest.mark.parametrize("name", ["analog_svd_rank4_kohya", "lora_disney_kohya"])
def test_real_adapters_come_back_under_their_own_names(name):
    path = REAL / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout: it is not part of the package")
    tensors = load_file(path)
    adapter = formats.decode(DictSource(tensors), SD1_TARGETS)
    assert len(adapter.layers) == 144
    assert set(adapter.layers) <= set(SD1_TARGETS)
    assert not adapter.extras
    namer = formats.module_namer(KOHYA, KNOWN["sd1"], SD1_TARGETS)
    again = {}
    for target, one in adapter.layers.items():
        again |= formats.encode_layer(KOHYA, namer, target, one)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_module_names_are_flattened_alike_in_every_format():
    names = unet_names()
    inner = names.to_diffusers(QUERY.removeprefix("diffusion_model."))
    flat = inner.replace(".", "_")
    assert {formats.flat_name(prefix + inner) for prefix in ("", "unet.", "base_model.model.")} == {
        flat
    }
    assert formats.flat_name(f"lora_unet_{flat}") == flat
    assert formats.flat_name("text_encoder_2.a.b") == formats.flat_name("lora_te2_a_b") == "te2:a_b"
    assert formats.component("lora_te2_a_b") == "te"
    assert formats.component(QUERY) == "unet"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "", "transformer."])
def test_a_checkpoint_is_called_one(prefix):
    keys = checkpoints.prefixed(prefix, checkpoints.flux())
    words = (
        f"flux.safetensors: is a checkpoint or a part of one, with {len(keys)} weights, not a LoRA"
    )
    with pytest.raises(UnknownFormatError, match=re.escape(words)):
        formats.detect(keys, "flux.safetensors")


def test_ema_weights_are_called_by_their_name():
    unet = checkpoints.sd1_unet()
    ema = {"model_ema.diffusion_model" + key.replace(".", ""): shape for key, shape in unet.items()}
    words = "is a set of EMA weights alone (`model_ema.…`), not a LoRA"
    with pytest.raises(UnknownFormatError, match=re.escape(words)):
        formats.detect([*ema, "model_ema.decay"], "ema.ckpt")
    both = [*ema, *checkpoints.prefixed("model.diffusion_model.", unet)]
    with pytest.raises(UnknownFormatError, match="is a checkpoint"):
        formats.detect(both, "both.ckpt")
