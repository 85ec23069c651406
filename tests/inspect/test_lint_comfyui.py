"""lint's verdict for ComfyUI against the real one, key by key."""

from __future__ import annotations

import itertools
from dataclasses import replace

import comfy_host
import kinds
import pytest
import torch
from keys import checkpoints
from keys.models import HOSTED
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.inspect.lint import PROGRAMS, lint
from lorakit.lora_ops.inspect.lint.programs import Scheme
from lorakit.lora_ops.models.architectures import architecture_named, module_renames

UNETS = {"sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl"}
PREFIXES = (
    *("diffusion_model.", "model.diffusion_model.", "transformer.", "unet.", ""),
    *("base_model.model.", "unet.base_model.model.", "base_model.model.diffusion_model."),
)
FLAT = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "lora_prior_unet_")
CLIP = (
    *(f"text_model.encoder.layers.0.self_attn.{part}_proj" for part in ("q", "out")),
    *(f"text_model.encoder.layers.1.mlp.{part}" for part in ("fc1", "fc2")),
)
T5 = "encoder.block.0.layer.0.SelfAttention.q"
PAIRS = (
    *((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight")),
    *((".lora_B.default.weight", ".lora_A.default.weight"), (".lora_B", ".lora_A")),
    *((".lora.up.weight", ".lora.down.weight"), ("_lora.up.weight", "_lora.down.weight")),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default", ".lora_A.default"),
)


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


def encoders_of(name):
    """The weights of the text encoders that go with a model, as ComfyUI calls them."""
    clips = {"sd1": ("clip_l",), "sd2": ("clip_h",)}.get(name, ("clip_l", "clip_g"))
    clips = ("clip_l",) if name.startswith("flux") else clips
    keys = [f"{clip}.transformer.{layer}.weight" for clip in clips for layer in CLIP]
    t5 = [f"t5xxl.transformer.{T5}.weight"] if name.startswith(("flux", "sd3")) else []
    return keys + t5


def pair(module, out, into, ends=PAIRS[1]):
    up, down = ends
    return {module + up: torch.ones(out, 1), module + down: torch.ones(1, into)}


def spellings(name, shapes):
    """Files by title: every layer of a model under every prefix, by each of its names."""
    table = module_renames(architecture_named(name))
    natives = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2
    }
    foreign = {}
    for native, (out, into) in natives.items():
        for module, at in table.foreign_parts(native):
            foreign[module] = (int(out * (at.stop - at.start)), into)
    processor = {
        module.replace(".to_", ".processor.to_").removesuffix(
            ".0" if ".to_" in module else "!"
        ): sizes
        for module, sizes in foreign.items()
    }
    for title, modules in (("native", natives), ("foreign", foreign), ("processor", processor)):
        for prefix in (*PREFIXES, *FLAT):
            tensors = {}
            for module, sizes in modules.items():
                inner = module.replace(".", "_") if prefix in FLAT else module
                tensors |= pair(prefix + inner, *sizes)
            yield f"{title} {prefix}", tensors


def agree(host, question, files, folder, architecture=None):
    """Compare what ComfyUI and lint leave out of some files; what lint cannot say is returned, too."""
    paths = {}
    for number, (title, tensors) in enumerate(files.items()):
        paths[title] = str(folder / f"{number}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, paths[title])
    answer = host.ask("unloaded_keys", {**question, "files": paths})
    wrong, open_ = {}, {}
    for title, tensors in files.items():
        source = DictSource(tensors)
        (found,) = lint(source, ["comfy"], architecture=architecture, headers_only=True).verdicts
        theirs = answer["left"][title]
        if isinstance(theirs, str) or found.refused:
            if not (isinstance(theirs, str) and found.refused):
                wrong[title] = (theirs, found.refused)
            continue
        unsure = [module for module, read in found.reads.items() if read.state == "perhaps"]
        perhaps = {key for key in tensors if key.startswith(tuple(unsure))}
        differing = set(found.left) ^ (set(theirs) - perhaps)
        if differing:
            wrong[title] = sorted(differing)
        if perhaps:
            open_[title] = sorted(perhaps)
    return wrong, open_


@pytest.mark.parametrize("name", HOSTED)
def test_names_of_every_architecture(host, name, tmp_path):
    question = {**HOSTED[name].question(), "encoders": encoders_of(name)}
    shapes = host.ask("lora_names", {**HOSTED[name].question(), "files": {}})["shapes"]
    files = dict(spellings(HOSTED[name].architecture, shapes))
    # So small that their sizes tell none of a family from another.
    wrong, unsure = agree(host, question, files, tmp_path, HOSTED[name].architecture)
    assert wrong == {}
    assert not [title for title in unsure if title.startswith("native")]


@pytest.mark.parametrize("name", UNETS)
def test_names_of_a_unet(host, name, tmp_path):
    shapes = getattr(checkpoints, name)()
    prefix = "model.diffusion_model."
    unet = {
        key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)
    }
    question = {"checkpoint": shapes, "encoders": encoders_of(name)}
    # One of three is enough of so many alike.
    linear = [key for key, shape in unet.items() if len(shape) == 2]
    files = dict(spellings(name, {key: unet[key] for key in linear[::3]}))
    wrong, unsure = agree(host, question, files, tmp_path)
    assert wrong == {}
    assert not [title for title in unsure if title.startswith("native")]


def small(name):
    """The question for a model, and one layer of its own, whose name tells the model."""
    if name not in HOSTED:
        shapes = getattr(checkpoints, name)()
        block = "input_blocks.4.1.transformer_blocks.0"
        width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[name]
        mark = pair(f"diffusion_model.{block}.attn2.to_k", 640, width)
        return {"checkpoint": shapes, "encoders": encoders_of(name)}, mark, f"{block}.ff.net.2"
    mark = pair("diffusion_model.double_blocks.0.img_attn.qkv", 384, 128)
    question = {**HOSTED[name].question(), "encoders": encoders_of(name)}
    return question, mark, "double_blocks.0.img_mlp.2"


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "flux"])
def test_names_of_text_encoders(host, name, tmp_path):
    question, mark, _ = small(name)
    files = {}
    # A second CLIP makes a file one of SDXL.
    second = () if name in ("sd1", "sd2") else ("lora_te2_", "text_encoder_2.")
    flat = ("lora_te_", "lora_te1_", *second[:1], "lora_te3_", "lora_prior_te_")
    for prefix in flat:
        names = [prefix + layer.replace(".", "_") for layer in (*CLIP, T5, "text_projection")]
        files[prefix] = mark | {k: t for one in names for k, t in pair(one, 8, 8).items()}
    for prefix in ("text_encoder.", *second[1:], "text_encoder_3."):
        names = [prefix + layer for layer in (*CLIP, T5)]
        files[prefix] = mark | {k: t for one in names for k, t in pair(one, 8, 8).items()}
    own = [key.removesuffix(".weight") for key in encoders_of(name)]
    files["own"] = mark | {
        k: t for one in own for k, t in pair(f"text_encoders.{one}", 8, 8).items()
    }
    wrong, unsure = agree(host, question, files, tmp_path)
    # CLIPs of tests have no projection of the text.
    wrong = {t: [k for k in keys if "text_projection" not in k] for t, keys in wrong.items()}
    assert not any(wrong.values()), wrong
    assert unsure == {}


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_every_kind_and_every_ending(host, name, tmp_path):
    question, mark, inner = small(name)
    module = f"diffusion_model.{inner}"
    files = {f"{up} {down}": mark | pair(module, 8, 6, (up, down)) for up, down in PAIRS}
    for kind, tensors in kinds.kinds("linear").items():
        files[kind] = mark | {f"{module}.{suffix}": one for suffix, one in tensors.items()}
    files["lora with mid"] = (
        mark | pair(module, 8, 6, PAIRS[0]) | {f"{module}.lora_mid.weight": torch.ones(1, 1, 3, 3)}
    )
    files["mid of another spelling"] = (
        mark | pair(module, 8, 6) | {f"{module}.lora_mid.weight": torch.ones(1, 1, 3, 3)}
    )
    files["bias"] = mark | pair(module, 8, 6) | {f"{module}.diff_b": torch.ones(8)}
    files["bias of a pair"] = mark | pair(module, 8, 6) | {f"{module}.lora_B.bias": torch.ones(8)}
    files["norms"] = mark | {f"{module}.w_norm": torch.ones(8), f"{module}.b_norm": torch.ones(8)}
    files["more"] = mark | {"bundle_emb.word.string_to_param.*": torch.ones(1, 8)}
    files["both"] = mark | pair(module, 8, 6) | {f"{module}.diff": torch.ones(8, 6)}
    wrong, unsure = agree(host, question, files, tmp_path)
    # It calls an alpha loaded even where the layer is not.
    besides = (".alpha", ".dora_scale")
    wrong = {
        title: [key for key in keys if not key.endswith(besides)] for title, keys in wrong.items()
    }
    assert not any(wrong.values()), wrong
    assert unsure == {}


