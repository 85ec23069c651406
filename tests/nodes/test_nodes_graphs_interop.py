"""Our nodes beside ComfyUI's own: what one gives, the other takes."""

from __future__ import annotations

import pytest
import torch
from graphs import FLUX, Graph, distance, lora
from safetensors.torch import load_file

SAME = 2e-5


def applied(server, strength=1.0):
    """A graph, our loader, the checkpoint's, and what Apply makes of both."""
    graph = Graph(server)
    held, model = graph.lora(), graph.checkpoint()
    made = graph.add("LorakitApplyLora", model=model, lora=held, strength_model=strength)
    return graph, held, model, made


def latents_are_one(graph, made, wanted):
    latent = graph.latent(wanted)
    assert distance(graph.latent(made), latent) < SAME
    assert distance(graph.latent(graph.checkpoint()), latent) > 0.01, "a change that can be seen"


@pytest.mark.parametrize("bypass", [False, True])
def test_the_hosts_loader_takes_our_lora(comfy, bypass):
    graph, held, model, ours = applied(comfy, 0.6)
    inputs = {"model": model, "lora": held, "strength_model": 0.6, "bypass": bypass}
    latents_are_one(graph, graph.add("LoraModelLoader", **inputs), ours)


def test_the_hosts_bypass_loader_takes_our_file(comfy):
    graph, held, model, ours = applied(comfy, 0.6)
    scaled = graph.add("LorakitScaleLora", lora=held, strength=0.6)
    graph.add("LorakitSaveLora", lora=scaled, prefix="loras/for-bypass")
    graph.run()
    file = {"lora_name": "for-bypass_00001_.safetensors", "strength_model": 1.0}
    latents_are_one(graph, graph.add("LoraLoaderBypassModelOnly", model=model, **file), ours)


def test_the_host_saves_our_lora(comfy):
    graph = Graph(comfy)
    graph.add("SaveLoRA", lora=graph.lora(), prefix="loras/by-core")
    graph.run()
    held = load_file(comfy.base / "output" / "loras" / "by-core_00001_.safetensors")
    started = load_file(comfy.base / "models" / "loras" / "one.safetensors")
    assert held.keys() == started.keys()
    assert all(torch.equal(held[key], started[key]) for key in held)


def test_a_plain_dict_of_another_node_goes_in(comfy):
    graph, _, model, ours = applied(comfy)
    theirs = graph.add("TestLoraModel", lora_name="one.safetensors")
    both = graph.add("LorakitAddLoras", loras=[theirs, theirs], strengths="2, -1")
    resized = graph.add("LorakitResizeLora", lora=both, rank=4)
    for one in (theirs, resized):
        latents_are_one(graph, graph.add("LorakitApplyLora", model=model, lora=one), ours)
    graph.add("LorakitSaveLora", lora=theirs, prefix="loras/plain")
    graph.run()
    held = load_file(comfy.base / "output" / "loras" / "plain_00001_.safetensors")
    assert held.keys() == lora(FLUX).keys()


def test_what_the_host_merges_is_extracted(comfy):
    """Subtract's difference, added again: patches that hold another model's weights."""
    graph, held, base, ours = applied(comfy, 0.5)
    whole = graph.add("LorakitApplyLora", model=base, lora=held)
    change = graph.add("ModelMergeSubtract", model1=whole, model2=base, multiplier=0.5)
    merged = graph.add("ModelMergeAdd", model1=base, model2=change)
    extracted = graph.add("LorakitExtractLora", tuned=merged, base=base, rank=4, dtype="fp32")
    latents_are_one(graph, graph.add("LorakitApplyLora", model=base, lora=extracted), ours)


def test_our_file_stacks_with_the_hosts_loader(comfy):
    graph, _, model, ours = applied(comfy)
    file = {"lora_name": "two.safetensors", "strength_model": -0.3}
    above = graph.add("LoraLoaderModelOnly", model=ours, **file)
    below = graph.add("LoraLoaderModelOnly", model=model, **file)
    below = graph.add("LorakitApplyLora", model=below, lora=graph.lora())
    latents_are_one(graph, above, below)


def test_a_difference_of_the_hosts_is_extracted_alone(comfy):
    graph, held, base, ours = applied(comfy, 0.5)
    whole = graph.add("LorakitApplyLora", model=base, lora=held)
    change = graph.add("ModelMergeSubtract", model1=whole, model2=base, multiplier=0.5)
    extracted = graph.add("LorakitExtractLora", tuned=change, rank=4, dtype="fp32")
    latents_are_one(graph, graph.add("LorakitApplyLora", model=base, lora=extracted), ours)


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr", "OFT"])
def test_what_the_host_trains_is_applied(comfy, algorithm):
    """Its biases and norms are differences, which are applied too."""
    graph = Graph(comfy)
    model = graph.checkpoint()
    trained = graph.add(
        "TrainLoraNode",
        model=model,
        latents=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        positive=graph.add("TestConditioning", width=64, pooled=64, seed=3),
        algorithm=algorithm,
        steps=2,
        rank=4,
        learning_rate=0.01,
        training_dtype="fp32",
        lora_dtype="fp32",
        existing_lora="[None]",
    )
    ours = graph.add("LorakitApplyLora", model=model, lora=trained)
    assert "52 of 52 layers applied" in graph.text(ours)
    theirs = graph.add("LoraModelLoader", model=model, lora=trained, strength_model=1.0)
    latents_are_one(graph, theirs, ours)
