"""Adapters of programs that named things their own way: read, and written under names of today."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import adapters
import comfy_host
import pytest
import torch
from commands import KEYS, REAL, lorakit_here
from keys.models import HOSTED
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, decode, describe, open_source
from lorakit.lora_ops.adapters.formats import model_names
from lorakit.lora_ops.adapters.layers import FullLayer, ReplacementLayer, ReshapedLayer
from lorakit.lora_ops.errors import FormatError, UnsupportedLayerError
from lorakit.lora_ops.files import RenamedSource
from lorakit.lora_ops.models.architectures import architecture_named
from lorakit.lora_ops.operations.convert.convert import convert

# Number, kohya's name, out and in: the order of example_loras/lora_disney.safetensors of
# cloneofsimo/lora, found by the numbers in it, which kohya's names came with in another file.
UNET_ORDER = json.loads((KEYS / "cloneofsimo_unet.json").read_text("utf-8"))
# As transformers builds CLIP's attention.
CLIP_ORDER = [
    f"lora_te_text_model_encoder_layers_{layer}_self_attn_{part}_proj"
    for layer in range(12)
    for part in ("k", "v", "q", "out")
]
CLASSES = ["CrossAttention", "Attention", "GEGLU"]
# What the trainer calls its extended form trains the residual blocks, too: 22 of three layers and
# 14 shortcuts.
EXTENDED = 144 + 22 * 3 + 14


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def numbered(order, part):
    """A file of the trainer: up and down of each layer under its number."""
    found = {}
    for number, (_, out, into) in enumerate(order):
        found[f"{part}:{number}:up"] = randn(out, 2, seed=number)
        found[f"{part}:{number}:down"] = randn(2, into, seed=1000 + number)
    return found


def trained(path, unet=UNET_ORDER, classes=CLASSES):
    tensors = numbered(unet, "unet") | numbered([(n, 768, 768) for n in CLIP_ORDER], "text_encoder")
    tensors["<s1>"] = randn(768, seed=7)
    metadata = {"unet": json.dumps(classes), "text_encoder": '["CLIPAttention"]', "<s1>": "<embed>"}
    metadata |= {f"unet:{number}:rank": "2" for number in range(len(unet))}
    return adapters.written(path, tensors, metadata | {"note": "kept"}), tensors


def test_numbers_are_the_layers_that_the_trainer_numbered(tmp_path):
    path, tensors = trained(tmp_path / "lora.safetensors")
    with open_source(path) as source:
        adapter = decode(source)
        assert len(adapter.layers) == 144 + 48
        for part, names in (("unet", [n for n, _, _ in UNET_ORDER]), ("text_encoder", CLIP_ORDER)):
            for number, name in enumerate(names):
                layer = adapter.layers[name]
                assert torch.equal(layer.up, tensors[f"{part}:{number}:up"]), name
                assert torch.equal(layer.down, tensors[f"{part}:{number}:down"]), name
                assert layer.scale == 1
        assert torch.equal(adapter.extras["<s1>"], tensors["<s1>"])
        assert source.metadata == {"<s1>": "<embed>", "note": "kept"}


def test_without_the_gated_layers_the_numbers_move(tmp_path):
    """The faulty variant: one order for whatever was trained."""
    fewer = [one for one in UNET_ORDER if not one[0].endswith("ff_net_0_proj")]
    path, tensors = trained(tmp_path / "lora.safetensors", fewer, ["CrossAttention"])
    with open_source(path) as source:
        layers = decode(source).layers
        for number, (name, _, _) in enumerate(fewer):
            assert torch.equal(layers[name].up, tensors[f"unet:{number}:up"]), name
        assert fewer[4] != UNET_ORDER[4]


def test_the_order_of_later_versions_is_told_by_the_sizes(tmp_path):
    """In later versions of diffusers the gated layer is the last of its block."""
    later = []
    for start in range(0, len(UNET_ORDER), 9):
        block = UNET_ORDER[start : start + 9]
        later += [*block[:4], *block[5:], block[4]]
    path, tensors = trained(tmp_path / "lora.safetensors", later)
    with open_source(path) as source:
        layers = decode(source).layers
        for number, (name, _, _) in enumerate(later):
            assert torch.equal(layers[name].up, tensors[f"unet:{number}:up"]), name


def test_residual_blocks_stand_behind_the_attention_of_their_level(tmp_path):
    # Transformers of nine layers, the fifth of which is gated, and layers of residual blocks.
    levels = [(2, 6), (2, 7), (2, 7), (0, 6), (0, 12), (3, 12), (3, 12), (3, 12), (1, 6)]
    order = [
        ("", 64 if place % 9 == 4 and place < 9 * transformers else 8, 8)
        for transformers, residual in levels
        for place in range(9 * transformers + residual)
    ]
    assert len(order) == EXTENDED
    tensors = numbered(order, "unet")
    metadata = {"unet": json.dumps([*CLASSES, "ResnetBlock2D"])}
    path = adapters.written(tmp_path / "lora.safetensors", tensors, metadata)
    with open_source(path) as source:
        held = dict(decode(source).layers.items())
    by_number = {
        number: name
        for name, layer in held.items()
        for number in range(EXTENDED)
        if torch.equal(layer.up, tensors[f"unet:{number}:up"])
    }
    assert len(held) == EXTENDED
    assert by_number[17].endswith("down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0")
    assert by_number[18] == "lora_unet_down_blocks_0_resnets_0_conv1"
    first_of_second = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert by_number[24] == first_of_second
    assert by_number[24 + 18 + 3] == "lora_unet_down_blocks_1_resnets_0_conv_shortcut"
    assert by_number[EXTENDED - 1] == "lora_unet_mid_block_resnets_1_conv2"
    known = model_names(architecture_named("sd1"))
    assert all(known.place(name) is not None for name in held)


@pytest.mark.parametrize(("part", "count"), [("unet", 144), ("unet", 128), ("text_encoder", 48)])
def test_a_list_in_a_pt_file_is_of_the_unet_or_of_clip(part, count, tmp_path):
    order = [one for one in UNET_ORDER if count == 144 or "ff_net" not in one[0]]
    if part == "text_encoder":
        order = [(name, 768, 768) for name in CLIP_ORDER]
    tensors = numbered(order, part)
    listed = [tensors[f"{part}:{n}:{factor}"] for n in range(count) for factor in ("up", "down")]
    torch.save(listed, tmp_path / "lora.pt")
    with open_source(tmp_path / "lora.pt") as source:
        layers = decode(source).layers
        assert len(layers) == count
        for number, (name, _, _) in enumerate(order):
            assert torch.equal(layers[name].up, tensors[f"{part}:{number}:up"]), name
        info = describe(source, source.spelling)
        assert (info.kind, info.format) == ("LoRA adapter", "kohya")
        assert info.spelling == "cloneofsimo's trainer"


def test_numbers_of_no_known_model_are_refused(tmp_path):
    path = adapters.written(tmp_path / "lora.safetensors", numbered(UNET_ORDER[:7], "unet"))
    with pytest.raises(
        FormatError, match="its 7 layers of `unet` have numbers for names"
    ) as caught:
        open_source(path)
    assert str(caught.value).startswith(str(path))
    torn = numbered(UNET_ORDER, "unet")
    del torn["unet:3:up"]
    with pytest.raises(FormatError, match="1 of its 144 numbered layers of `unet` lack a half"):
        open_source(adapters.written(path, torn))


def test_a_numbered_file_is_edited_like_any(tmp_path):
    path, tensors = trained(tmp_path / "lora.safetensors")
    small = tmp_path / "small.safetensors"
    done = lorakit_here("resize", path, "-o", small, "--rank", "1", "--device", "cpu")
    assert done.status == 0, done.err
    written = load_file(small)
    assert torch.equal(written["<s1>"], tensors["<s1>"])
    up = written[f"{UNET_ORDER[5][0]}.lora_up.weight"].double()
    down = written[f"{UNET_ORDER[5][0]}.lora_down.weight"].double()
    dense = tensors["unet:5:up"].double() @ tensors["unet:5:down"].double()
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    scale = (
        float(written[f"{UNET_ORDER[5][0]}.alpha"]) if f"{UNET_ORDER[5][0]}.alpha" in written else 1
    )
    best = s[0] * u[:, :1] @ vh[:1]
    assert (scale * up @ down - best).norm() < 1e-5 * best.norm()
    with open_source(small) as source:
        assert not any(key.endswith(":rank") for key in source.metadata)


@pytest.mark.parametrize("name", ["lora_disney_kohya", "analog_svd_rank4_kohya"])
def test_a_real_file_is_the_one_that_kohyas_names_were_given_to(name, tmp_path):
    """Its numbers by the order noted: the same layers as the file with names."""
    if not (REAL / f"{name}.safetensors").is_file():
        pytest.skip(f"{name} is not beside the checkout: it is not part of the package")
    known = load_file(REAL / f"{name}.safetensors")
    tensors = {
        f"unet:{number}:{factor}": known[f"{module}.lora_{factor}.weight"]
        for number, (module, _, _) in enumerate(UNET_ORDER)
        for factor in ("up", "down")
    }
    with open_source(adapters.written(tmp_path / "lora.safetensors", tensors)) as source:
        found = {key: source.tensor(key) for key in source.keys()}  # noqa: SIM118
    assert found.keys() == {key for key in known if not key.endswith(".alpha")}
    assert all(torch.equal(tensor, known[key]) for key, tensor in found.items())


# --- Flux: XLabs, USO, Black Forest Labs


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture(scope="module")
def flux(host):
    """A Flux of as many blocks as the real one, which ComfyUI knows such files by, but narrow."""
    hosted = replace(
        HOSTED["flux"],
        arguments={**HOSTED["flux"].arguments, "depth": 19, "depth_single_blocks": 38},
    )
    question = hosted.question()
    return question, host.ask("lora_names", {**question, "files": {}})["shapes"]


def processors(shapes, prefix=""):
    """XLabs' names of the attention of each block."""
    parts = {}
    for name, shape in shapes.items():
        block, _, rest = name.partition(".img_attn.qkv.weight")
        if name.startswith("double_blocks.") and not rest and block != name:
            height, width = shape
            for number in (1, 2):
                parts[f"{block}.processor.qkv_lora{number}"] = (height, width)
                parts[f"{block}.processor.proj_lora{number}"] = (width, width)
        block, _, rest = name.partition(".linear2.weight")
        if name.startswith("single_blocks.") and not rest and block != name:
            width, into = shape
            parts[f"{block}.processor.qkv_lora"] = (3 * width, width)
            parts[f"{block}.processor.proj_lora"] = (width, into)
    found = {}
    for number, (name, (out, into)) in enumerate(parts.items()):
        found[f"{prefix}{name}.up.weight"] = randn(out, 2, seed=number)
        found[f"{prefix}{name}.down.weight"] = randn(2, into, seed=1000 + number)
    return found