def test_what_is_broken(host, tmp_path):
    question, mark, inner = small("flux")
    module = f"diffusion_model.{inner}"
    whole = pair(module, 8, 6) | {f"{module}.alpha": torch.tensor(1.0)}
    loha = kinds.kinds("linear")["loha"]
    files = {
        "up alone": mark | {k: t for k, t in whole.items() if "lora_A" not in k},
        "down alone": mark | {k: t for k, t in whole.items() if "lora_B" not in k},
        "alpha alone": mark | {f"{module}.alpha": torch.tensor(1.0)},
        "two alphas": mark | whole | {f"{module}.alpha": torch.ones(2)},
        "alpha of one axis": mark | whole | {f"{module}.alpha": torch.ones(1)},
        "half a LoHa": mark | {f"{module}.hada_w1_a": loha["hada_w1_a"]},
        "other half of a LoHa": mark | {f"{module}.hada_w2_b": loha["hada_w2_b"]},
        "half swapped": mark | {f"{module}.lora_up.weight": torch.ones(8, 1),
                                f"{module}.lora_A.weight": torch.ones(1, 6)},
        "no model": mark | whole | pair("diffusion_model.mystery.q", 8, 6),
        "another model": mark | whole | pair("diffusion_model.blocks.0.self_attn.q", 8, 6),
    }  # fmt: skip
    wrong, unsure = agree(host, question, files, tmp_path)
    wrong = {title: keys for title, keys in wrong.items() if keys != [f"{module}.alpha"]}
    assert wrong == {}
    assert list(unsure) == ["no model"]


