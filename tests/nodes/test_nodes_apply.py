"""Apply LoRA against ComfyUI's own loader, in its process: every architecture, format and kind."""

from __future__ import annotations

import functools

import comfy_host
import pytest
import torch
from keys.models import HOSTED
from kinds import WEIGHTS, kinds, weight
from safetensors.torch import load_file, save_file
from test_renames import adapter_of, tensors_of
from tiny_flux import FORMATS, SHAPES, numbers

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters import formats
from lorakit.lora_ops.errors import UnsupportedLayerError
from lorakit.lora_ops.models.architectures import architecture_named
from lorakit.lora_ops.operations.convert.convert import convert

UNET = "diffusion_model."
NAMES = ("comfy", "kohya", "diffusers", "peft")
# Formats that ComfyUI's loader knows nothing of, or not all, by architecture; ours loads them.
ALONE = {
    "diffusers": (
        *("hunyuan_video", "wan", "ltxv", "lumina2", "cosmos", "anima"),
        *("ideogram4", "cogvideox"),
    ),
    "peft": tuple(name for name in HOSTED if name not in ("sd3", "pixart", "hunyuan_dit")),
}


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture
def apply(host, tmp_path):
    """What both loaders make of adapters, by name; with the weights that ours makes."""

    def ask(model, adapters, metadata=None, **question):
        files = {}
        for index, (name, tensors) in enumerate(adapters.items()):
            files[name] = str(tmp_path / f"{index}.safetensors")
            save_file({k: v.contiguous() for k, v in tensors.items()}, files[name], metadata)
        answers = host.ask("nodes_apply", {"model": model, "files": files, **question})
        for name, answer in answers.items():
            if "error" not in answer:
                assert answer["untouched"], name
                assert answer["gathered"], name
                assert answer["whole"], name
                made = load_file(f"{files[name]}.weights")
                answer["weights"] = {key.removeprefix("ours "): one for key, one in made.items()}
        return answers

    return ask


@pytest.fixture
def small(apply, tmp_path):
    """The same for one adapter and a model of given weights; the answer, and what was changed."""

    def ask(weights, tensors, **question):
        path = str(tmp_path / "model.safetensors")
        save_file(weights, path)
        return apply({"weights": path}, {"lora": tensors}, **question)["lora"]

    return ask


def error(found, exact):
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())


# --- Architectures and formats


@pytest.mark.parametrize("name", HOSTED)
def test_every_format_changes_what_it_should_and_as_comfyui_does(host, apply, name):
    hosted = HOSTED[name]
    question, architecture = hosted.question(), architecture_named(hosted.architecture)
    shapes = host.ask("lora_names", {**question, "files": {}})["shapes"]
    adapter = adapter_of(hosted.architecture, shapes, hosted.unread)
    files = {}
    for format in NAMES:
        try:
            files[format] = tensors_of(convert(adapter, format, architecture=architecture)[0])
        except UnsupportedLayerError:
            assert format == "diffusers", "it has no name for some layers"
    answers = apply(question, files)
    for format, answer in answers.items():
        assert answer["failed"] == [], format
        count = sum(key.endswith((".lora_A.weight", ".lora_down.weight")) for key in files[format])
        assert answer["report"].startswith(
            f"done · file.safetensors: {count} of {count} layers applied"
        )
        assert answer["ours"] == sorted(f"{target}.weight" for target in adapter.layers), format
        assert answer["same"] == answer["core"], format
        assert (len(answer["core"]) < len(answer["ours"])) == (name in ALONE.get(format, ())), (
            format
        )
        for key, made in answer["weights"].items():
            assert error(made, answers["comfy"]["weights"][key]) < 1e-5, (format, key)


# --- Kinds

CASES = {f"{form}/{name}": (form, name) for form in WEIGHTS for name in kinds(form)}
CORES = ("lora, Tucker", "loha, Tucker", "lokr whole, Tucker", "lokr thin, Tucker")
# What ComfyUI fails on, gets wrong or overlooks; docs/kinds.md. There ours makes what is meant.
OURS = {
    *(f"conv3d/{name}" for name in CORES),
    *("conv3d/lokr whole, whole", "conv3d/lokr thin, whole"),
    *("conv3x3/lokr whole, Tucker", "conv3x3/lokr thin, Tucker"),
    *(case for case in CASES if case.endswith("of PEFT")),
}


def read(tensors):
    named = {f"m.{suffix}": tensor for suffix, tensor in tensors.items()}
    return formats.read_kind(DictSource(named), "m", formats.modules(named).modules["m"])