def control(shapes):
    """What Black Forest Labs wrote: every linear with a bias, norms to be replaced, a wider input."""
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        module = name.removesuffix(".weight")
        if name.endswith("_norm.weight"):
            found[f"{module}.scale"] = randn(*shape, seed=number)
        elif name.endswith(".weight") and len(shape) == 2:
            into = shape[1] * (2 if module == "img_in" else 1)
            found[f"{module}.lora_B.weight"] = randn(shape[0], 2, seed=number)
            found[f"{module}.lora_A.weight"] = randn(2, into, seed=1000 + number)
            found[f"{module}.lora_B.bias"] = randn(shape[0], seed=2000 + number)
    return found


FILES = {"xlabs": processors, "control": control}


@pytest.mark.parametrize("name", FILES)
def test_comfyui_makes_the_same_of_the_file_as_of_ours(name, host, flux, tmp_path):
    """Its own conversion of the file, and our output in its format, change the same weights alike."""
    question, shapes = flux
    theirs = tmp_path / "theirs.safetensors"
    save_file(FILES[name](shapes), theirs)
    ours = tmp_path / "ours.safetensors"
    done = lorakit_here("convert", theirs, "-o", ours, "--format", "comfy")
    assert done.status == 0, done.err
    paths = {str(one): [str(one), str(one.with_suffix(".out"))] for one in (theirs, ours)}
    answer = host.ask("lora_names", {**question, "files": paths})
    assert answer["left"] == {path: [] for path in paths}
    changed = [load_file(out) for _, out in paths.values()]
    assert changed[0].keys() == changed[1].keys()
    for key, change in changed[0].items():
        assert change.any(), key
        assert (changed[1][key] - change).norm() <= 1e-5 * change.norm(), key