def test_a_table_that_is_wrong_is_found_out(host, tmp_path, monkeypatch):
    """Twin: without one scheme, and with one too many, the comparisons above fail."""
    question, mark, inner = small("flux")
    files = {"kohya": mark | pair("lora_unet_" + inner.replace(".", "_"), 8, 6),
             "unet": mark | pair("unet." + inner, 8, 6)}  # fmt: skip
    assert agree(host, question, files, tmp_path) == ({}, {})
    program = PROGRAMS["comfy"]
    (route,) = program.routes[""]
    schemes = [one for one in route.schemes if one.prefix != "lora_unet_"]
    wrong = replace(route, schemes=(*schemes, Scheme("unet.", "native")))
    monkeypatch.setitem(PROGRAMS, "comfy", replace(program, routes={"": (wrong,)}))
    assert agree(host, question, files, tmp_path)[0].keys() == {"kohya", "unet"}


# --- magnitudes of DoRA

WEIGHTS = {"linear": (8, 6), "square": (8, 8), "conv1x1": (8, 6, 1, 1), "conv3x3": (8, 6, 3, 3), "conv3d": (8, 6, 2, 1, 3)}  # fmt: skip
MAGNITUDES = (
    *((8,), (6,), (8, 1), (1, 8), (1, 6), (6, 1), (1, 1), (8, 1, 1), (1, 8, 1)),
    *((8, 1, 1, 1), (1, 6, 1, 1), (1, 8, 1, 1), (8, 1, 1, 1, 1), (1, 6, 1, 1, 1)),
)
KERNELS = {"conv1x1": "skip_connection", "conv3x3": "in_layers.2"}
STACKED = ("lora", "loha", "loha, Tucker", "lokr whole, whole", "lokr whole, thin", "glora")


def test_magnitudes_that_it_cannot_broadcast(host, tmp_path):
    """It logs an error, and leaves the weight as it was; lint says so from the header."""
    layers, base, cases = {}, {}, {}
    forms = {form: kinds.kinds(form) for form in WEIGHTS if form in kinds.WEIGHTS}
    forms["square"] = {"lora": {"lora_up.weight": torch.ones(8, 2), "lora_down.weight": torch.ones(2, 8)}}  # fmt: skip
    for form, kind, shape in itertools.product(WEIGHTS, STACKED, MAGNITUDES):
        if kind not in forms[form] or (form == "conv3d" and kind != "lora"):
            continue  # of three axes it knows pairs alone
        module = f"diffusion_model.double_blocks.{len(base)}.img_mlp.2"
        # A UNet's name tells that the factors of a LoHa or LoKr are those of a kernel.
        if form in KERNELS:
            module = f"diffusion_model.input_blocks.{len(base)}.0.{KERNELS[form]}"
        cases[module] = (form, kind, shape)
        layers |= {f"{module}.{suffix}": one.clone() for suffix, one in forms[form][kind].items()}
        layers[f"{module}.dora_scale"] = torch.full(shape, 2.0)
        base[f"{module}.weight"] = kinds.numbers(*WEIGHTS[form], seed=99)
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("adapter", "base", "output")}
    save_file(layers, files["adapter"])
    save_file(base, files["base"])
    failed = host.ask("change_weights", {**files, "strengths": [1.0]})
    made = load_file(files["output"])
    wrong, applied = {}, []
    for name in ("flux", "sd1"):
        (verdict,) = lint(
            DictSource(layers), ["comfy"], architecture=name, headers_only=True
        ).verdicts
        for module, case in cases.items():
            if (case[0] in KERNELS) != (name == "sd1"):
                continue
            theirs = module not in failed and not torch.equal(made[f"{module}.0"], base[f"{module}.weight"])  # fmt: skip
            applied.append(theirs)
            if theirs != (verdict.reads[module].state != "left"):
                wrong[case] = (theirs, verdict.reads[module].reason)
    assert wrong == {}
    assert len(applied) == len(cases)
    assert 40 < sum(applied) < len(applied) - 40
