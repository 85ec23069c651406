"""LoRA Loader (many) in a real ComfyUI: against a chain of the host's loaders, and row by row."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_server import GraphError
from graphs import CLIP, FLUX, UNET, Graph, distance, lora
from safetensors.torch import save_file

SAME = 2e-5
MODEL, CLIP_OUT, STACK, SUM, WORDS = range(5)


def write(server, name, tensors, metadata=None):
    path = server.base / "models" / "loras" / f"{name}.safetensors"
    save_file(tensors, path, metadata)
    return path


def loader(graph, rows, **inputs):
    return graph.add("LorakitLoraLoader", rows=rows, **inputs)


def chain(graph, *loras):
    """The host's own loaders, one after another, on the Flux checkpoint."""
    model = graph.checkpoint()
    for name, strength in loras:
        file = {"lora_name": f"{name}.safetensors", "strength_model": strength}
        model = graph.add("LoraLoaderModelOnly", model=model, **file)
    return graph.latent(model)


def shown(graph, output):
    node = graph.add("PreviewAny", source=output)
    return graph.run()[node]["text"][0]


def refused(graph, node):
    with pytest.raises(GraphError) as failed:
        graph.text(node)
    return str(failed.value)


@pytest.fixture(scope="module")
def encoded(comfy):
    """A LoRA of a UNet and of the text encoder that the test server gives it."""
    modules = [
        key.removeprefix("cond_stage_model.transformer.").removesuffix(".weight").replace(".", "_")
        for key in CLIP
        if key.endswith("q_proj.weight")
    ]
    for seed, name in enumerate(("encoded-a", "encoded-b")):
        generator = torch.Generator().manual_seed(seed)
        held = lora(UNET, seed=seed)
        for module in modules:
            held[f"lora_te1_{module}.lora_up.weight"] = torch.randn(32, 4, generator=generator)
            held[f"lora_te1_{module}.lora_down.weight"] = torch.randn(4, 32, generator=generator)
        write(comfy, name, held)


def test_rows_are_a_chain_of_the_hosts_loaders(comfy):
    graph = Graph(comfy)
    made = loader(graph, "one | 0.7\ntwo.safetensors | -0.4 | 1", model=graph.checkpoint())
    latent = graph.latent(made)
    assert torch.equal(latent, chain(Graph(comfy), ("one", 0.7), ("two", -0.4)))
    assert distance(latent, chain(Graph(comfy), ("one", 0.7))) > 0.01


def test_both_strengths_reach_what_they_are_for(comfy, encoded):
    rows = {"encoded-a": (0.6, 0.3), "encoded-b": (-0.5, 0.9)}
    graph = Graph(comfy)
    loaded = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
    text = "\n".join(f"{name} | {one} | {two}" for name, (one, two) in rows.items())
    made = loader(graph, text, model=loaded, clip=loaded[1])
    theirs = loaded[0], loaded[1]
    for name, (one, two) in rows.items():
        file = {"lora_name": f"{name}.safetensors", "strength_model": one, "strength_clip": two}
        node = graph.add("LoraLoader", model=theirs[0], clip=theirs[1], **file)
        theirs = node[0], node[1]
    assert torch.equal(graph.latent(made, "sd1"), graph.latent(theirs[0], "sd1"))

    def words(clip):
        encoding = graph.add("CLIPTextEncode", clip=clip, text="a red fox")
        return graph.tensor(encoding, "conditioning")

    assert torch.equal(words(made[CLIP_OUT]), words(theirs[1]))
    assert distance(words(made[CLIP_OUT]), words(loaded[1])) > 0.001, "a change that can be seen"
    told = graph.text(made)
    assert told.startswith("done · 2 LoRAs applied\nencoded-a.safetensors: ")
    assert "of CLIP at 0.3" in told


def test_a_row_has_blocks(comfy):
    graph, wanted = Graph(comfy), Graph(comfy)
    made = loader(graph, "one | 0.8 | | S00=0\ntwo | 0.5", model=graph.checkpoint())
    first = wanted.add(
        "LorakitApplyLora",
        model=wanted.checkpoint(),
        lora=wanted.lora("one"),
        strength_model=0.8,
        blocks="S00=0",
    )
    second = wanted.add(
        "LorakitApplyLora", model=first, lora=wanted.lora("two"), strength_model=0.5
    )
    latent = graph.latent(made)
    assert torch.equal(latent, wanted.latent(second))
    assert distance(latent, chain(Graph(comfy), ("one", 0.8), ("two", 0.5))) > 0.01
    told = graph.text(made)
    assert "other packs' nodes do not see them on the stack" in told
    summed = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=made[SUM])
    assert distance(graph.latent(summed), latent) < 1e-4