def test_processors_are_rows_of_the_fused_projections(tmp_path):
    shapes = {
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "single_blocks.3.linear2.weight": (3072, 15360),
    }
    tensors = processors(shapes, "diffusion_model.")
    with open_source(adapters.written(tmp_path / "lora.safetensors", tensors)) as source:
        adapter = decode(source)
        assert source.spelling == "XLabs"
        assert isinstance(source, RenamedSource)
        diffusers, _ = convert(adapter, "diffusers")
        single = "transformer.single_transformer_blocks.3."
        fused = tensors["diffusion_model.single_blocks.3.processor.qkv_lora.up.weight"]
        assert torch.equal(diffusers.layers[f"{single}attn.to_k"].up, fused[3072:6144])
        added = diffusers.layers["transformer.transformer_blocks.0.attn.add_q_proj"].up
        text = tensors["diffusion_model.double_blocks.0.processor.qkv_lora2.up.weight"]
        assert torch.equal(added, text[:3072])


@pytest.mark.filterwarnings("ignore")  # theirs
def test_diffusers_cuts_them_alike(tmp_path):
    conversions = pytest.importorskip(
        "diffusers.loaders.lora_conversion_utils", reason="its conversion is what is asked here"
    )
    shapes = {
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "single_blocks.3.linear2.weight": (3072, 15360),
    }
    theirs = conversions._convert_xlabs_flux_lora_to_diffusers(processors(shapes))
    with open_source(adapters.written(tmp_path / "lora.safetensors", processors(shapes))) as source:
        ours, _ = convert(decode(source), "diffusers")
    assert {key.rpartition(".lora_")[0] for key in theirs} == set(ours.layers)
    for module, layer in ours.layers.items():
        assert torch.equal(layer.up, theirs[f"{module}.lora_B.weight"]), module
        assert torch.equal(layer.down, theirs[f"{module}.lora_A.weight"]), module


