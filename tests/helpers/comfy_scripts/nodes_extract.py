"""Extract LoRA on models that the host loaded, in the host's process, as its worker runs a node."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import apply_loras
import nodes_models
import nodes_weights
import torch


def sides(question):
    """The inputs of the node."""
    tuned, tuned_clip = apply_loras.load(question["tuned"], question["loader"], question["te"])
    base, base_clip = apply_loras.load(question["base"], question["loader"], question["te"])
    how = question.get("how", "pair")
    if how == "pair":
        return {"tuned": tuned, "base": base, "tuned_clip": tuned_clip, "base_clip": base_clip}
    if how == "difference":
        inputs = {"tuned": nodes_weights.merged("Subtract", tuned, base, 1.0)}
        if tuned_clip is not None:
            inputs["tuned_clip"] = subtracted(tuned_clip, base_clip)
        return inputs
    if how == "stray clip":
        return {"tuned": tuned, "base": base, "tuned_clip": tuned_clip}
    if how == "whole clip":
        inputs = {"tuned": nodes_weights.merged("Subtract", tuned, base, 1.0)}
        return {**inputs, "tuned_clip": tuned_clip}
    if how in ("bypass alone", "bypass too"):
        changed = base if how == "bypass alone" else tuned
        return {"tuned": bypassed(changed), "base": base}
    if how == "GGUF":
        return {"tuned": loaded_by_gguf(question["tuned"], question["pack"]), "base": base}
    if how == "a quantised parameter":
        return {"tuned": with_parameter_of_a_pack(tuned), "base": base}
    if how == "added":
        return {"tuned": nodes_weights.merged("Add", tuned, base)}
    return {"tuned": tuned}


def subtracted(one, other):
    """The difference of two CLIPs, by the host's node."""
    from comfy_extras.nodes_model_merging import CLIPSubtract

    return CLIPSubtract().merge(one, other, 1.0)[0]


def bypassed(model):
    """The MODEL with a LoRA on it that acts beside the layers, as the host's bypass loaders put it."""
    import comfy.sd

    weight = model.model.diffusion_model.double_blocks[0].img_attn.proj.weight
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    lora = {
        f"{name}.lora_up.weight": torch.ones(len(weight), 1),
        f"{name}.lora_down.weight": torch.ones(1, weight.shape[1]),
    }
    return comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0)[0]


def loaded_by_gguf(path, folder):
    """The MODEL as ComfyUI-GGUF loads it, with what it can quantise in Q8_0."""
    import comfy.sd
    import comfy.utils

    sys.path.insert(0, str(Path(folder).parent))
    ops = importlib.import_module(f"{Path(folder).name}.ops")
    nodes = importlib.import_module(f"{Path(folder).name}.nodes")
    gguf = importlib.import_module("gguf")
    state = {}
    for key, weight in comfy.utils.load_torch_file(path).items():
        kinds = gguf.GGMLQuantizationType
        kind = kinds.Q8_0 if weight.ndim == 2 and weight.shape[1] % 32 == 0 else kinds.F32
        stored = torch.from_numpy(gguf.quants.quantize(weight.float().numpy(), kind))
        state[key] = ops.GGMLTensor(stored, tensor_type=kind, tensor_shape=weight.shape)
    options = {"custom_operations": ops.GGMLOps()}
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    return nodes.GGUFModelPatcher.clone(model)


def with_parameter_of_a_pack(model):
    """The MODEL with a weight in bytes, as bitsandbytes' loaders leave all of theirs."""
    packed = type("Params4bit", (torch.nn.Parameter,), {})
    layer = model.model.diffusion_model.double_blocks[0].img_attn.proj
    layer.weight = packed(torch.zeros(layer.weight.numel() // 2, 1).byte(), requires_grad=False)
    return model


def extract(question):
    """Run the node; write its adapter."""
    import comfy.utils

    from lorakit.lora_ops.errors import LoraOpsError
    from lorakit.nodes.extract import extract_lora
    from lorakit.nodes.host import host

    with torch.inference_mode():
        inputs = sides(question)
        patchers = [getattr(one, "patcher", one) for one in inputs.values() if one is not None]
        before = [nodes_weights.state_of(one) for one in patchers]
        counting = nodes_weights.Counting(host.effective_weight)
        host.effective_weight = counting
        try:
            made = extract_lora.ExtractLora.execute(**inputs, **question["options"])
        except LoraOpsError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            host.effective_weight = counting.function
        lora, report = made.args
        comfy.utils.save_torch_file({k: v.clone() for k, v in lora.items()}, question["output"])
        same = before == [nodes_weights.state_of(one) for one in patchers]
        return {"report": report, "same": same, "alive": counting.most, "read": counting.calls}


def answer(question):
    """What the node gives, or its error; in a thread of its own, as the host runs its queue."""
    nodes_models.load_pack()
    found = []
    thread = threading.Thread(target=lambda: found.append(extract(question)))
    thread.start()
    thread.join()
    return found[0]