@pytest.fixture(scope="module")
def kinds_applied(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    path = str(folder / "model.safetensors")
    save_file({f"{form}.weight": weight(form) for form in WEIGHTS}, path)

    @functools.cache
    def ask(strength):
        files = {}
        for index, (case, (form, name)) in enumerate(CASES.items()):
            tensors = {f"{UNET}{form}.{end}": one for end, one in kinds(form)[name].items()}
            files[case] = str(folder / f"{index}.safetensors")
            save_file(tensors, files[case])
        question = {"model": {"weights": path}, "files": files, "strengths": [strength, 1.0]}
        answers = host.ask("nodes_apply", question)
        return answers, {case: f"{file}.weights" for case, file in files.items()}

    return ask


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_every_kind_is_what_comfyui_makes_of_it_or_what_is_meant(kinds_applied, strength):
    answers, files = kinds_applied(strength)
    differing = set()
    for case, (form, name) in CASES.items():
        answer, key = answers[case], f"{UNET}{form}.weight"
        if name.startswith("ia3"):
            assert "1 layer: ComfyUI has no patch for IA3; bake it instead" in answer["error"]
            continue
        assert answer["ours"] == [key], case
        assert answer["failed"] == [], case
        assert answer["gathered"], case
        assert answer["untouched"], case
        if answer["same"] == [key]:
            continue
        differing.add(case)
        base = weight(form)
        change = read(kinds(form)[name]).change(base, strength, torch.float64, "comfy")
        assert error(load_file(files[case])[f"ours {key}"], base.double() + change) < 1e-5, case
    # Where a build of PyTorch takes what it is given, a core is no difference.
    assert OURS - {case for case in OURS if "conv3x3/" in case} <= differing <= OURS


def test_a_boft_without_alpha_has_no_bound(small):
    blocks = kinds("linear")["boft"]["oft_blocks"]
    answer = small({"m.weight": weight("linear")}, {f"{UNET}m.oft_blocks": blocks})
    exact = weight("linear") + read({"oft_blocks": blocks}).change(weight("linear"))
    assert answer["same"] == [], "twin: ComfyUI leaves the weight as it is"
    assert error(answer["weights"][f"{UNET}m.weight"], exact) < 1e-5


# --- What is in a file beside plain layers


def pair(name, out=8, into=6, seed=0, ends=(".lora_up.weight", ".lora_down.weight")):
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator) for shape in ((out, 2), (2, into)))
    return {name + ends[0]: up, name + ends[1]: down}


LAYERS = {f"blocks.{i}.{part}.weight": torch.zeros(8, 6) for i in range(3) for part in "qk"}
LAYERS |= {"blocks.0.q.bias": torch.zeros(8), "norm.weight": torch.ones(8)}
LAYERS |= {"norm.bias": torch.zeros(8), "table": torch.zeros(2, 3)}
Q, K = (f"{UNET}blocks.0.{part}" for part in "qk")
FLAT_Q = "lora_unet_blocks_0_q"


def product(tensors, name, scale=1.0):
    return scale * tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]


def test_differences_of_any_parameter(small):
    tensors = {
        f"{Q}.diff_b": torch.arange(8.0),
        f"{UNET}norm.w_norm": torch.full((8,), 0.5),
        f"{UNET}norm.b_norm": torch.full((8,), 0.25),
        f"{UNET}table.diff": torch.ones(2, 3),
        f"{K}.set_weight": torch.full((8, 6), 7.0),
        f"{UNET}blocks.1.k.diff": torch.ones(8, 6, 1, 1),
    }
    answer = small(LAYERS, tensors)
    assert answer["report"].startswith("done · file.safetensors: 6 of 6 layers applied")
    assert len(answer["ours"]) == 6
    alone = f"{UNET}blocks.1.k.weight"  # of another shape, with the same numbers
    assert set(answer["ours"]) - set(answer["same"]) == {alone}
    assert torch.equal(answer["weights"][alone], torch.ones(8, 6))


def test_of_two_names_for_one_weight_the_same_one_holds(small):
    tensors = pair(Q, seed=1) | pair(FLAT_Q, seed=2)
    answer = small(LAYERS, tensors)
    assert answer["same"] == answer["ours"] == answer["core"] == [f"{Q}.weight"]
    assert torch.equal(answer["weights"][f"{Q}.weight"], product(tensors, Q))
    assert answer["report"].splitlines() == [
        "warning · file.safetensors: 1 of 2 layers applied (1 weight of the model at 1)",
        f"! 1 layer replaced, as two change one weight: `{FLAT_Q} by {Q}`",
    ]


