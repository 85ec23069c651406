"""Quantised files as ComfyUI's own code writes them, and what it reads from files that are given to it."""

from __future__ import annotations

import json

import torch

ROTATION = ("convrot_groupsize", "group_size")


def answer(question):
    """`write` or `read`: see there."""
    return {"write": write, "read": read}[question["do"]](question)


def write(question):
    """Write weights of a file in a format, and what they stand for in float32.

    The question: `source`, `output` and `truth` are paths; `format`, and options of its layout.
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
    from safetensors.torch import load_file, save_file

    state, truth = {}, {}
    layout = QUANT_ALGOS[question["format"]]["comfy_tensor_layout"]
    for key, weight in load_file(question["source"]).items():
        if weight.ndim != 2:
            state[key] = weight
            continue
        tensor = QuantizedTensor.from_float(weight, layout, **question.get("options", {}))
        state.update(tensor.state_dict(key))
        told = {"format": question["format"], **question.get("told", {})}
        params = tensor._params
        told.update({name: getattr(params, name) for name in ROTATION if hasattr(params, name)})
        text = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        state[key.removesuffix("weight") + "comfy_quant"] = text
        truth[key] = tensor.dequantize()
    save_file({key: value.contiguous() for key, value in state.items()}, question["output"])
    save_file({key: value.contiguous() for key, value in truth.items()}, question["truth"])


def read(question):
    """Write what the layers of a file stand for in float32, loaded as a model loads them.

    The question: `source` and `truth` are paths; `shapes` of the layers by name.
    """
    import comfy.ops
    import comfy.utils
    from safetensors.torch import save_file

    state, metadata = comfy.utils.load_torch_file(question["source"], return_metadata=True)
    state, _ = comfy.utils.convert_old_quants(state, "", metadata)
    ops = comfy.ops.mixed_precision_ops({}, compute_dtype=torch.float32)
    truth = {}
    for name, (rows, columns) in question["shapes"].items():
        layer = ops.Linear(columns, rows, bias=f"{name}.bias" in state, dtype=torch.float32)
        own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        layer.load_state_dict(own, strict=False)
        weight = layer.weight
        truth[f"{name}.weight"] = (
            weight.dequantize() if hasattr(weight, "dequantize") else weight.float()
        ).detach()
    save_file({key: value.float().contiguous() for key, value in truth.items()}, question["truth"])
