"""How the merging nodes behave in a real ComfyUI: its cache, progress and Cancel."""

from __future__ import annotations

import os
import uuid

import pytest
import torch
from comfy_server import GraphError
from graphs import Graph, cancelled, first_steps
from safetensors.torch import load_file, save_file

A, B = "flux.safetensors", "edited-merge.safetensors"


@pytest.fixture
def edited(comfy):
    """A model that is written again, with a time of its own even on a clock that is coarse."""
    path = comfy.base / "models" / "checkpoints" / B
    tensors = load_file(path.with_name("flux-tuned.safetensors"))
    path.unlink(missing_ok=True)

    def write():
        before = path.stat().st_mtime_ns if path.exists() else 0
        save_file(tensors, path)
        os.utime(path, ns=(before + 10**9, before + 10**9))

    write()
    return write


def written(comfy):
    return set((comfy.base / "output" / "checkpoints").glob("again*.safetensors"))


def of_text(graph, recipe):
    return graph.add("LorakitMergeRecipe", recipe=recipe, prefix="checkpoints/again")


WAYS = {
    "files": lambda graph: graph.add(
        "LorakitMergeCheckpoints", model_A=A, model_B=B, prefix="checkpoints/again"
    ),
    "third": lambda graph: graph.add(
        "LorakitMergeCheckpoints",
        model_A=A,
        model_B="flux-tuned.safetensors",
        model_C=B,
        prefix="checkpoints/again",
    ),
    "named": lambda graph: graph.add(
        "LorakitMergeCheckpoints",
        model_A=A,
        model_B=graph.add("TestName", name=B),
        prefix="checkpoints/again",
    ),
    "text": lambda graph: of_text(graph, f'flux + 0.5*("{B}" - flux)'),
    "linked text": lambda graph: of_text(
        graph, graph.add("PrimitiveString", value=f'flux + 0.5*("{B}" - flux)')
    ),
    "loaded": lambda graph: graph.add(
        "LorakitLoadMergeRecipe", recipe=f'flux + 0.5*("{B}" - flux)'
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_merge_runs_again_once_an_input_changed_and_only_then(comfy, edited, way):
    """What it wrote itself, into a folder that is listed too, is no change."""
    graph = Graph(comfy)
    node = WAYS[way](graph)
    graph.text(node)
    files = written(comfy)
    assert node not in comfy.executed(graph.nodes)
    assert written(comfy) == files
    edited()
    assert node in comfy.executed(graph.nodes)
    assert len(written(comfy)) == len(files) + (way != "loaded")


def test_another_share_merges_again(comfy):
    graph = Graph(comfy)
    node = WAYS["files"](graph)
    graph.text(node)
    graph.nodes[node]["inputs"]["share_of_B"] = 0.25
    assert node in comfy.executed(graph.nodes)


def test_a_recipe_file_that_changed_is_read_again(comfy):
    path = comfy.base / "input" / "again.toml"
    path.parent.mkdir(exist_ok=True)
    line = "lorakit = 1\n[[step]]\nbase = 'flux.safetensors'\n"
    path.write_text(line)
    graph = Graph(comfy)
    node = graph.add("LorakitReadRecipe", file=path.name)
    graph.text(node)
    assert node not in comfy.executed(graph.nodes)
    path.write_text(f"{line}terms = [{{of = 'flux-tuned.safetensors', weight = 0.5}}]\n")
    assert node in comfy.executed(graph.nodes)
    assert "2 files" in graph.text(node)


def test_a_file_of_the_input_folder_is_none_of_anywhere_else(comfy):
    (comfy.base / "outside.toml").write_text("lorakit = 1\n")
    graph = Graph(comfy)
    node = graph.add("LorakitReadRecipe", file=graph.add("TestName", name="../outside.toml"))
    with pytest.raises(GraphError, match=r"no file '\.\./outside\.toml' in the input folder"):
        graph.text(node)


def test_progress_and_cancel_of_a_merge(comfy):
    generator = torch.Generator().manual_seed(0)
    names = [f"model.diffusion_model.blocks.{at}.ffn.0.weight" for at in range(60)]
    for name in ("slow-a", "slow-b", "slow-c"):
        made = {one: torch.randn(1024, 1024, generator=generator).half() for one in names}
        save_file(made, comfy.base / "models" / "checkpoints" / f"{name}.safetensors")
    graph = Graph(comfy)
    node = graph.add(
        "LorakitMergeCheckpoints",
        **{f"model_{one.upper()}": f"slow-{one}.safetensors" for one in "abc"},
        method="ties",
        prefix="checkpoints/cancelled",
    )
    number, steps = first_steps(comfy, graph, uuid.uuid4().hex)
    assert [one for one, _ in steps] == [node] * 3
    assert 0 <= steps[0][1] < steps[1][1] < steps[2][1] < 1
    cancelled(comfy, number)
    assert not list((comfy.base / "output").rglob("*cancelled*"))
