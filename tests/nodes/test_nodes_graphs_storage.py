"""Checkpoints that nodes write with scales, in a real ComfyUI: chosen, kept, and loaded again."""

from __future__ import annotations

import importlib

import pytest
from graphs import Graph, distance
from host_double import standing_in

from lorakit.lora_ops import open_source
from lorakit.lora_ops.files.quantised.storages import SCHEMES

KEY = "double_blocks.0.img_attn.proj.weight"


def written(comfy, kind, prefix, **inputs):
    """Run a node that writes a checkpoint; its file, and what it says."""
    graph = Graph(comfy)
    more = {"loras": [graph.lora("one")]} if kind == "LorakitBakeLora" else {"share_of_B": 0.3}
    told = graph.text(graph.add(kind, **more, **inputs, prefix=f"checkpoints/{prefix}"))
    return comfy.base / "output" / "checkpoints" / f"{prefix}_00001_.safetensors", told


def storage(path):
    with open_source(path) as source:
        (key,) = (one for one in source.keys() if one.endswith(KEY))  # noqa: SIM118
        return source.storage(key)


@pytest.mark.parametrize("kind", ["LorakitBakeLora", "LorakitMergeCheckpoints"])
def test_a_storage_is_chosen_and_then_kept(comfy, kind):
    name, base = f"stored-{kind}", "checkpoint"
    models = {base: "flux.safetensors"}
    if kind == "LorakitMergeCheckpoints":
        base = "model_A"
        models = {base: "flux.safetensors", "model_B": "flux.safetensors"}
    path, told = written(comfy, kind, name, **models, storage="int8")
    assert storage(path) == "int8"
    assert "weights written as int8" in told
    chosen = {**models, base: path.name}
    kept, told = written(comfy, kind, f"{name}-kept", **chosen, rounding="stochastic")
    assert storage(kept) == "int8"
    assert "stored as the checkpoint has them" in told
    plain, _ = written(comfy, kind, f"{name}-plain", **chosen, dtype="bf16")
    assert storage(plain) == "bf16"
    graph = Graph(comfy)
    assert distance(*(graph.latent(graph.checkpoint(one.stem)) for one in (kept, plain))) < 0.1


def test_the_storages_that_nodes_offer_can_be_written():
    with standing_in():
        schema = importlib.import_module("lorakit.nodes.form.schema")
        assert set(schema.STORAGES[1:]) <= set(SCHEMES)
        assert len(schema.STORAGES) > 5
