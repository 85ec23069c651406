"""What DeepCompressor saves of a model that it quantised, from which its converter writes Nunchaku's file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nunchaku_models import LAST, MODULATIONS, SHIFT, SMOOTHED, WHOLE, Linear, modulation
from torch import Tensor

# Where the branch of a layer stands that is not under the first name of those that it is made of.
BRANCHES = {"attn.add_q_proj": "attn.add_k_proj"}


def as_deepcompressor(
    model: Mapping[str, Tensor], layers: list[Linear]
) -> tuple[
    dict[str, Tensor], dict[str, Tensor], dict[str, Tensor | bool], dict[str, dict[str, Tensor]]
]:
    """What DeepCompressor saves of it: weights, scales, smoothing, branches."""
    state, scales = dict(model), dict[str, Tensor]()
    smooth: dict[str, Tensor | bool] = {"proj.fuse_when_possible": any(o.fused for o in layers)}
    branches: dict[str, dict[str, Tensor]] = {}
    for kind in ("weight", "bias"):
        del state[f"{LAST}.proj_out.{kind}"]
    for one in layers:
        suffix = ".linear" * one.shifted
        rows = len(one.up) // len(one.inner)
        for i, name in enumerate(one.inner):
            own, layer = slice(i * rows, (i + 1) * rows), f"{one.block}.{name}"
            for kind in ("weight", "bias"):
                state.pop(f"{layer}.{kind}", None)
            state[f"{layer}{suffix}.weight"] = one.rest[own].bfloat16()
            if one.bias is not None:
                state[f"{layer}{suffix}.bias"] = one.bias[own]
            if one.shifted:
                state[f"{layer}.shift"] = torch.tensor([SHIFT])
            scale = one.scale[own].bfloat16().view(rows, 1, -1, 1)
            key = f"{layer}{suffix}.weight.scale"
            if one.floats:
                scales[f"{key}.0"] = torch.tensor(WHOLE).bfloat16().view(1, 1, 1, 1)
            scales[f"{key}.{int(one.floats)}"] = scale
        first = one.inner[0]
        smooth[f"{one.block}.{SMOOTHED.get(first, first)}{suffix}"] = one.smooth
        branch = {"a.weight": one.down, "b.weight": one.up}
        branches[f"{one.block}.{BRANCHES.get(first, first)}{suffix}"] = branch
    for block, kinds in MODULATIONS.items():
        for name in kinds:
            key = f"{block}.{name}.weight"
            numbers, scale = modulation(model[key])
            exact = (numbers - 7) * scale.double().unsqueeze(-1)
            state[key] = exact.flatten(1).bfloat16()
            scales[f"{key}.scale.0"] = scale.view(len(scale), 1, -1, 1)
    return state, scales, smooth, branches
