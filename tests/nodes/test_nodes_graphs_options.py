"""What nodes of files take beside a LoRA, as the commands do: base models, formats, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, Graph, distance, lora
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import describe, open_source

SAME = 2e-5


@pytest.fixture(scope="module")
def dora(comfy: Any) -> str:
    """A LoRA whose layers are normalised and scaled: they are made from the base's weights."""
    made = lora(FLUX, rank=6)
    for key, tensor in list(made.items()):
        if key.endswith(".lora_up.weight"):
            generator = torch.Generator().manual_seed(len(made))
            scale = 1 + 0.1 * torch.randn(len(tensor), 1, generator=generator)
            made[key.replace(".lora_up.weight", ".dora_scale")] = scale
    save_file(made, comfy.base / "models" / "loras" / "dora.safetensors")
    return "dora"


def written(graph: Graph, node: Any) -> Path:
    shown = graph.add("PreviewAny", source=node[0])
    return Path(graph.run()[shown]["text"][0])


def test_dora_is_resized_with_its_base(comfy: Any, dora: str) -> None:
    graph = Graph(comfy)
    resized = graph.add("LorakitResizeLora", lora=graph.lora(dora), rank=3, base=graph.checkpoint())
    node = graph.add("LorakitSaveLora", lora=resized)
    path = written(graph, node)
    with open_source(path) as source:
        about = describe(source)
    assert set(about.ranks) == {3}
    assert any(key.endswith("dora_scale") for key in load_file(path))
    graph = Graph(comfy)
    node = graph.add(
        "LorakitResizeFile", lora_name="dora.safetensors", rank=3, base=graph.checkpoint()
    )
    of_file, of_socket = load_file(written(graph, node)), load_file(path)
    assert of_file.keys() == of_socket.keys()
    assert all(torch.equal(one, of_socket[key]) for key, one in of_file.items())


def test_without_its_base_the_message_names_the_input(comfy: Any, dora: str) -> None:
    graph = Graph(comfy)
    node = graph.add("LorakitResizeLora", lora=graph.lora(dora), rank=3)
    with pytest.raises(GraphError) as failed:
        graph.text(node)
    assert "`base`" in str(failed.value)


def test_a_budget_is_compared_with_the_weights(comfy: Any) -> None:
    def ranks(**given: Any) -> dict[str, Any]:
        graph = Graph(comfy)
        if given:
            given = {"relative_to": graph.checkpoint()}
        made = graph.add("LorakitResizeLora", lora=graph.lora(), rule="mean=2", **given)
        found = load_file(written(graph, graph.add("LorakitSaveLora", lora=made)))
        return {key: len(one) for key, one in found.items() if key.endswith("lora_down.weight")}

    assert ranks() != ranks(relative_to=True)


def test_saved_for_peft(comfy: Any) -> None:
    graph = Graph(comfy)
    path = written(graph, graph.add("LorakitSaveLora", lora=graph.lora(), format="peft"))
    with open_source(path) as source:
        assert describe(source).format == "peft"
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(path))


def test_a_sum_in_another_format_and_dtype(comfy: Any) -> None:
    def added(graph: Graph, **given: Any) -> Any:
        both = [graph.lora("one"), graph.lora("two")]
        return graph.add("LorakitAddLoras", loras=both, method="sum", **given)

    graph = Graph(comfy)
    made = added(graph, format="kohya", dtype="bf16", reference=graph.checkpoint())
    found = load_file(written(graph, graph.add("LorakitSaveLora", lora=made)))
    factors = {one.dtype for key, one in found.items() if key.endswith(".weight")}
    assert factors == {torch.bfloat16}
    assert all(key.startswith("lora_unet_") for key in found)

    def latent(**given: Any) -> Any:
        graph = Graph(comfy)
        lora = added(graph, **given)
        return graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=lora))

    assert distance(latent(format="kohya"), latent()) < SAME
