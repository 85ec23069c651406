"""What nodes take for the progress of sampling at levels of noise."""

from __future__ import annotations

import nodes_models
import torch


def answer(question):
    """The share of the steps at some levels; and by schedule the progress that the host's levels are at."""
    nodes_models.load_pack()
    from comfy import model_sampling

    from lorakit.nodes.host.scheduled import noise_gone, steps_done

    noise = {}
    for name in (
        "ModelSamplingDiscrete",
        "ModelSamplingDiscreteFlow",
        "ModelSamplingFlux",
        "ModelSamplingContinuousEDM",
    ):
        host = getattr(model_sampling, name)()
        levels = [host.percent_to_sigma(at) for at in (1e-9, 0.25, 0.5, 0.75, 0.999)]
        levels = [float(torch.tensor(float(level))) for level in levels]
        noise[name] = [noise_gone(level, host.percent_to_sigma) for level in levels]
    steps = [steps_done(sigma, question["sigmas"]) for sigma in question["asked"]]
    return {"steps": steps, "noise": noise}
