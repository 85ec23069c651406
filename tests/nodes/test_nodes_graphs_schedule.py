"""Schedule LoRAs in a real ComfyUI: against the host's own loaders, and sampling by hand in parts."""

from __future__ import annotations

import re
import time
import uuid

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, UNET, Graph, cancelled, distance, first_steps, lora
from kinds import KINDS, tensors_of_kind
from safetensors.torch import save_file

STEPS = 4


class Scheduled(Graph):
    """Graphs that sample more steps, in one go or in parts."""

    def __init__(self, server, like="flux", scheduler="simple"):
        super().__init__(server)
        self.like, self.scheduler = like, scheduler

    def model(self, loras=("one",), **inputs):
        """The checkpoint with our node on it."""
        sockets = [self.lora(name) for name in loras]
        return self.add(
            "LorakitScheduleLoras", model=self.checkpoint(self.like), loras=sockets, **inputs
        )

    def applied(self, name="one", strength=1.0, model=None, **inputs):
        """The checkpoint with Apply LoRA."""
        return self.add(
            "LorakitApplyLora",
            model=model or self.checkpoint(self.like),
            lora=self.lora(name),
            strength_model=strength,
            **inputs,
        )

    def part(self, model, start, end, latent=None):
        """Some of the steps: of the same noise, or of what another part left."""
        width, pooled, empty = {
            "flux": (64, 64, "EmptySD3LatentImage"),
            "sd1": (768, 0, "EmptyLatentImage"),
        }[self.like]
        given = self.add("TestConditioning", width=width, pooled=pooled, seed=1)
        return self.add(
            "KSamplerAdvanced",
            model=model,
            positive=given,
            negative=given,
            latent_image=latent or self.add(empty, width=64, height=64, batch_size=1),
            add_noise="disable" if latent else "enable",
            noise_seed=1,
            steps=STEPS,
            cfg=1.0,
            sampler_name="euler",
            scheduler=self.scheduler,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="enable" if end < STEPS else "disable",
        )

    def whole(self, model):
        """What all steps make of the noise."""
        return self.tensor(self.part(model, 0, STEPS))


@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_a_constant_curve_is_apply_lora(comfy, strength):
    graph = Scheduled(comfy)
    plain = Scheduled(comfy)
    made = graph.whole(graph.model(curves=f"{strength}"))
    expected = plain.whole(plain.applied(strength=strength))
    assert torch.equal(made, expected)
    assert distance(made, Scheduled(comfy).whole(graph.checkpoint())) > 0.05