def test_a_row_that_is_off_is_not_opened(comfy):
    (comfy.base / "models" / "loras" / "damaged.safetensors").write_bytes(b"nothing of a file")
    graph = Graph(comfy)
    rows = "one | 0.7\n# damaged | 1\n  #no such file | 2\ndamaged | 0"
    made = loader(graph, rows, model=graph.checkpoint())
    assert torch.equal(graph.latent(made), chain(Graph(comfy), ("one", 0.7)))
    assert "damaged" not in graph.text(made)
    twin = Graph(comfy)
    told = refused(twin, loader(twin, "one\ndamaged", model=twin.checkpoint()))
    assert "the row of `damaged.safetensors`: " in told


def test_a_file_counts_where_its_row_is_on(comfy):
    folder = comfy.base / "models" / "loras"
    for name in ("counts", "counts-not"):
        write(comfy, name, lora(FLUX, seed=7))
    graph = Graph(comfy)
    made = loader(graph, "counts\n# counts-not", model=graph.checkpoint())
    graph.report(made)
    graph.run()
    assert made not in comfy.executed(graph.nodes)
    (folder / "counts-not.safetensors").touch()
    assert made not in comfy.executed(graph.nodes)
    (folder / "counts.safetensors").touch()
    assert made in comfy.executed(graph.nodes)


def test_a_number_from_another_node_is_a_rows_strength(comfy):
    def swept(value):
        graph = Graph(comfy)
        number = graph.add("PrimitiveFloat", value=value)
        sockets = {"strengths.strength_A": number, "strengths.strength_B": 0.25}
        made = loader(graph, "one | A\ntwo | b", model=graph.checkpoint(), **sockets)
        return graph.latent(made)

    for value in (0.5, -0.75):
        assert torch.equal(swept(value), chain(Graph(comfy), ("one", value), ("two", 0.25)))


def test_a_socket_and_a_row_that_miss_each_other(comfy):
    graph = Graph(comfy)
    told = refused(graph, loader(graph, "one | A", model=graph.checkpoint()))
    assert "the row of `one` takes strength A, and nothing arrives at `strength_A`" in told
    graph = Graph(comfy)
    made = loader(graph, "one | 1", model=graph.checkpoint(), **{"strengths.strength_A": 0.5})
    assert "strength_A is connected and no row takes it" in graph.text(made)


def test_a_script_gives_rows_as_rgthrees_loader_takes_them(comfy):
    given = {
        "PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"},
        "lora_1": {"on": True, "lora": "one.safetensors", "strength": 0.7},
        "lora_2": {"on": False, "lora": "no such file", "strength": 1},
        "lora_7": {"on": True, "lora": "two.safetensors", "strength": -0.4, "strengthTwo": None},
        "lora_9": {"on": True, "lora": None, "strength": 1},
        "\N{HEAVY PLUS SIGN} Add Lora": "",
    }
    graph = Graph(comfy)
    made = graph.add("LorakitLoraLoader", model=graph.checkpoint(), **given)
    assert torch.equal(graph.latent(made), chain(Graph(comfy), ("one", 0.7), ("two", -0.4)))
    (comfy.base / "models" / "loras" / "one.safetensors").touch()
    assert made in comfy.executed(graph.nodes)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("one\nonne.safetensors", "the row of `onne.safetensors`: no such file in models/loras; nearest: `one.safetensors`"),
        ("one | x", "the row of `one`: strength `x` is no finite number"),
        ("one | 1 | inf", "the row of `one`: strength `inf` is no finite number"),
        ("one | 1 | 1 | NOWHERE=1", "the row of `one.safetensors`: "),
        ("one | 1 | 1 | | 2", "the row of `one` has 5 parts"),
        ("unet-only", "the row of `unet-only.safetensors`: nothing of `unet-only.safetensors`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_of_that_row(comfy, rows, told):
    write(comfy, "unet-only", lora(UNET))
    graph = Graph(comfy)
    assert told in refused(graph, loader(graph, rows, model=graph.checkpoint()))


def test_layers_that_match_nothing_are_loud_in_every_row(comfy):
    module = "lora_unet_of_another_model"
    other = {f"{module}.lora_up.weight": torch.ones(8, 2)}
    other[f"{module}.lora_down.weight"] = torch.ones(2, 8)
    write(comfy, "more", lora(FLUX) | other)
    graph = Graph(comfy)
    told = graph.text(loader(graph, "one\nmore | 0.5", model=graph.checkpoint()))
    assert told.startswith("warning · 2 LoRAs applied\n! more.safetensors: 1 layer not applied: ")
    assert f"`{module}`" in told


def test_a_stack_goes_in_and_out(comfy):
    graph = Graph(comfy)
    before = graph.add("TestLoraStack", lora_name="one.safetensors", model=0.7, clip=0.2)
    made = loader(graph, "two | -0.4 | 0.1", lora_stack=before, model=graph.checkpoint())
    wanted = chain(Graph(comfy), ("one", 0.7), ("two", -0.4))
    assert torch.equal(graph.latent(made), wanted)
    rows = json.loads(shown(graph, made[STACK]))
    assert rows == [["one.safetensors", 0.7, 0.2], ["two.safetensors", -0.4, 0.1]]
    summed = graph.add("LorakitStackToLora", lora_stack=made[STACK])
    for one in (summed[0], made[SUM]):
        applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=one)
        assert distance(graph.latent(applied), wanted) < 1e-4
    hosts = graph.add("LoraModelLoader", model=graph.checkpoint(), lora=made[SUM], strength_model=1)
    assert distance(graph.latent(hosts), wanted) < 1e-4


