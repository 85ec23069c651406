"""Other packs' nodes that ours take the place of, in a real ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import Graph

from lorakit.lora_ops import describe, open_source

OURS = {"LoraSave": "LorakitExtractAndSave", "LoraExtractKJ": "LorakitExtractAndSave"} | {
    "LoraReduceRankKJ": "LorakitResizeFile"
}
#: Widgets of the old nodes in the order in which saved graphs have their values.
WIDGETS = {
    "LoraSave": ["filename_prefix", "rank", "lora_type", "bias_diff"],
    "LoraExtractKJ": [
        *("filename_prefix", "rank", "lora_type", "algorithm", "lowrank_iters"),
        *("output_dtype", "bias_diff", "adaptive_param", "clamp_quantile"),
    ],
    "LoraReduceRankKJ": [
        *("lora_name", "new_rank", "dynamic_method", "dynamic_param", "output_dtype", "verbose"),
    ],
}


@pytest.fixture(scope="module")
def told(comfy: Any) -> dict[str, Any]:
    """By old node, its replacement."""
    found = comfy.get("/api/node_replacements")
    return {
        old: new[0] for old, new in found.items() if new[0]["new_node_id"].startswith("Lorakit")
    }


def test_these_nodes_can_be_replaced(told: dict[str, Any]) -> None:
    assert {old: new["new_node_id"] for old, new in told.items()} == OURS
    assert {old: new["old_widget_ids"] for old, new in told.items()} == WIDGETS


def test_every_entry_leads_to_an_input_and_all_that_are_needed_have_one(
    comfy: Any, told: dict[str, Any]
) -> None:
    for old, new in told.items():
        kind = new["new_node_id"]
        known = comfy.get(f"/object_info/{kind}")[kind]["input"]
        named = [entry["new_id"] for entry in new["input_mapping"]]
        assert len(set(named)) == len(named), old
        assert set(named) <= {*known["required"], *known["optional"]}, old
        assert set(known["required"]) <= set(named), old


def test_comfyuis_own_widgets_are_still_those(comfy: Any) -> None:
    known = comfy.get("/object_info/LoraSave")["LoraSave"]["input"]
    sockets = {"model_diff", "text_encoder_diff"}
    assert [name for name in known["required"] if name not in sockets] == WIDGETS["LoraSave"]
    assert set(known["optional"]) == sockets


def test_a_graph_with_a_node_that_is_not_there_runs_with_ours(comfy: Any) -> None:
    """The host replaces a missing node on its own; the file is where ours puts it."""
    graph = Graph(comfy)
    graph.nodes["1"] = {
        "class_type": "LoraReduceRankKJ",
        "inputs": {
            "lora_name": "one.safetensors",
            "new_rank": 1,
            "dynamic_method": "disabled",
            "dynamic_param": 0.2,
            "output_dtype": "match_original",
            "verbose": True,
        },
        "_meta": {"title": "LoraReduceRank"},
    }
    before = set((comfy.base / "output" / "loras").glob("resized*"))
    graph.run()
    (made,) = set((comfy.base / "output" / "loras").glob("resized*")) - before
    with open_source(made) as source:
        assert set(describe(source).ranks) == {1}


def test_an_extraction_of_kjnodes_runs_with_ours(comfy: Any) -> None:
    graph = Graph(comfy)
    tuned, base = graph.checkpoint("flux-tuned"), graph.checkpoint("flux")
    values = ["loras/kj", 3, "standard", "svd_lowrank", 7, "fp32", False, 0.15, False]
    inputs = dict(zip(WIDGETS["LoraExtractKJ"], values, strict=True))
    graph.nodes["9"] = {
        "class_type": "LoraExtractKJ",
        "inputs": {"finetuned": tuned[0], "original": base[0], **inputs},
    }
    for node in graph.nodes.values():
        node["_meta"] = {"title": ""}
    graph.run()
    (made,) = (comfy.base / "output" / "loras").glob("kj_*.safetensors")
    with open_source(made) as source:
        found = describe(source)
    assert set(found.dtypes) == {"float32"}
    assert max(found.ranks) == 3
