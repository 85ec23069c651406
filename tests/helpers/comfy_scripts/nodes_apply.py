"""Apply LoRA beside the host's own loader, on one model in one process: the weights that both make."""

from __future__ import annotations

import contextlib
import logging

import nodes_models
import nodes_weights
import torch


class Errors(logging.Handler):
    """What the host says went wrong with a layer."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def models(question):
    """The MODEL and the CLIP that are asked for."""
    import comfy.sd
    import comfy.utils

    asked = question["model"]
    if "class" in asked:
        model = nodes_models.hosted(asked)
    else:
        held = comfy.utils.load_torch_file(asked["weights"])
        if "format" in asked:
            state, _ = nodes_weights.quantised(held, asked["format"])
            model = comfy.sd.load_diffusion_model_state_dict(state)
        else:
            model = nodes_models.model_of(held)
    clip = None
    if question.get("encoders"):
        tensors = {name: torch.zeros(shape) for name, shape in question["encoders"].items()}
        clip = nodes_models.clip_of(tensors)
    return model, clip


def evaluated(patchers):
    """What patches make of weights, in float32, by key; and what was said meanwhile."""
    import comfy.lora

    heard = Errors()
    logging.getLogger().addHandler(heard)
    found = {}
    for patcher in patchers:
        for key, records in patcher.patches.items():
            held = held_weight(patcher, key)
            if held is None:
                continue
            try:
                found[key] = comfy.lora.calculate_weight(records, held, key)
            except (IndexError, RuntimeError) as error:  # of some kinds the host does not catch it
                heard.lines.append(f"{key}: {error}")
    logging.getLogger().removeHandler(heard)
    return found, heard.lines


def held_weight(patcher, key):
    """A copy of a weight in float32, whatever it is stored as; None where there is none."""
    held = dict(patcher.model.named_parameters()).get(key)
    if held is None:
        return None
    if held.is_meta:
        return nodes_models.numbers(key, held.shape)
    held = held.detach().to(torch.float32, copy=True)
    return held.dequantize() if hasattr(held, "_qdata") else held


def gathered(patchers):
    """What the same patches make of them after a trip through one buffer, as with dynamic VRAM."""
    from comfy.model_patcher import LowVramPatch

    found = {}
    for patcher in patchers:
        for key in patcher.patches:
            held = held_weight(patcher, key)
            if held is None:
                continue
            patch = LowVramPatch(key, patcher.patches)
            buffer = torch.empty(patch.memory_required(), dtype=torch.uint8)
            patch.prepare(buffer, None)
            found[key] = patch(held)
    return found


def patchers(model, clip):
    """Those of a MODEL and of a CLIP or None."""
    return [model] if clip is None else [model, clip.patcher]


def turned(tensor):
    """The same numbers, not one after another, as a node may have left them."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def tensors_of(patchers):
    """All tensors of all patches."""

    def inside(value):
        if isinstance(value, torch.Tensor):
            yield value
        for part in value if isinstance(value, (list, tuple)) else getattr(value, "weights", ()):
            yield from inside(part)

    for patcher in patchers:
        for records in patcher.patches.values():
            for record in records:
                yield from inside(record[1])


def apply(path, question, model, clip):
    """What both make of one adapter file, or of one after another."""
    import comfy.sd
    import comfy.utils

    from lorakit.lora_ops.errors import LoraOpsError
    from lorakit.nodes.apply import apply_lora
    from lorakit.nodes.host import lora_model

    loaded, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    strengths = question.get("strengths", [1.0, 1.0])
    before = [dict(one.patches) for one in patchers(model, clip)]
    uuids = [one.patches_uuid for one in patchers(model, clip)]
    heard = Errors()
    logging.getLogger().addHandler(heard)
    ours, theirs = (model, clip), (model, clip)
    for _ in range(question.get("times", 1)):
        given = {key: turned(one) for key, one in loaded.items()}
        lora = lora_model.LoraModel(given, "file.safetensors", metadata)
        options = question.get("options", {})
        try:
            output = apply_lora.ApplyLora.execute(
                model=ours[0],
                lora=lora,
                strength_model=strengths[0],
                strength_clip=strengths[1],
                clip=ours[1],
                **options,
            )
        except LoraOpsError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        assert not heard.lines, heard.lines
        *ours, report = output.args
    with contextlib.suppress(KeyError):  # the host ends so where half a pair is missing
        for _ in range(question.get("times", 1)):
            theirs = comfy.sd.load_lora_for_models(*theirs, dict(loaded), *strengths)
    logging.getLogger().removeHandler(heard)
    mine, failed = evaluated(patchers(*ours))
    core, _ = evaluated(patchers(*theirs))
    trip = gathered(patchers(*ours))
    kept = {f"ours {key}": one.contiguous() for key, one in mine.items()}
    comfy.utils.save_torch_file(kept, f"{path}.weights")
    return {
        "report": report,
        "whole": all(one.is_contiguous() and one.is_cpu for one in tensors_of(patchers(*ours))),
        "ours": sorted(mine),
        "core": sorted(core),
        "same": sorted(
            key for key in mine.keys() & core.keys() if torch.equal(mine[key], core[key])
        ),
        "failed": failed,
        "gathered": trip.keys() == mine.keys()
        and all(torch.equal(trip[key], one) for key, one in mine.items()),
        "untouched": before == [one.patches for one in patchers(model, clip)]
        and uuids == [one.patches_uuid for one in patchers(model, clip)],
        "metadata": ours[0].get_attachment("lora_metadata"),
    }


def answer(question):
    """By name of the file, what both made of it."""
    nodes_models.load_pack()
    with torch.inference_mode():
        model, clip = models(question)
        return {
            name: apply(path, question, model, clip) for name, path in question["files"].items()
        }