def test_apply_takes_a_stack_beside_a_lora_or_in_its_place(comfy):
    graph = Graph(comfy)
    stack = loader(graph, "two | -0.4")[STACK]
    model = graph.checkpoint()
    alone = graph.add("LorakitApplyLora", model=model, lora_stack=stack)
    assert torch.equal(graph.latent(alone), chain(Graph(comfy), ("two", -0.4)))
    beside = graph.add(
        "LorakitApplyLora", model=model, lora=graph.lora(), strength_model=0.7, lora_stack=stack
    )
    wanted = chain(Graph(comfy), ("one", 0.7), ("two", -0.4))
    assert torch.equal(graph.latent(beside), wanted)
    assert graph.text(beside).startswith("done · 2 LoRAs applied\none.safetensors: ")
    empty = graph.add("LorakitApplyLora", model=model, lora_stack=loader(graph, "")[STACK])
    assert graph.text(empty) == "the stack is empty: nothing to apply"
    neither = Graph(comfy)
    told = refused(neither, neither.add("LorakitApplyLora", model=neither.checkpoint()))
    assert "nothing arrives at `lora`; connect it, or a `lora_stack`" in told


def test_a_model_and_a_stack_of_one_loader_are_twice_the_same(comfy):
    graph = Graph(comfy)
    first = loader(graph, "one | 0.5", model=graph.checkpoint())
    second = loader(graph, "two", model=first, lora_stack=first[STACK])
    told = graph.text(second)
    assert "! one.safetensors: is on this model already" in told
    fine = loader(graph, "two", model=graph.checkpoint(), lora_stack=first[STACK])
    assert "already" not in graph.text(fine)


def test_the_sum_is_made_where_it_is_used(comfy):
    """A LoRA whose change does not add up is in nobody's way who does not ask for the sum."""
    held = lora(FLUX)
    scales = {
        key.replace(".lora_up.weight", ".dora_scale"): torch.ones(len(one), 1)
        for key, one in held.items()
        if key.endswith(".lora_up.weight")
    }
    write(comfy, "dora", held | scales)
    graph = Graph(comfy)
    made = loader(graph, "dora | 0.5\none", model=graph.checkpoint())
    assert graph.text(made).startswith("done · 2 LoRAs applied")
    told = refused(graph, graph.add("LorakitScaleLora", lora=made[SUM]))
    assert "DoRA" in told


def test_trigger_words_of_the_rows_that_are_on(comfy):
    folder = comfy.base / "models" / "loras"
    write(comfy, "phrase", lora(FLUX), {"modelspec.trigger_phrase": "in the style of X, hat"})
    tags = json.dumps({"5_set": {"sks person": 9, "hat": 2}, "other": {"hat": 3}})
    write(comfy, "tags", lora(FLUX), {"ss_tag_frequency": tags})
    write(comfy, "sidecar", lora(FLUX))
    (folder / "sidecar.json").write_text(json.dumps({"activation text": "pixel art"}))
    graph = Graph(comfy)
    made = loader(graph, "phrase\ntags\nsidecar | 0.5\n# one")
    assert shown(graph, made[WORDS]) == "in the style of X, hat, sks person, pixel art"
    assert shown(graph, loader(graph, "sidecar | 0")[WORDS]) == ""
