"""Merge Models in ComfyUI's process, on models in every state: what it makes of their weights."""

from __future__ import annotations

import nodes_extract
import nodes_models
import nodes_weights
import torch

LETTERS = "ABCDEFGH"


def model_of(question):
    """A MODEL: made like a file of a state, or a merge of such."""
    if "merge" in question:
        return merge([model_of(one) for one in question["merge"]], **question.get("inputs", {}))
    if "tensors" in question:
        import comfy.utils

        return nodes_models.model_of(comfy.utils.load_torch_file(question["tensors"]))
    model = nodes_weights.model_of(question)[0]
    if question.get("predicts"):
        import comfy.model_base

        model.model.model_type = comfy.model_base.ModelType[question["predicts"]]
    if question.get("bypass"):
        model = nodes_extract.bypassed(model)
    return model


def clip_of(path):
    """A CLIP with the tensors of a file."""
    import comfy.utils

    return nodes_models.clip_of(comfy.utils.load_torch_file(path))


def sockets(name, held):
    """What the host hands to a node whose sockets are these; None is one with nothing."""
    return {f"{name}_{letter}": one for letter, one in zip(LETTERS, held, strict=False)}


def merge(models, clips=(), **inputs):
    """The node's MODEL."""
    return execute(models, clips, **inputs)[0]


def execute(models, clips=(), *, node="merge_models.MergeModels", **inputs):
    """The node's outputs."""
    import importlib

    file, name = node.split(".")
    kind = getattr(importlib.import_module(f"lorakit.nodes.merge.{file}"), name)
    held = sockets("model", models), sockets("clip", clips)
    if file == "swap_parts":
        vaes = {f"vae_{letter}": f"VAE {letter}" for letter in "AB"}
        return kind.execute(**held[0], **held[1], **{**vaes, **inputs}).args
    given = {"share_of_B": 0.5, "method": "weighted_sum"}
    return kind.execute(**{**given, "models": held[0], "clips": held[1], **inputs}).args


def core(models, share):
    """The host's own merge of two MODELs; its ratio is the share of the first."""
    return nodes_weights.merged("MergeSimple", *models, 1 - share)


def plain(weight):
    """Numbers of a weight, quantised or not."""
    return (weight.dequantize() if hasattr(weight, "_qdata") else weight).contiguous().clone()


def weights(patcher, prefix=""):
    """What a patcher's weights are: before any rounding, put in place, and as a layer is used."""
    import comfy.utils
    from comfy.model_patcher import LowVramPatch

    from lorakit.nodes.host import host

    found = {}
    for key in host.shapes(patcher):
        if not key.startswith(prefix) or key.endswith("_scale"):
            continue
        found[f"exact {key}"] = host.effective_weight(patcher, key)
        if key in patcher.backup:
            found[f"held {key}"] = plain(comfy.utils.get_attr(patcher.model, key))
            continue
        cpu = torch.device("cpu")
        found[f"placed {key}"] = plain(patcher.patch_weight_to_device(key, cpu, return_weight=True))
        if key in patcher.patches:
            own = host.effective_weight(without_patches(patcher), key)
            patch = LowVramPatch(key, patcher.patches)
            assert patch.memory_required() > 0
            patch.prepare(torch.empty(patch.memory_required(), dtype=torch.uint8), None)
            found[f"used {key}"] = patch(own.to(torch.bfloat16))
    return found


def without_patches(patcher):
    """The model beneath."""
    clone = patcher.clone()
    clone.patches.clear()
    return clone


def answer(question):
    """Write the weights of the result; say what else was seen."""
    nodes_models.load_pack()
    import comfy.model_management

    from lorakit.lora_ops.errors import LoraOpsError

    asked = comfy.model_management.lora_compute_dtype
    if "computes in" in question:  # as on a GPU
        dtype = getattr(torch, question["computes in"])
        comfy.model_management.lora_compute_dtype = lambda device: dtype
    with torch.inference_mode():
        try:
            return made(question)
        except LoraOpsError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            comfy.model_management.lora_compute_dtype = asked


def made(question):
    """Run the node."""
    import comfy.utils

    from lorakit.nodes.host import host

    models = [model_of(one) if one else None for one in question.get("models", ())]
    clips = [clip_of(one) if one else None for one in question.get("clips", ())]
    patchers = [one for one in models if one] + [one.patcher for one in clips if one]
    before = [nodes_weights.state_of(one) for one in patchers]
    counting = nodes_weights.Counting(host.effective_weight)
    host.effective_weight = counting
    try:
        model, clip, *rest, report = execute(models, clips, **question.get("inputs", {}))
    finally:
        host.effective_weight = counting.function
    same = before == [nodes_weights.state_of(one) for one in patchers]
    for step, *arguments in question.get("after", ()):
        if step == "lora":
            model = nodes_weights.with_lora(model, *arguments)
        elif step == "whole":
            model = nodes_weights.loaded_whole(model)
        else:
            model = nodes_weights.loaded_in_part(model)
    kept = {}
    if model is not None:
        kept |= weights(model, "diffusion_model.")
    if clip is not None:
        kept |= {f"clip {key}": one for key, one in weights(clip.patcher).items()}
    if "core" in question:
        theirs = weights(core(models, question["core"]), "diffusion_model.")
        kept |= {f"core {key}": one for key, one in theirs.items()}
    comfy.utils.save_torch_file(kept, question["output"])
    records = [len(one) for one in model.patches.values()] if model is not None else []
    told = {
        "report": report,
        "handed on": [model in models, clip in clips],
        "rest": rest,
        "read": counting.calls,
        "same": same,
        "records": max(records, default=0),
        "patches": len(records),
    }
    for one in patchers:
        one.unpatch_model()
    return told