def test_control_loras_widen_the_input(tmp_path):
    shapes = {
        "img_in.weight": (48, 64),
        "double_blocks.0.img_attn.qkv.weight": (144, 48),
        "double_blocks.0.img_attn.norm.key_norm.weight": (16,),
    }
    tensors = control(shapes)
    with open_source(adapters.written(tmp_path / "lora.safetensors", tensors)) as source:
        layers = decode(source).layers
        wider = layers["diffusion_model.img_in"]
        assert isinstance(wider, ReshapedLayer)
        assert wider.size == (48, 128)
        bias = layers["diffusion_model.img_in.bias"]
        assert isinstance(bias, FullLayer)
        assert torch.equal(bias.diff, tensors["img_in.lora_B.bias"])
        norm = layers["diffusion_model.double_blocks.0.img_attn.norm.key_norm"]
        assert isinstance(norm, ReplacementLayer)


# --- diffusers before 0.22: layers of attention processors, and `lora_linear_layer`


def test_processors_of_old_diffusers_are_the_layers_that_kohya_names(tmp_path):
    block = "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
    encoder = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"
    modules = {
        f"unet.{block}.processor.to_k_lora": f"{block}.to_k",
        f"unet.{block}.processor.to_out_lora": f"{block}.to_out.0",
        f"unet.{block.replace('attn2', 'attn1')}.to_k.lora_linear_layer": f"{block.replace('attn2', 'attn1')}.to_k",
        f"{encoder}.lora_linear_layer": encoder.removeprefix("text_encoder."),
    }
    tensors = {
        f"{module}.{factor}.weight": randn(*shape, seed=index)
        for index, module in enumerate(modules)
        for factor, shape in (
            ("up", (320, 2)),
            ("down", (2, 768 if "attn2.processor.to_k" in module else 320)),
        )
    }
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    out = tmp_path / "out.safetensors"
    done = lorakit_here(
        "convert", tmp_path / "pytorch_lora_weights.bin", "-o", out, "--format", "kohya"
    )
    assert done.status == 0, done.err
    written = load_file(out)
    assert len(written) == 3 * len(modules)
    for module, native in modules.items():
        prefix = "lora_te_" if module == f"{encoder}.lora_linear_layer" else "lora_unet_"
        name = prefix + native.replace(".", "_")
        assert torch.equal(written[f"{name}.lora_up.weight"], tensors[f"{module}.up.weight"])
        assert written[f"{name}.alpha"] == 2


