"""Merge Models in graphs: samples of it, of the merged file, and of ComfyUI's own merge are one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from comfy_server import GraphError
from graphs import Graph, distance, lettered
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import merge_file, open_source, parse_line, plan_merge_file

#: Two ways to the same weights: the last digits of float32.
SAME = 2e-5
SHARE = 0.3


def checkpoints(comfy):
    return comfy.base / "models" / "checkpoints"


def merged(graph, models, clips=(), **inputs):
    """Merge Models on some MODELs."""
    given = {"share_of_B": SHARE, **inputs}
    return graph.add(
        "LorakitMergeModels", **lettered("model", models), **lettered("clip", clips, 1), **given
    )


def of_file(comfy, one, other):
    """What a file that lorakit merged of two makes, loaded by the host."""
    name = f"{one}-and-{other}"
    path = checkpoints(comfy) / f"{name}.safetensors"
    with contextlib.ExitStack() as stack:
        sources = {
            key: stack.enter_context(open_source(checkpoints(comfy) / f"{file}.safetensors"))
            for key, file in (("A", one), ("B", other))
        }
        recipe = parse_line(f"{1 - SHARE}*A + {SHARE}*B")
        merge_file(plan_merge_file(recipe, sources, output=path), path)
    graph = Graph(comfy)
    return graph.latent(graph.checkpoint(name))


@pytest.fixture(scope="module")
def halves(comfy):
    """The same checkpoints in fp16."""
    for name in ("flux", "flux-tuned"):
        state = load_file(checkpoints(comfy) / f"{name}.safetensors")
        half = {key: one.half() for key, one in state.items()}
        save_file(half, checkpoints(comfy) / f"{name}-half.safetensors")
    return ("flux-half", "flux-tuned-half")


def test_it_samples_as_the_merged_file_and_as_the_hosts_merge(comfy):
    graph = Graph(comfy)
    one, other = graph.checkpoint("flux"), graph.checkpoint("flux-tuned")
    latent = graph.latent(merged(graph, [one, other]))
    file = of_file(comfy, "flux", "flux-tuned")
    assert distance(latent, file) < SAME
    core = Graph(comfy)
    sides = {"model1": core.checkpoint("flux"), "model2": core.checkpoint("flux-tuned")}
    theirs = core.latent(core.add("ModelMergeSimple", **sides, ratio=1 - SHARE))
    assert distance(latent, theirs) < SAME
    plain = Graph(comfy)
    assert distance(latent, plain.latent(plain.checkpoint("flux"))) > 0.01  # twin
    wrong = Graph(comfy)
    sides = [wrong.checkpoint("flux"), wrong.checkpoint("flux-tuned")]
    assert distance(latent, wrong.latent(merged(wrong, sides, share_of_B=1 - SHARE))) > 0.01


def test_in_fp16_it_samples_as_the_merged_file_does(comfy, halves):
    graph = Graph(comfy)
    latent = graph.latent(merged(graph, [graph.checkpoint(name) for name in halves]))
    file = of_file(comfy, *halves)
    assert distance(latent, file) < 1e-3


def test_three_models_and_a_method(comfy):
    graph = Graph(comfy)
    models = [graph.checkpoint(name) for name in ("flux", "flux-tuned", "flux")]
    models[2] = graph.add(
        "LoraLoaderModelOnly",
        model=models[2],
        lora_name="one.safetensors",
        strength_model=1.0,
    )
    inputs = {"method": "add_difference", "share_of_B": 0.5}
    latent = graph.latent(merged(graph, models, **inputs))
    core = Graph(comfy)
    one, two = core.checkpoint("flux"), core.checkpoint("flux-tuned")
    three = core.add(
        "LoraLoaderModelOnly",
        model=core.checkpoint("flux"),
        lora_name="one.safetensors",
        strength_model=1.0,
    )
    less = core.add("ModelMergeSubtract", model1=two, model2=three, multiplier=0.5)
    theirs = core.latent(core.add("ModelMergeAdd", model1=one, model2=less))
    assert distance(latent, theirs) < 1e-4


def test_models_that_are_in_use(comfy):
    """Both were sampled before, with LoRAs, and are again afterwards."""
    graph = Graph(comfy)
    one = graph.add("LorakitApplyLora", model=graph.checkpoint("flux"), lora=graph.lora("one"))
    other = graph.add(
        "LorakitApplyLora", model=graph.checkpoint("flux-tuned"), lora=graph.lora("two")
    )
    before = [graph.latent(model) for model in (one, other)]
    latent = graph.latent(merged(graph, [one, other]))
    assert distance(latent, before[0]) > 0.01
    assert [torch.equal(graph.latent(m), b) for m, b in zip((one, other), before, strict=True)] == [
        True,
        True,
    ]
    core = Graph(comfy)
    one = core.add("LorakitApplyLora", model=core.checkpoint("flux"), lora=core.lora("one"))
    other = core.add("LorakitApplyLora", model=core.checkpoint("flux-tuned"), lora=core.lora("two"))
    theirs = core.latent(core.add("ModelMergeSimple", model1=one, model2=other, ratio=1 - SHARE))
    assert distance(latent, theirs) < SAME


def test_a_lora_on_the_merged_model(comfy):
    graph = Graph(comfy)
    model = merged(graph, [graph.checkpoint("flux"), graph.checkpoint("flux-tuned")])
    model = graph.add("LorakitApplyLora", model=model, lora=graph.lora("one"), strength_model=0.7)
    latent = graph.latent(model)
    core = Graph(comfy)
    sides = {"model1": core.checkpoint("flux"), "model2": core.checkpoint("flux-tuned")}
    model = core.add("ModelMergeSimple", **sides, ratio=1 - SHARE)
    lora = {"lora_name": "one.safetensors", "strength_model": 0.7}
    assert (
        distance(latent, core.latent(core.add("LoraLoaderModelOnly", model=model, **lora))) < SAME
    )


def test_text_encoders(comfy):
    def sides(graph):
        return [
            graph.add("TestLoadCheckpoint", ckpt_name=f"{name}.safetensors")
            for name in ("sd1", "sd1-tuned")
        ]

    def encoded(graph, clip):
        given = graph.add("CLIPTextEncode", clip=clip, text="a house")
        return graph.tensor(given, "conditioning")

    graph = Graph(comfy)
    both = sides(graph)
    made = merged(graph, both, both)
    text = encoded(graph, made[1])
    core = Graph(comfy)
    one, other = sides(core)
    theirs = core.add("CLIPMergeSimple", clip1=one[1], clip2=other[1], ratio=1 - SHARE)
    assert distance(text, encoded(core, theirs)) < SAME
    plain = Graph(comfy)
    assert distance(text, encoded(plain, sides(plain)[0][1])) > 0.01  # twin
    latent = graph.latent(made, "sd1")
    core = Graph(comfy)
    one, other = sides(core)
    theirs = core.add("ModelMergeSimple", model1=one[0], model2=other[0], ratio=1 - SHARE)
    assert distance(latent, core.latent(theirs, "sd1")) < SAME


def test_text_encoders_alone(comfy):
    graph = Graph(comfy)
    sides = [
        graph.add("TestLoadCheckpoint", ckpt_name=f"{name}.safetensors")
        for name in ("sd1", "sd1-tuned")
    ]
    made = merged(graph, [], sides)
    told = graph.text(made)
    assert told.startswith("done · weighted_sum of 2 models, in ")
    given = graph.add("CLIPTextEncode", clip=made[1], text="a house")
    core = Graph(comfy)
    one, other = (
        core.add("TestLoadCheckpoint", ckpt_name=f"{name}.safetensors")
        for name in ("sd1", "sd1-tuned")
    )
    theirs = core.add("CLIPMergeSimple", clip1=one[1], clip2=other[1], ratio=1 - SHARE)
    wanted = core.add("CLIPTextEncode", clip=theirs, text="a house")
    found, exact = graph.tensor(given, "conditioning"), core.tensor(wanted, "conditioning")
    assert distance(found, exact) < SAME


def test_swapped_parts(comfy):
    """A whole part is B itself; blocks are what ComfyUI's own node gives at its ends."""

    def latent(parts):
        graph = Graph(comfy)
        sides = {"model_A": graph.checkpoint("flux"), "model_B": graph.checkpoint("flux-tuned")}
        return graph.latent(graph.add("LorakitSwapParts", parts=parts, **sides))

    plain = Graph(comfy)
    tuned = plain.latent(plain.checkpoint("flux-tuned"))
    assert torch.equal(latent("unet"), tuned)
    core = Graph(comfy)
    models = {"model1": core.checkpoint("flux"), "model2": core.checkpoint("flux-tuned")}
    names = comfy.get("/object_info/ModelMergeFlux1")["ModelMergeFlux1"]["input"]["required"]
    values = {
        name: 0.0 if name == "double_blocks.0." else 1.0
        for name in names
        if not name.startswith("model")
    }
    theirs = core.latent(core.add("ModelMergeFlux1", **models, **values))
    assert distance(latent("D00"), theirs) < SAME
    assert distance(latent("D00"), tuned) > 0.01


