"""Extract LoRA on models that the host loaded, in the host's process, as its worker runs a node."""

from __future__ import annotations

import threading

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
    if how == "added":
        return {"tuned": nodes_weights.merged("Add", tuned, base)}
    return {"tuned": tuned}


def subtracted(one, other):
    """The difference of two CLIPs, by the host's node."""
    from comfy_extras.nodes_model_merging import CLIPSubtract

    return CLIPSubtract().merge(one, other, 1.0)[0]


def extract(question):
    """Run the node; write its adapter."""
    import comfy.utils

    from lorakit.lora_ops.errors import LoraOpsError
    from lorakit.nodes import extract_lora, host

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
