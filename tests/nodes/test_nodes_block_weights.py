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

from lorakit.lora_ops.adapters.strengths.blocks import BANDS, LABELLED, PRESETS, SCHEMES, locate
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
    found = module("model_blocks").by_block(model, sliders, **given)
    return {label: value for label, (value,) in found.items()}


def tuples(values: dict[str, float]) -> dict[str, tuple[float, ...]]:
    return {label: (value,) for label, value in values.items()}


def read_back(model: str, values: dict[str, float]) -> dict[str, float]:
    """What the core makes of the text, block by block."""
    names = module("model_blocks").layers(model)
    found = strengths(
        list(names.values()), blocks=module("model_blocks").as_numbers(tuples(values))
    )
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
    node = module("block_weights")
    assert tuple(PRESETS) == node.PRESETS
    assert tuple(BANDS) == node.BANDS
    assert tuple(LABELLED) == (*node.UNET_PRESETS, *node.FLUX_PRESETS)


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
    assert module("model_blocks").as_gradient(tuples(sliders)) == "depth=0,0.5,1,1,2"


def test_every_slider_is_one() -> None:
    node = json.loads(SNAPSHOT.read_text("utf-8"))["LorakitBlockWeights"]
    seen = 0
    for choice in node["input"]["required"]["model"][1]["options"]:
        for kind, options in choice["inputs"]["required"].values():
            if kind == "FLOAT":
                assert options["display"] == "slider"
                seen += 1
    assert seen == 20 + 26 + 14 + 5 + 10 + 5 + 5 + 5


# Lines, letters, other models


@pytest.mark.parametrize("model", ["Chroma", "Wan", "Qwen-Image", "Z-Image"])
def test_models_without_a_list_are_told_by_depth(model: str) -> None:
    names = module("model_blocks").layers(model)
    located = locate(names.values())
    assert located is not None
    assert list(names) == [block.label for block in located.modules]
    slider = module("model_blocks").SLIDERS[model][1]
    values = by_block(model, sliders={slider: 0.5}, preset="LAST-HALF", gradient="1, 2")
    text = module("model_blocks").as_text(model, tuples(values))
    found = strengths(list(names.values()), blocks=text)
    assert [found[name] for name in names.values()] == pytest.approx([*values.values()], abs=1e-4)
    assert len({*values.values()}) > 10


ATTENTION = "A,1,1,0.5,B,1,1,R,1,1,1,1,1,1,1,1,a"


def test_a_line_with_letters_is_what_the_core_reads() -> None:
    letters = module("model_blocks").Letters(0.4, -1.0, 5)
    found = by_block("SD1", line=f"MINE:{ATTENTION}", letters=letters)
    names = [one for label, one in module("model_blocks").layers("SD1").items() if found[label]]
    core = strengths(names, blocks=f"{ATTENTION}; A=0.4, B=-1, seed=5")
    labels = {name: label for label, name in module("model_blocks").layers("SD1").items()}
    assert len(core) == 17
    assert {labels[name]: value for name, value in core.items()} == {
        label: value for label, value in found.items() if value
    }
    assert (found["BASE"], found["IN05"], found["OUT11"], found["IN00"]) == (0.4, -1, 0.2, 0)


def test_a_line_is_taken_times_the_rest() -> None:
    both = by_block("SDXL", sliders={"OUT02": 0.5}, preset="OUTALL", line="%out2-3=0.25,base=2")
    assert (both["OUT00"], both["OUT01"], both["OUT02"]) == (1, 0.25, 0.125)
    assert (both["BASE"], both["IN03"]) == (2, 0)


def test_several_numbers_for_a_block_stay_several() -> None:
    blocks = module("model_blocks")
    given = ",".join(["1", "0.5 0.25", *["1"] * 18])
    sliders = dict.fromkeys(blocks.SLIDERS["SDXL"], 1.0) | {"IN00": 0.5}
    found = blocks.by_block("SDXL", sliders, line=given)
    assert found["IN00"] == (0.25, 0.125)
    assert blocks.as_numbers(found) == given.replace("0.5 0.25", "0.25 0.125")
    assert list(blocks.bars(found))[:3] == ["BASE", "IN00", "IN00.1"]
    assert blocks.inverted(found)["IN00"] == (0.75, 0.875)


LINES = "# mine\nONE:1,0,0\n\nTWO: OUTALL\njust words"


def test_one_of_many_lines_is_taken() -> None:
    line_of = module("model_blocks").line_of
    assert line_of(LINES) == "ONE:1,0,0"
    assert line_of(LINES, "TWO") == "TWO: OUTALL"
    assert line_of("1,0,1") == "1,0,1"
    assert line_of("") == ""
    with pytest.raises(ArgumentError, match="no line `THREE` in `lines`; there are ONE, TWO"):
        line_of(LINES, "THREE")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"line": "1,1,1"}, "no list has 3 numbers"),
        (
            {"line": ",".join("1" * 17)},
            "17 numbers are not for SDXL: lists for it have 12, 20, 21, 26",
        ),
        ({"labels": "IN04=0.1 0.2"}, "`0.1 0.2`: several numbers for a block are for a list"),
        ({"line": "OUT=R; A=1"}, "`R` in `OUT=R` is not a finite number"),
        ({"line": ",".join([*"1" * 9, "1", "0", "1", *"1" * 9])}, "M00 has different numbers"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ArgumentError) as failed:
        by_block("SDXL", **given)
    assert words in str(failed.value)


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


def test_a_line_letters_and_inversion_in_a_graph(comfy: Any) -> None:
    graph = Graph(comfy)
    lines = f"NO:1,1\nMINE:{','.join(['A', *'1' * 24, 'b'])}"
    made = weights(
        graph, model="SD1", lines=lines, line="MINE", letter_a=0.3, letter_b=0.5, invert=True
    )
    shown = graph.add("PreviewAny", source=made[0])
    outputs = graph.run()
    assert outputs[shown]["text"][0] == ",".join(["0.7", *["0"] * 24, "0.75"])
    assert "of the line `MINE:A," in outputs[made]["text"][0]
    picture = graph.tensor(made[1], "image")
    assert picture.shape[1:] == (300, 960, 3)