def test_the_host_saves_it(comfy):
    graph = Graph(comfy)
    model = merged(graph, [graph.checkpoint("flux"), graph.checkpoint("flux-tuned")])
    graph.add("ModelSave", model=model, filename_prefix="merge/saved")
    graph.run()
    (path,) = (comfy.base / "output" / "merge").glob("saved*.safetensors")
    found = load_file(path)
    one, other = (
        load_file(checkpoints(comfy) / f"{name}.safetensors") for name in ("flux", "flux-tuned")
    )
    seen = 0
    for key, weight in found.items():
        file_key = key.replace("_norm.weight", "_norm.scale")
        exact = (1 - SHARE) * one[file_key].double() + SHARE * other[file_key].double()
        assert torch.allclose(weight.double(), exact, rtol=1e-5, atol=1e-7)
        seen += 1
    assert seen == len(one)


def test_by_block(comfy):
    """As ComfyUI's own node with a slider for each block of Flux."""
    graph = Graph(comfy)
    sides = [graph.checkpoint("flux"), graph.checkpoint("flux-tuned")]
    blocks = "D00=0.5,S00=0,IN=0,OUT=1"
    latent = graph.latent(merged(graph, sides, share_of_B=1.0, blocks=blocks))
    core = Graph(comfy)
    ratios = {"double_blocks.0.": 0.5, "single_blocks.0.": 1.0, "final_layer.": 0.0}
    models = {"model1": core.checkpoint("flux"), "model2": core.checkpoint("flux-tuned")}
    names = comfy.get("/object_info/ModelMergeFlux1")["ModelMergeFlux1"]["input"]["required"]
    values = {name: ratios.get(name, 1.0) for name in names if not name.startswith("model")}
    theirs = core.latent(core.add("ModelMergeFlux1", **models, **values))
    assert distance(latent, theirs) < SAME


def test_what_it_says(comfy):
    graph = Graph(comfy)
    told = graph.text(merged(graph, [graph.checkpoint("flux"), graph.checkpoint("flux-tuned")]))
    first, second, *rest = told.splitlines()
    assert first.startswith("done · weighted_sum of 2 models, in ")
    assert second == "share of B 0.3; computed in fp32 when they are used"
    assert rest == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("flux", "sd1"), "A is Flux.1 and B is Stable Diffusion 1"),
        (("flux",), "nothing arrives at `model_B`; connect two or more"),
    ],
)
def test_what_it_refuses(comfy, names, words):
    graph = Graph(comfy)
    models = [
        graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
        if name == "sd1"
        else graph.checkpoint(name)
        for name in names
    ]
    with pytest.raises(GraphError) as failed:
        graph.text(merged(graph, models))
    assert words in str(failed.value)
