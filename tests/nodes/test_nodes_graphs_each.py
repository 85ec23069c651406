"""Each node alone in a real ComfyUI: it runs by its defaults, and says what it takes and did."""

from __future__ import annotations

import functools

import pytest
import torch
from graphs import Graph

RECIPE = {"recipe": 'flux + 0.5*("flux-tuned" - flux)'}
PAIR = {"tuned_name": "flux-tuned.safetensors", "base_name": "flux.safetensors"}
#: What each node needs besides its defaults; `one`, `two` and `model` stand for nodes.
NEEDS = {
    "LorakitLoadLora": {"lora_name": "one.safetensors"},
    "LorakitApplyLora": {"model": "model", "lora": "one"},
    "LorakitScheduleLoras": {"model": "model", "loras": ["one", "two"]},
    "LorakitScaleLora": {"lora": "one"},
    "LorakitAddLoras": {"loras": ["one", "two"]},
    "LorakitResizeLora": {"lora": "one"},
    "LorakitResizeFile": {"lora_name": "one.safetensors"},
    "LorakitExtractLora": {"tuned": "tuned", "base": "model"},
    "LorakitExtractAndSave": {"tuned": "tuned", "base": "model"},
    "LorakitExtractLoraFromFiles": PAIR,
    "LorakitConvertLora": {"lora": "one"},
    "LorakitSaveLora": {"lora": "one"},
    "LorakitBakeLora": {"checkpoint": "flux.safetensors", "loras": ["one"]},
    "LorakitInspectLora": {"lora": "one"},
    "LorakitCompareLoras": {"first": "one", "second": "two"},
    "LorakitStackToLora": {"lora_stack": "stack"},
    "LorakitLoraToStack": {"lora": "one"},
    "LorakitLoraLoader": {"rows": "one | 0.5\ntwo", "model": "model"},
    "LorakitMergeModels": {"models.model_A": "model", "models.model_B": "tuned"},
    "LorakitBlockWeights": {},
    "LorakitBlockSweep": {"lora": "one"},
    "LorakitSaveModel": {"model": "model"},
    "LorakitSwapParts": {"parts": "D00", "model_A": "model", "model_B": "tuned"},
    "LorakitMergeCheckpoints": {"model_A": "flux.safetensors", "model_B": "flux-tuned.safetensors"},
    "LorakitMergeRecipe": RECIPE,
    "LorakitLoadMergeRecipe": RECIPE,
    "LorakitReadRecipe": {"file": "merged"},
    "LorakitLoraInfo": {"lora_name": "one.safetensors"},
    "LorakitEditMetadata": {"lora": "one"},
    "LorakitRecordActivations": {"model": "model"},
    "LorakitSaveActivations": {"recording": "record", "after": "sampled"},
    "LorakitExtractControlLora": {
        "controlnet_name": "hints.safetensors",
        "base_name": "controlled.safetensors",
    },
}


def filled(graph, needs):
    """The inputs with nodes where names of nodes stand."""
    record = functools.cache(
        lambda: graph.add("LorakitRecordActivations", model=graph.checkpoint())
    )
    given = {
        "record": lambda: record()[1],
        "sampled": lambda: graph.sample(record()),
        "one": lambda: graph.lora("one"),
        "two": lambda: graph.lora("two"),
        "model": graph.checkpoint,
        "tuned": lambda: graph.checkpoint("flux-tuned"),
        "merged": lambda: graph.add("LorakitMergeRecipe", **RECIPE),
        "stack": lambda: graph.add(
            "TestLoraStack", lora_name="one.safetensors", model=1.0, clip=1.0
        ),
    }
    return {
        name: [given[one]() for one in value]
        if isinstance(value, list)
        else given.get(value, lambda value=value: value)()
        for name, value in needs.items()
    }


def test_all_nodes_are_here(comfy):
    assert {name for name in comfy.get("/object_info") if name.startswith("Lorakit")} == set(NEEDS)


@pytest.mark.parametrize("kind", NEEDS)
def test_every_node_runs_by_its_defaults_and_says_what_it_did(comfy, kind):
    comfy.post("/free", {"free_memory": True})  # and with it the cache: it does run
    graph = Graph(comfy)
    node = graph.add(kind, **filled(graph, NEEDS[kind]))
    shown = graph.report(node)
    outputs = graph.run()
    text = outputs[node]["text"][0]
    assert text == outputs[shown]["text"][0]
    assert len(text) > 20
    assert len(text.splitlines()) < 15, "short enough to stand on a node"


@pytest.mark.parametrize("kind", NEEDS)
def test_every_input_says_effect_and_range(comfy, kind):
    told = comfy.get(f"/object_info/{kind}")[kind]
    inputs = {**told["input"]["required"], **told["input"].get("optional", {})}
    for name, (what, *about) in inputs.items():
        assert len(about[0].get("tooltip", "")) > 7, name
        if what in ("INT", "FLOAT"):
            assert {"min", "max", "default"} <= about[0].keys(), name
    assert all(told["output_tooltips"]), "and every output"
    assert told["category"].startswith("model/lorakit/")
    assert told["description"]
    assert told["search_aliases"]


def test_inspect_draws_and_says_what_load_says(comfy):
    graph = Graph(comfy)
    loaded = graph.lora()
    inspected = graph.add("LorakitInspectLora", lora=loaded)
    assert "LoRA adapter, Flux.1" in graph.text(loaded)
    assert graph.text(inspected).startswith(graph.text(loaded).splitlines()[0])
    assert_drawn(graph.tensor(inspected, "image"))


def test_compare_draws_and_measures(comfy):
    def compared(first, second):
        graph = Graph(comfy)
        both = {"first": graph.lora(first), "second": graph.lora(second)}
        node = graph.add("LorakitCompareLoras", **both)
        return graph.text(node), graph.tensor(node, "image")

    text, picture = compared("one", "one")
    assert "cosine 1.0000, distance 0.0000" in text
    assert_drawn(picture)
    text, other = compared("one", "two")
    assert "cosine 1.0000" not in text
    assert "23 layers in both, 0 in one alone" in text
    assert picture.shape != other.shape or not torch.equal(picture, other)


def assert_drawn(picture):
    """An IMAGE of the host, with something on it."""
    assert picture.ndim == 4
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    assert min(picture.shape[1:3]) > 100
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.01
