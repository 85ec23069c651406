"""lint's verdict for diffusers against `load_lora_weights` of its own loaders, on small models."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from adapters import DictSource
from test_convert_peers import MODELS, built, native_adapter

from lorakit.lora_ops.adapters.formats import decode, encode_layer, format_named
from lorakit.lora_ops.inspect.lint import lint
from lorakit.lora_ops.models.architectures import UNET, architecture_named, module_renames
from lorakit.lora_ops.operations.convert.convert import convert

diffusers = pytest.importorskip("diffusers", reason="its loaders are what is asked here")
pipelines = pytest.importorskip(
    "diffusers.loaders.lora_pipeline", reason="its loaders are what is asked here"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

LOADERS = {
    "flux": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "auraflow": "AuraFlowLoraLoaderMixin",
    "z_image": "ZImageLoraLoaderMixin",
    "wan": "WanLoraLoaderMixin",
    "qwen_image": "QwenImageLoraLoaderMixin",
    "ltxv": "LTXVideoLoraLoaderMixin",
    "kandinsky5": "KandinskyLoraLoaderMixin",
    "sd1": "StableDiffusionLoraLoaderMixin",
}
#: Of tiny models these give sizes that are told from no others, or that conversions do not have.
_UNSEEN = {"flux": ("comfy, lora_up", "kohya", "kohya, blocks")}
#: What a model's own names are followed by.
OTHER_ENDS = ((".lora_B.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_down.weight"))


def written(name, tensors, format):
    """The tensors of an adapter in another format."""
    adapter = decode(DictSource(tensors))
    result, _ = convert(adapter, format, architecture=architecture_named(name))
    found = {}
    for target, layer in result.layers.items():
        found |= encode_layer(format_named(format), lambda module: module, target, layer)
    return {key: tensor.contiguous() for key, tensor in found.items()}


def files_of(name, model):
    """Adapters as people have them: tensors and metadata by title."""
    native, _ = native_adapter(name, model)
    bare = {key: t for key, t in native.items() if not key.endswith(".alpha")}
    own = written(name, native, "diffusers")
    one = next(key for key in own if key.endswith(".lora_A.weight")).removesuffix(".lora_A.weight")
    renamed = {
        next((k.replace(a, b) for a, b in OTHER_ENDS if a in k), k): t for k, t in native.items()
    }
    blocks = {k: t for k, t in native.items() if re.match(rf"{UNET}\w*blocks\.", k)}
    root = architecture_named(name).diffusers
    prefix = root.removesuffix(".")
    config = {f"{prefix}.r": 3, f"{prefix}.lora_alpha": 6, f"{prefix}.target_modules": ["x"]}
    told = {"lora_adapter_metadata": json.dumps(config)}
    found = {
        "comfy": (native, {}),
        "comfy without alphas": (bare, {}),
        "comfy, lora_up": (renamed, {}),
        "kohya": (written(name, native, "kohya"), {}),
        "kohya, blocks": (written(name, blocks, "kohya") if blocks else {}, {}),
        "diffusers": (own, {}),
        "diffusers with an alpha": (own | {f"{one}.alpha": torch.tensor(2.0)}, {}),
        "diffusers with an integer": (own | {f"{one}.alpha": torch.tensor(2)}, {}),
        "diffusers with a difference": (own | {f"{one}.diff": torch.ones(2, 2)}, {}),
        "diffusers with metadata": (own, told),
        "peft": (written(name, native, "peft"), {}),
    }
    unseen = _UNSEEN.get(name, ())
    return {title: file for title, file in found.items() if file[0] and title not in unseen}


def tiny(name):
    """A small model; of LTX-Video one with the width by which its adapters are told."""
    if name != "ltxv":
        return built(name)
    kind, arguments = MODELS[name]
    torch.manual_seed(0)
    return getattr(diffusers, kind)(**arguments | {"cross_attention_dim": 2048}).eval()


def loaded(name, model, tensors, metadata):
    """The change of each weight that the loader makes; None if it stops with an error."""
    part = "unet" if name == "sd1" else "transformer"
    base = getattr(pipelines, LOADERS[name])
    stub = type("Stub", (base,), {"__init__": lambda _: None})()
    setattr(stub, part, model)
    for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer_2"):
        setattr(stub, encoder, None)
    stub.hf_device_map = None
    stub.components = {part: model}
    config = json.loads(metadata.get("lora_adapter_metadata", "null"))
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    state, read = {key: t.clone() for key, t in tensors.items()}, {}
    if config is not None:
        read = {"metadata": config}
    try:
        if read:
            model.load_lora_adapter(state, prefix=part, **read)
        else:
            stub.load_lora_weights(state)
    except Exception as error:  # noqa: BLE001  whatever it says, nothing was loaded
        return None, f"{type(error).__name__}: {error}"
    if not getattr(model, "peft_config", {}):
        return {}, ""
    model.fuse_lora()
    model.unload_lora()
    after = model.state_dict()
    changes = {k.removesuffix(".weight"): after[k] - w for k, w in before.items()}
    return {key: change for key, change in changes.items() if change.any()}, ""


@pytest.mark.parametrize("name", LOADERS)
def test_verdict_is_that_of_its_loader(name):
    files = files_of(name, tiny(name))
    table = module_renames(architecture_named(name))
    wrong = {}
    for title, (tensors, metadata) in files.items():
        changes, error = loaded(name, tiny(name), tensors, metadata)
        result = lint(DictSource(tensors, metadata), ["diffusers"], headers_only=True)
        verdict = result.verdicts[0]
        if not changes or verdict.refused:
            # With an error or without, nothing is loaded.
            if changes or verdict.count("loads"):
                wrong[title] = (error[:150], verdict.refused, verdict.count("loads"))
            continue
        pairs = {key: t for key, t in tensors.items() if not key.endswith(".diff")}
        adapter = decode(DictSource(pairs))
        names = {module for module, read in verdict.reads.items() if read.state == "loads"}
        squares = 0.0
        expected = set()
        for module in names:
            layer = adapter.layers[module]
            scale = verdict.reads[module].scale / layer.scale
            squares += float(layer.delta(torch.float64).norm()) ** 2 * scale**2
            inner = module.partition(".")[2] if "." in module else module.partition("unet_")[2]
            inner = module.removeprefix("base_model.model.") if "base_model" in module else inner
            place = table.find(inner)
            parts = table.foreign_parts(place.native)
            expected |= {
                foreign for foreign, at in parts if at.start < place.stop and place.start < at.stop
            }
        norm = math.sqrt(sum(float(change.double().norm()) ** 2 for change in changes.values()))
        if changes.keys() != expected:
            wrong[title] = (sorted(changes.keys() ^ expected)[:6], len(changes), len(expected))
        elif abs(norm - math.sqrt(squares)) > 1e-3 * norm:
            wrong[title] = ("norm", norm, math.sqrt(squares))
    assert wrong == {}


def test_models_are_those_of_the_conversions():
    assert LOADERS.keys() <= MODELS.keys()
