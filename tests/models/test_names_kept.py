"""Conversions lose no layer: of models that few tables have, and of UNets of unusual depth."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from keys import checkpoints, comfyui
from keys.models import HOSTED
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, Term, add, compare, convert, decode
from lorakit.lora_ops.adapters.formats import COMFY, KOHYA, encode_layer
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.models.architectures import architecture_named

UNET = "diffusion_model."


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


def lora(names, seed=0):
    """A LoRA of these modules, (out, in) by name."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (out, into, *kernel) in names.items():
        tensors[f"{module}.lora_up.weight"] = torch.randn(
            (out, 2, *([1] * len(kernel))), generator=generator
        )
        tensors[f"{module}.lora_down.weight"] = torch.randn((2, into, *kernel), generator=generator)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    return decode(DictSource(tensors))


LOADED = ("omnigen2", "boogu", "joyimage", "lens", "ernie", "ideogram4")
# Small, the attention of Hunyuan3D could be that of any other with such streams.
CASES = [*((name, part) for name in LOADED for part in ("all", "attention")), ("hunyuan3d", "all")]


@pytest.mark.parametrize(("name", "part"), CASES)
def test_every_layer_that_comfyui_loads_is_still_there(host, name, part, tmp_path):
    question = HOSTED[name].question()
    shapes = host.ask("lora_names", {**question, "files": {}})["shapes"]
    chosen = {
        UNET + key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight")
        and len(shape) > 1
        and (part == "all" or "attn" in key or "attention" in key)
    }
    before = lora(chosen)
    results = {format: convert(before, format)[0] for format in ("comfy", "kohya", "peft")}
    results["back"], _ = convert(results["peft"], "comfy", architecture=architecture_named(name))
    del results["peft"]  # which ComfyUI does not read for most
    files = {}
    for format, result in results.items():
        scheme = KOHYA if format == "kohya" else COMFY
        files[format] = [str(tmp_path / f"{format}.safetensors"), str(tmp_path / f"{format}.out")]
        tensors = [encode_layer(scheme, str, *one) for one in result.layers.items()]
        save_file({key: t.clone() for one in tensors for key, t in one.items()}, files[format][0])
    answer = host.ask("lora_names", {**question, "files": files})
    assert answer["left"] == {format: [] for format in files}
    for result in results.values():
        assert len(result.layers) == len(chosen)


# --- UNets


BK_SDM = {
    name: shape
    for name, shape in checkpoints.unet(768, [1, 1, 1, 0], blocks=1, mults=[1, 2, 4, 4]).items()
    if not name.startswith("middle_block.")
}
REFINER = checkpoints.unet(
    1280, [0, 4, 4, 0], middle=4, width=384, linear=True, label=2560, mults=[1, 2, 4, 4]
)


@pytest.fixture(scope="module")
def tables():
    """ComfyUI's names of diffusers for these UNets, as kohya writes them: native module by name."""
    prefix = "model.diffusion_model."
    asked = {"bk_sdm": BK_SDM, "sdxl_refiner": REFINER}
    answers = comfyui.ask(tables={k: checkpoints.prefixed(prefix, v) for k, v in asked.items()})
    return {
        name: {
            to.removesuffix(".weight"): native.removesuffix(".weight")
            for to, native in answers["tables"][name].items()
            if "class_embedding" not in to  # its other name is in use
            and native in asked[name]
            and native.endswith(".weight")
            and len(asked[name][native]) > 1
        }
        for name in asked
    }


def kohya(table, shapes):
    return {
        f"lora_unet_{to.replace('.', '_')}": shapes[f"{native}.weight"]
        for to, native in table.items()
    }


def test_a_unet_of_unusual_depth_needs_the_model_or_its_name(tables):
    table = {to: native for to, native in tables["bk_sdm"].items() if "attentions" in to}
    before = lora(kohya(table, BK_SDM))
    right = {f"lora_unet_{to.replace('.', '_')}": UNET + native for to, native in table.items()}
    with pytest.raises(
        ArgumentError, match=r"Stable Diffusion 1.*BK-SDM.*`reference=`.*`architecture=`"
    ):
        convert(before, "comfy")
    for known in (
        {"reference": [UNET + name.removesuffix(".weight") for name in BK_SDM]},
        {"architecture": architecture_named("bk_sdm")},
        {
            "architecture": architecture_named("sd1"),
            "reference": [UNET + name.removesuffix(".weight") for name in BK_SDM],
        },
    ):
        after, _ = convert(before, "comfy", **known)
        assert list(after.layers) == list(right.values())
        for module, native in right.items():
            assert torch.equal(after.layers[native].up, before.layers[module].up)
        back, _ = convert(after, "kohya", **known)
        assert list(back.layers) == list(right)


def test_a_sum_is_no_way_round_the_doubt(tables):
    table = {to: native for to, native in tables["bk_sdm"].items() if "attentions" in to}
    before = lora(kohya(table, BK_SDM))
    terms = [Term(before, {}, "one"), Term(before, {}, "other")]
    with pytest.raises(
        ArgumentError, match=r"Stable Diffusion 1.*BK-SDM.*`reference=`.*`architecture=`"
    ):
        add(terms, format="comfy")
    for known in (
        {"reference": [UNET + name.removesuffix(".weight") for name in BK_SDM]},
        {"architecture": architecture_named("bk_sdm")},
    ):
        after, _ = add(terms, format="comfy", **known)
        assert list(after.layers) == [UNET + native for native in table.values()]
    after, _ = add(terms)
    assert list(after.layers) == list(before.layers)
    assert compare(before, before).shared == len(before.layers)


def test_native_names_tell_the_depth(tables):
    table = {to: native for to, native in tables["bk_sdm"].items() if "attentions" in to}
    before = lora({UNET + native: BK_SDM[f"{native}.weight"] for native in table.values()})
    after, _ = convert(before, "kohya")
    assert list(after.layers) == [f"lora_unet_{to.replace('.', '_')}" for to in table]


def test_every_module_of_the_refiner_is_where_comfyui_has_it(tables):
    table = tables["sdxl_refiner"]
    after, _ = convert(lora(kohya(table, REFINER)), "comfy")
    assert list(after.layers) == [UNET + native for native in table.values()]
    upsamplers = {native for to, native in table.items() if "upsamplers" in to}
    assert upsamplers == {f"output_blocks.{n}.conv" for n in ("2.1", "5.2", "8.2")}
