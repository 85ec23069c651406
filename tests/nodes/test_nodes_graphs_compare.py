"""Compare LoRAs of several in a real ComfyUI: the numbers of the command line, and what is said of them."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_server import GraphError
from commands import lorakit_here
from graphs import FLUX, UNET, Graph, lora
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def server(comfy):
    """The server with a third LoRA, a version of the first, and one for another model."""
    folder = comfy.base / "models" / "loras"
    one = lora(FLUX, 4, 1)
    near = {
        key: value + 0.03 * torch.randn_like(value) * key.endswith("up.weight")
        for key, value in one.items()
    }
    save_file(near, folder / "near.safetensors")
    save_file(lora(UNET), folder / "unet.safetensors")
    return comfy


def compared(server, *names, **inputs):
    """A graph with the node; the node."""
    graph = Graph(server)
    first, second, *more = [graph.lora(name) for name in names]
    sockets = {"loras": more} if more else {}
    return graph, graph.add("LorakitCompareLoras", first=first, second=second, **sockets, **inputs)


def shown(graph, node, output):
    """What an output of the node is, as text."""
    told = graph.add("PreviewAny", source=node[output])
    return graph.run()[told]["text"][0]


@pytest.mark.parametrize(
    "names", [("one", "two"), ("one", "near", "two"), ("two", "one", "near", "one")]
)
def test_the_numbers_are_the_command_lines(server, names, tmp_path):
    folder = server.base / "models" / "loras"
    told = tmp_path / "told.json"
    paths = (folder / f"{name}.safetensors" for name in names)
    assert lorakit_here("compare", *paths, "--json", told).status == 0
    wanted, found = json.loads(told.read_text()), json.loads(shown(*compared(server, *names), 2))
    for name in ("names", "name"):
        wanted.pop(name, None)
        found.pop(name, None)
    assert found == wanted
    assert len(found["layers"]) > 10


def test_what_is_said_of_three(server):
    graph, node = compared(server, "one", "near", "two", share=0.5)
    numbers = json.loads(shown(graph, node, 2))
    told = graph.text(node)
    assert told.startswith("done · 3 LoRAs, ")
    assert f"A·B  {numbers['cosines'][0][1]:.4f}; " in told
    assert f"times what unrelated changes would give, {numbers['of_parallel']:.3f} times" in told
    assert numbers["share"] == 0.5
    assert numbers["cosines"][0][1] > 0.5 > abs(numbers["cosines"][0][2])
    assert "cosines by block A·B" in told
    assert "D00" in told


def test_the_picture_of_three_is_another_one(server):
    def picture(*names):
        graph, node = compared(server, *names)
        return graph.tensor(node, "image")

    three = picture("one", "near", "two")
    assert three.shape[-1] == 3
    assert three.std() > 0.05
    assert three.shape != picture("one", "near").shape


def test_a_third_for_another_model_is_refused(server):
    graph, node = compared(server, "one", "two", "unet")
    graph.add("PreviewAny", source=node[1])
    with pytest.raises(GraphError, match=r"are for different models|is for .*: their changes"):
        graph.run()