# --- Biases that PEFT gives an up (`lora_bias`)


def biased(module="base_model.model.a", rank=4):
    return {
        f"{module}.lora_A.weight": randn(rank, 6, seed=1),
        f"{module}.lora_B.weight": randn(8, rank, seed=2),
        f"{module}.lora_B.bias": randn(8, seed=3),
    }


@pytest.mark.parametrize(
    ("config", "alpha", "scale"),
    [
        ({}, None, 1.0),
        ({"r": 4, "lora_alpha": 2}, None, 0.5),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, None, 2 / math.sqrt(4)),
        ({}, 6.0, 1.5),
    ],
)
def test_the_bias_of_an_up_counts_times_the_scale(config, alpha, scale):
    tensors = biased()
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else {}
    if alpha is not None:
        tensors["base_model.model.a.alpha"] = torch.tensor(alpha)
    layers = adapters.read(tensors, metadata).layers
    assert layers["base_model.model.a"].scale == pytest.approx(scale)
    exact = scale * tensors["base_model.model.a.lora_B.bias"].double()
    assert torch.allclose(layers["base_model.model.a.bias"].diff.double(), exact, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_peft_adds_the_bias_so(tmp_path):
    peft = pytest.importorskip("peft", reason="its own merged weights are what is asked here")
    model = torch.nn.Sequential()
    model.add_module("a", torch.nn.Linear(6, 8))
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["a"], lora_bias=True, init_lora_weights=False
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = peft.get_peft_model(model, config)
    torch.nn.init.normal_(wrapped.base_model.model.a.lora_B["default"].bias)
    wrapped.save_pretrained(tmp_path / "saved")
    after = wrapped.merge_and_unload().state_dict()
    with open_source(tmp_path / "saved") as source:
        layers = decode(source).layers
        for key, name in (("a.weight", "a"), ("a.bias", "a.bias")):
            change = (after[key] - before[key]).double()
            ours = layers[f"base_model.model.{name}"].delta(torch.float64)
            assert (ours - change).norm() <= 1e-5 * change.norm(), key


def test_it_keeps_its_key_where_peft_reads_it_and_gets_another_where_alpha_would_count_twice():
    peft = adapters.read(biased())
    assert peft.keys["base_model.model.a.bias"]["diff"] == "base_model.model.a.lora_B.bias"
    comfy = adapters.read(biased("diffusion_model.a"))
    assert comfy.keys["diffusion_model.a.bias"]["diff"] == "diffusion_model.a.diff_b"


# --- Methods that are not read


@pytest.mark.parametrize(
    ("suffix", "title"),
    [
        ("lambda_layer", "T-LoRA of LyCORIS 4"),
        ("hra_u.my-own", "HRA"),
        ("oft_embedding_R.default.weight", "OFT of an embedding"),
        ("vblora_logits_A", "VB-LoRA"),
        ("c3a_kernel", "C3A"),
    ],
)
def test_layers_of_other_methods_are_called_by_their_name(suffix, title):
    """Beside a LoRA they would be lost without a word, or read as something else."""
    tensors = biased() | {f"base_model.model.b.{suffix}": torch.ones(8, 1)}
    with pytest.raises(
        UnsupportedLayerError, match=f"a layer of {title}, which is not read; merge"
    ):
        adapters.read(tensors)
    info = describe(DictSource(tensors))
    assert info.kind == f"LoRA adapter with {title}"
    alone = describe(DictSource({f"base_model.model.b.{suffix}": torch.ones(8, 1)}))
    assert alone.kind == f"adapter: {title}"