def test_of_two_names_for_one_weight_one_that_fits_holds(small):
    tensors = pair(Q, into=5) | pair(FLAT_Q)
    answer = small(LAYERS, tensors)
    assert torch.equal(answer["weights"][f"{Q}.weight"], product(tensors, FLAT_Q))
    assert (
        "! 1 layer not applied: changes a weight of shape 8x5, this model's is 8x6"
        in (answer["report"])
    )


def test_a_full_difference_beside_a_lora_replaces_it(small):
    answer = small(LAYERS, pair(Q) | {f"{Q}.diff": torch.ones(8, 6)})
    assert answer["same"] == answer["ours"] == [f"{Q}.weight"]
    assert torch.equal(answer["weights"][f"{Q}.weight"], torch.ones(8, 6))
    assert f"`{Q} by its full difference`" in answer["report"]


def test_what_does_not_match_is_told_and_the_rest_applied(small):
    tensors = {
        **pair(Q),
        **pair(f"{UNET}blocks.7.q"),
        **pair(K, out=9),
        f"{UNET}odd.tensor": torch.ones(1),
        **pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
        f"{UNET}blocks.2.q.lora_up.weight": torch.ones(8, 2),
        **{key: one.to(torch.int8) for key, one in pair(f"{UNET}blocks.2.k").items()},
    }
    answer = small(LAYERS, tensors)
    assert answer["ours"] == [f"{Q}.weight"]
    assert answer["core"] == [], "half a pair ends ComfyUI's loader with a KeyError"
    assert torch.equal(answer["weights"][f"{Q}.weight"], product(tensors, Q))
    lines = answer["report"].splitlines()
    assert (
        lines[0] == "warning · file.safetensors: 1 of 6 layers applied (1 weight of the model at 1)"
    )
    told = "\n".join(lines[1:])
    for words in (
        "the model has no weight of this name: `diffusion_model.blocks.7.q`",
        "changes a weight of shape 9x6, this model's is 8x6: `diffusion_model.blocks.0.k`",
        "1 tensor of no known layer not applied: `diffusion_model.odd.tensor`",
        "for a text encoder, and no CLIP is connected: `lora_te_text",
        "cannot be read",
    ):
        assert words in told


def test_nothing_that_matches_is_an_error(small):
    for tensors, words in (
        (pair(f"{UNET}mystery.9"), "1 layer: the model has no weight of this name"),
        (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "no CLIP is connected"),
        (pair(f"{UNET}mystery.0", out=7), "changes a weight of shape 7x6, this model's is 8x6"),
    ):
        found = small(LAYERS | {"mystery.0.weight": torch.zeros(8, 6)}, tensors)["error"]
        assert found.startswith("MismatchError: nothing of `file.safetensors` fits this model")
        assert words in found


def test_a_checkpoint_is_refused_as_one(small):
    found = small(LAYERS, {f"{UNET}{name}": one for name, one in LAYERS.items()})["error"]
    assert found.startswith("UnknownFormatError")


ENCODERS = {
    "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 6),
    "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.bias": (8,),
}
TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


def test_text_encoders_have_a_strength_of_their_own(small):
    tensors = pair(Q) | pair(TEXT, seed=3) | {f"{TEXT}.diff_b": torch.ones(8)}
    answer = small(LAYERS, tensors, encoders=ENCODERS, strengths=[0.5, -2.0])
    assert answer["same"] == answer["ours"] == answer["core"]
    assert len(answer["ours"]) == 3
    (key, bias) = ENCODERS
    assert error(answer["weights"][key], product(tensors, TEXT, -2.0)) < 1e-6
    assert torch.equal(answer["weights"][bias], torch.full((8,), -2.0))
    assert "(1 weight of the model at 0.5, 2 weights of CLIP at -2)" in answer["report"]


def test_strengths_by_block(small):
    tensors = {k: v for i in range(3) for k, v in pair(f"{UNET}blocks.{i}.q", seed=i).items()}
    rules = {"where": "*blocks.1.*=0.25\n*blocks.2.*=0"}
    answer = small(LAYERS, tensors, strengths=[2.0, 1.0], options=rules)
    assert answer["ours"] == [f"{UNET}blocks.{i}.q.weight" for i in range(2)]
    assert answer["same"] == [f"{UNET}blocks.0.q.weight"]
    layer = f"{UNET}blocks.1.q"
    assert error(answer["weights"][f"{layer}.weight"], product(tensors, layer, 0.5)) < 1e-6
    assert (
        "strengths by block: 1 in B00 (1 layer); 0.25 in B01 (1 layer); 0 in B02 (1 layer)"
        in answer["report"]
    )
    wrong = small(LAYERS, tensors, options={"where": "nowhere=1"})
    assert wrong["error"].startswith("ArgumentError: `nowhere` fits none of 3 layers")


