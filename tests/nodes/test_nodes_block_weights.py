"""Block Weights: the text is what the sliders, presets and gradients say, as the core reads it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_server import GraphError
from graphs import Graph, lettered
from host_double import standing_in
from object_info import SNAPSHOT

from lorakit.lora_ops.adapters.strengths.blocks import PRESETS, SCHEMES, locate
from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import ArgumentError

COUNTS = {"SDXL": 20, "SD1": 26, "Flux": 61}


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    with standing_in():
        yield


def module(name: str) -> Any:
    return importlib.import_module(f"lorakit.nodes.merge.{name}")


def by_block(model: str, **given: Any) -> dict[str, float]:
    sliders = dict.fromkeys(module("model_blocks").SLIDERS[model], 1.0) | given.pop("sliders", {})
    return module("model_blocks").by_block(model, sliders, **given)


def read_back(model: str, values: dict[str, float]) -> dict[str, float]:
    """What the core makes of the text, block by block."""
    names = module("model_blocks").layers(model)
    found = strengths(list(names.values()), blocks=module("model_blocks").as_numbers(values))
    return {label: found[name] for label, name in names.items()}


@pytest.mark.parametrize("model", COUNTS)
def test_there_is_a_layer_in_each_block_of_the_model(model: str) -> None:
    names = module("model_blocks").layers(model)
    located = locate(names.values())
    assert located is not None
    assert list(names) == [block.label for block in located.modules]
    assert tuple(names) == SCHEMES[COUNTS[model]].labels
    titles = {"SDXL": "Stable Diffusion XL", "SD1": "Stable Diffusion 1 and 2"}
    assert located.layout.title == titles.get(model, "a transformer")


@pytest.mark.parametrize("model", COUNTS)
def test_sliders_cover_each_block_once(model: str) -> None:
    seen: dict[str, int] = {}
    for slider in module("model_blocks").SLIDERS[model]:
        values = by_block(model, sliders={slider: 0.5})
        for label, value in values.items():
            seen[label] = seen.get(label, 0) + (value == 0.5)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("model", COUNTS)
def test_the_text_is_read_back_as_it_was_meant(model: str) -> None:
    last = module("model_blocks").SLIDERS[model][-2]
    values = by_block(model, sliders={last: 0.35}, gradient="0.2, 1.4, -0.3")
    assert read_back(model, values) == pytest.approx(values, abs=1e-4)
    assert len(set(values.values())) > 10


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_core_s(preset: str) -> None:
    values = by_block("SD1", preset=preset)
    assert list(values.values()) == pytest.approx(list(PRESETS[preset]))
    short = by_block("SDXL", preset=preset)
    assert short == pytest.approx({label: values[label] for label in short})


def test_all_presets_are_there() -> None:
    assert tuple(PRESETS) == module("block_weights").PRESETS


def test_slider_preset_and_gradient_are_multiplied_and_labels_come_last() -> None:
    given = {"preset": "OUTALL", "gradient": "0, 1", "labels": "OUT08=0.9, IN=0.1"}
    found = by_block("SDXL", sliders={"OUT02": 0.5, "BASE": 0.25}, **given)
    assert found["BASE"] == 0.25, "a gradient has no text encoders"
    assert found["OUT02"] == pytest.approx(0.5 * 12 / 18)
    assert found["OUT03"] == pytest.approx(13 / 18)
    assert found["M00"] == 0
    assert found["OUT08"] == 0.9
    assert {found[f"IN0{at}"] for at in range(9)} == {0.1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gradient": "0, x"}, "`x` in `depth=0, x` is not a finite number"),
        ({"labels": "IN12=0.5"}, "no block `IN12`"),
        ({"labels": "D00=0.5"}, "no block `D00`"),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ArgumentError) as failed:
        by_block("SDXL", **given)
    assert words in str(failed.value)


def test_any_other_model_has_a_gradient() -> None:
    sliders = dict(zip(module("model_blocks").SLIDERS["other"], (0, 0.5, 1, 1, 2), strict=True))
    assert module("model_blocks").as_gradient(sliders) == "depth=0,0.5,1,1,2"


def test_every_slider_is_one() -> None:
    node = json.loads(SNAPSHOT.read_text("utf-8"))["LorakitBlockWeights"]
    seen = 0
    for choice in node["input"]["required"]["model"][1]["options"]:
        for kind, options in choice["inputs"]["required"].values():
            if kind == "FLOAT":
                assert options["display"] == "slider"
                seen += 1
    assert seen == 20 + 26 + 14 + 5


# In a graph


def weights(graph: Graph, **given: Any) -> Any:
    return graph.add("LorakitBlockWeights", **given)


def test_the_text_goes_where_blocks_are_taken(comfy: Any) -> None:
    graph = Graph(comfy)
    made = weights(graph, model="SD1", **{"model.IN01": 0.5, "model.OUT00": 0.0})
    shown = graph.add("PreviewAny", source=made[0])
    models = [
        graph.add("TestLoadCheckpoint", ckpt_name=f"{name}.safetensors")
        for name in ("sd1", "sd1-tuned")
    ]
    applied = graph.add("LorakitMergeModels", blocks=made[0], **lettered("model", models))
    told = graph.text(applied)
    assert "times, by block: 1 in " in told
    assert "0.5 in IN01" in told
    assert "0 in OUT00" in told
    outputs = graph.run()
    assert outputs[shown]["text"][0] == ",".join(["1", "1", "0.5", *["1"] * 11, "0", *["1"] * 11])
    assert outputs[made]["text"][0].startswith(
        "done · Stable Diffusion 1 and 2: 26 strengths, 0 to 1"
    )
    assert len(outputs[made]["images"]) == 1


def test_another_choice_is_refused(comfy: Any) -> None:
    graph = Graph(comfy)
    made = weights(graph, model="SD9")
    with pytest.raises(GraphError) as failed:
        graph.text(made)
    assert "no such model; use one of SDXL, SD1, Flux, other" in str(failed.value)
