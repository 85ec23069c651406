"""LoRA Block Sweep in a real ComfyUI: each item is what a rule by hand gives, drawn and labelled in one run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_server import GraphError
from graphs import Graph, distance

SAME = 2e-5


def sweep(graph: Graph, **given: Any) -> Any:
    return graph.add("LorakitBlockSweep", lora=graph.lora(), **given)


def drawn(graph: Graph, made: Any) -> list[Any]:
    """The latents of all its LoRAs."""
    applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=made)
    return latents(graph, applied)


def latents(graph: Graph, model: Any) -> list[Any]:
    """What a list of models makes, one after another."""
    batch = graph.add("RebatchLatents", latents=graph.sample(model), batch_size=64)
    return list(graph.tensor(batch))


def labels(graph: Graph, made: Any, output: int = 1) -> list[str]:
    shown = graph.add("PreviewAny", source=made[output])
    return graph.run()[shown]["text"]


def by_hand(comfy: Any, blocks: str) -> Any:
    graph = Graph(comfy)
    scaled = {"blocks": blocks}
    (latent,) = latents(
        graph,
        graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=graph.lora(), **scaled),
    )
    return latent


def test_each_is_the_lora_without_a_block(comfy: Any) -> None:
    graph = Graph(comfy)
    made = sweep(graph)
    names = labels(graph, made)
    assert names[0] == "all"
    assert {"D00 off", "S00 off"} <= set(names)
    found = drawn(graph, made)
    assert len(found) == len(names) >= 3
    for name, latent in zip(names, found, strict=True):
        wanted = by_hand(comfy, "ALL" if name == "all" else f"{name.removesuffix(' off')}=0")
        assert distance(latent, wanted) < SAME, name
    pairs = [distance(one, found[0]) for one in found[1:]]
    assert min(pairs) > 0.01, "each block does something"


def test_alone_by_section_and_at_a_strength(comfy: Any) -> None:
    graph = Graph(comfy)
    made = sweep(graph, mode="one alone", by="section", strength=0.25, with_whole=False)
    names = labels(graph, made)
    assert {"D alone", "S alone"} <= set(names)
    for name, latent in zip(names, drawn(graph, made), strict=True):
        blocks = f"ALL=0.25,{name.removesuffix(' alone')}=1"
        assert distance(latent, by_hand(comfy, blocks)) < SAME, name


def test_groups_and_lines(comfy: Any) -> None:
    graph = Graph(comfy)
    made = sweep(graph, groups="D00 S00,\nS", strength=0.5, with_whole=False)
    assert labels(graph, made) == ["D00 S00 at 0.5", "S at 0.5"]
    assert labels(graph, made, 2) == ["D00=0.5,S00=0.5", "S=0.5"]
    graph = Graph(comfy)
    lines = "FLUX-DBL-ALL\nMINE: D=A; A=0.3\nNOTHING:NONE"
    made = sweep(graph, mode="each line", groups=lines, with_whole=False)
    assert labels(graph, made) == ["FLUX-DBL-ALL", "MINE", "NOTHING"]
    found = drawn(graph, made)
    assert distance(found[0], by_hand(comfy, "S=0")) < SAME
    assert distance(found[1], by_hand(comfy, "D=0.3")) < SAME
    (plain,) = latents(graph := Graph(comfy), graph.checkpoint())
    assert torch.equal(found[2], plain), "a LoRA of nothing does nothing"


def test_its_texts_do_the_same_on_apply_lora(comfy: Any) -> None:
    graph = Graph(comfy)
    made = sweep(graph, groups="S00, D00")
    applied = graph.add(
        "LorakitApplyLora", model=graph.checkpoint(), lora=graph.lora(), blocks=made[2]
    )
    for one, other in zip(latents(graph, applied), drawn(graph, made), strict=True):
        assert distance(one, other) < SAME


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"groups": "D00, IN07"}, "no block `IN07` in this file"),
        ({"mode": "each line"}, "`groups` is empty; write strengths by block"),
        ({"mode": "each line", "groups": "OUTTALL"}, "unknown preset `OUTTALL`"),
    ],
)
def test_what_is_not_there_is_refused(comfy: Any, given: dict[str, Any], words: str) -> None:
    graph = Graph(comfy)
    made = sweep(graph, **given)
    with pytest.raises(GraphError) as failed:
        graph.text(made)
    assert words in str(failed.value)


def test_a_grid_has_each_picture_with_its_label(comfy: Any) -> None:
    graph = Graph(comfy)
    made = sweep(graph, groups="S00, D00")
    applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=made)
    vae = graph.add("VAELoader", vae_name="taesd.safetensors")
    images = graph.add("VAEDecode", samples=graph.sample(applied), vae=vae)
    told = graph.add("TextOverlay", images=images, text=made[1], font_size=20.0, position="bottom")
    size = {"columns": 2, "cell_width": 64, "cell_height": 64, "padding": 0}
    grids = [graph.add("ImageGrid", images=one, **size) for one in (images, told)]
    plain, labelled = (graph.tensor(one, "image")[0] for one in grids)
    assert plain.shape == (128, 128, 3)
    cells = [(0, 0), (0, 64), (64, 0)]
    for top, left in cells:
        change = (plain - labelled)[top : top + 64, left : left + 64].abs()
        assert change[32:].max() > 0.1, "a label at the bottom"
        assert change[:16].max() == 0
    assert labelled[64:, 64:].max() == 0, "three of four cells"