def test_adapters_stack_and_carry_their_metadata(small):
    tensors = pair(Q)
    answer = small(LAYERS, tensors, times=3, metadata={"ss_output_name": "a name"})
    assert answer["same"] == answer["ours"] == [f"{Q}.weight"]
    assert error(answer["weights"][f"{Q}.weight"], product(tensors, Q, 3.0)) < 1e-6
    assert answer["metadata"] == {"ss_output_name": "a name"}


@pytest.mark.parametrize(
    "ends",
    [(".lora_B.default", ".lora_A.default"), (".lora_B", ".lora_A"), ("_lora.up.weight", "_lora.down.weight")],
)  # fmt: skip
def test_every_spelling_of_a_pair(small, ends):
    tensors = pair(Q, ends=ends)
    answer = small(LAYERS, tensors)
    up, down = tensors.values()
    assert torch.equal(answer["weights"][f"{Q}.weight"], up @ down)
    assert (answer["core"] == []) == (ends[0] == ".lora_B.default")


def test_the_scale_in_a_configuration_of_peft_counts(small):
    """ComfyUI does not look there."""
    tensors = pair(Q, ends=(".lora_B.weight", ".lora_A.weight"))
    config = {"lora_adapter_metadata": '{"lora_alpha": 6, "r": 2}'}
    answer = small(LAYERS, tensors, metadata=config)
    up, down = tensors.values()
    assert error(answer["weights"][f"{Q}.weight"], 3 * up @ down) < 1e-6
    assert answer["same"] == []


def test_rows_of_a_fused_projection_and_of_its_bias(apply):
    """ComfyUI makes a key that nothing has of the bias."""
    name = "transformer.transformer_blocks.0.attn.to_k"
    tensors = pair(name, 128, 128) | {f"{name}.diff_b": torch.ones(128)}
    answer = apply(HOSTED["flux"].question(), {"lora": tensors})["lora"]
    root = f"{UNET}double_blocks.0.img_attn.qkv"
    assert answer["ours"] == [f"{root}.bias", f"{root}.weight"]
    assert answer["same"] == answer["core"] == [f"{root}.weight"]
    plain = apply(HOSTED["flux"].question(), {"lora": {f"{root}.diff_b": torch.zeros(384)}})["lora"]
    change = answer["weights"][f"{root}.bias"] - plain["weights"][f"{root}.bias"]
    expected = torch.cat([torch.zeros(128), torch.ones(128), torch.zeros(128)])
    assert error(change, expected) < 1e-6


def test_a_control_lora_of_flux_lets_a_weight_grow(apply):
    """Black Forest Labs' own names, which ComfyUI rewrites first; the input takes twice the channels."""
    tensors = pair("img_in", 128, 128, ends=(".lora_B.weight", ".lora_A.weight"))
    tensors |= {"img_in.lora_B.bias": torch.ones(128)}
    tensors |= {"single_blocks.0.norm.key_norm.scale": torch.full((128,), 2.0)}
    answer = apply(HOSTED["flux"].question(), {"lora": tensors})["lora"]
    assert answer["same"] == answer["ours"] == answer["core"]
    assert len(answer["ours"]) == 3
    assert answer["weights"][f"{UNET}img_in.weight"].shape == (128, 128)


def test_a_weight_that_grew_takes_only_what_fits_it_then(apply):
    grown = f"{UNET}img_in"
    first = pair(grown, 128, 128) | {f"{grown}.reshape_weight": torch.tensor([128, 128])}
    twice = apply(HOSTED["flux"].question(), {"lora": first}, times=2)["lora"]
    assert twice["same"] == twice["ours"] == [f"{grown}.weight"]
    small = first | {f"{grown}.reshape_weight": torch.tensor([64, 64])}
    small |= pair(grown, 64, 64)
    refused = apply(HOSTED["flux"].question(), {"lora": small})["lora"]
    assert "cannot grow to (64, 64)" in refused["error"]


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_bases(apply, tmp_path, format):
    path = str(tmp_path / "base.safetensors")
    save_file(numbers(1), path)
    names = ("double_blocks.0.img_mlp.2", "single_blocks.0.linear1")
    tensors = {
        k: v for name in names for k, v in pair(UNET + name, *SHAPES[f"{name}.weight"]).items()
    }
    answer = apply({"weights": path, "format": format}, {"lora": tensors})["lora"]
    assert answer["same"] == answer["ours"] == answer["core"]
    assert answer["report"].startswith("done · file.safetensors: 2 of 2 layers applied")
