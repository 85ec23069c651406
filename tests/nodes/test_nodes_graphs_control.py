"""Control-LoRAs in a real ComfyUI: its own loader takes ours, and an image comes of it, as from the ControlNet."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_server import GraphError
from controlnets import UNETS, control_lora, controlnet, filled
from graphs import Graph, distance
from keys.checkpoints import prefixed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import bake_control_file, open_source, plan_control_bake_file

NAMES = {"base_name": "controlled.safetensors", "controlnet_name": "hints.safetensors"}
#: Rounding of float32, in a program that adds the factors' product as it computes.
ROUNDED = 2e-4


def drawn(comfy, control, strength=1.0):
    """The latent of two steps and its image, under a ControlNet or under none."""
    graph = Graph(comfy)
    model = graph.checkpoint("controlled")
    given = graph.add("TestConditioning", width=768, pooled=0, seed=1)
    positive = negative = given
    if control is not None:
        hint = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0x3366CC)
        loaded = graph.add("ControlNetLoader", control_net_name=control)
        applied = graph.add(
            "ControlNetApplyAdvanced",
            positive=given,
            negative=given,
            control_net=loaded,
            image=hint,
            strength=strength,
            start_percent=0.0,
            end_percent=1.0,
        )
        positive, negative = applied[0], applied[1]
    latent = graph.add(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
        seed=1,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    vae = graph.add("VAELoader", vae_name="taesd4.safetensors")
    image = graph.add("VAEDecode", samples=latent, vae=vae)
    return graph.tensor(latent), graph.tensor(image, "image")


def files(comfy):
    models = comfy.base / "models"
    return models / "checkpoints" / NAMES["base_name"], models / "controlnet" / NAMES[
        "controlnet_name"
    ]


def test_the_host_draws_with_ours_as_with_the_controlnet(comfy):
    """At full rank the same; at less nearer than without, and nearer the more rank, as the report says."""
    base, whole = files(comfy)
    wanted, image = drawn(comfy, whole.name)
    without, _ = drawn(comfy, None)
    far, told = {}, {}
    for rank in ("1280", "200", "8"):
        name = f"of {rank}.safetensors"
        report = control_lora(base, whole, whole.with_name(name), rank)
        latent, made = drawn(comfy, name)
        far[rank], told[rank] = distance(latent, wanted), report.error
        assert made.shape == image.shape == (1, 64, 64, 3)
        assert bool(made.isfinite().all())
    assert distance(without, wanted) > 0.02
    assert told["1280"] < 1e-5
    assert far["1280"] < ROUNDED
    assert told["1280"] < told["200"] < told["8"]
    assert all(far[rank] < told[rank] + ROUNDED for rank in told)
    assert far["1280"] < far["200"] < far["8"] < 1


def test_the_host_draws_with_the_controlnet_that_bake_makes_of_one(comfy):
    base, whole = files(comfy)
    control, output = whole.with_name("small.safetensors"), whole.with_name("back.safetensors")
    control_lora(base, whole, control, "8")
    with open_source(base) as one, open_source(control) as lora:
        bake_control_file(plan_control_bake_file(one, lora, output=output), one, lora, output)
    ours, _ = drawn(comfy, control.name)
    back, _ = drawn(comfy, output.name)
    assert distance(back, ours) < ROUNDED
    assert distance(back, drawn(comfy, whole.name)[0]) > 10 * ROUNDED


def test_the_node_writes_the_file_and_hands_on_what_it_loads(comfy):
    graph = Graph(comfy)
    node = graph.add("LorakitExtractControlLora", **NAMES, rank=8, dtype="fp32", exact=True)
    told = graph.report(node)
    path = graph.add("PreviewAny", source=node[1])
    outputs = graph.run()
    text, where = outputs[told]["text"][0], json.loads(json.dumps(outputs[path]["text"][0]))
    assert "tensors of the ControlNet's own parts are whole" in text
    control_lora(*files(comfy), files(comfy)[1].with_name("same.safetensors"), "8", exact=True)
    ours, same = load_file(where), load_file(files(comfy)[1].with_name("same.safetensors"))
    assert ours.keys() == same.keys()
    assert all(torch.equal(ours[key], same[key]) for key in ours)
    with safe_open(where, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/control-lora"


@pytest.mark.parametrize("model", ["sd2", "sdxl"])
def test_a_controlnet_of_another_model_is_said(comfy, model):
    other = controlnet(filled(UNETS[model]))
    save_file(prefixed("control_model.", other), files(comfy)[1].with_name(f"{model}.safetensors"))
    graph = Graph(comfy)
    with pytest.raises(GraphError, match="is for another model than"):
        graph.text(
            graph.add(
                "LorakitExtractControlLora", **{**NAMES, "controlnet_name": f"{model}.safetensors"}
            )
        )
