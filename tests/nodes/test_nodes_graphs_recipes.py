"""Recipes in a real ComfyUI: read from what was merged, run again, loaded; and what is said if they cannot be."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, UNET, Graph, distance, taesd, tuned, weights
from keys.checkpoints import clip, prefixed
from safetensors.torch import load_file, save_file

A, B, C = "flux.safetensors", "flux-tuned.safetensors", "flux-third.safetensors"
LINE = '"flux.safetensors" + 0.4*("flux-tuned.safetensors" - "flux-third.safetensors")'
SAME = 2e-5


@pytest.fixture(scope="module")
def three(comfy):
    """The server with a third model, and all of them."""
    folder = comfy.base / "models" / "checkpoints"
    started = weights(prefixed("model.diffusion_model.", FLUX))
    save_file(tuned(started, seed=6), folder / C)
    return comfy, [load_file(folder / name) for name in (A, B, C)]


def merge(graph, recipe, **inputs):
    return graph.add("LorakitMergeRecipe", recipe=recipe, **{"prefix": "checkpoints/r", **inputs})


def read(graph, file, **inputs):
    return graph.add("LorakitReadRecipe", file=file, **inputs)


def shown(graph, output):
    """Run it; an output as text."""
    node = graph.add("PreviewAny", source=output)
    return graph.run()[node]["text"][0]


def made(server, recipe, **inputs):
    """The merged file's content."""
    graph = Graph(server)
    return load_file(shown(graph, merge(graph, recipe, **inputs)[1]))


def close(tensor, wanted):
    return torch.allclose(tensor.double(), wanted.double(), rtol=1e-5, atol=1e-6)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "recipe",
    [
        LINE,
        LINE.replace("0.4", "$a"),
        'flux + 0.4*("flux-tuned" - "flux-third")',
        "CM flux-third + flux 1.0 _x\nCM flux + flux-tuned - flux-third 0.4 R",
        """
        lorakit = 1
        [files]
        a.name = "flux.safetensors"
        b.name = "flux-tuned.safetensors"
        c.name = "flux-third.safetensors"
        [[step]]
        base = "a"
        terms = [{of = "b", minus = "c", weight = 0.4}]
        """,
    ],
    ids=["line", "value", "stems", "plan", "toml"],
)
def test_a_recipe_becomes_its_file(three, recipe):
    comfy, (a, b, c) = three
    values = {"values": "a=0.4"} if "$a" in recipe else {}
    held = made(comfy, recipe, **values)
    assert held.keys() == a.keys()
    for key, tensor in held.items():
        assert close(tensor, a[key].double() + 0.4 * (b[key].double() - c[key].double())), key


def test_a_lora_in_a_line_is_baked(three):
    comfy, (a, _, _) = three
    held = made(comfy, "flux + 0.5*one")
    graph = Graph(comfy)
    baked = graph.add(
        "LorakitBakeLora",
        checkpoint=A,
        loras=[graph.lora()],
        strengths="0.5",
        prefix="checkpoints/by-bake",
    )
    wanted = load_file(shown(graph, baked[0]))
    assert all(close(held[key], wanted[key]) for key in held)
    key = "model.diffusion_model.img_in.weight"
    assert not close(held[key], a[key])


def test_a_merged_file_is_made_again_from_what_it_says(three):
    """Merge Checkpoints, Read Recipe, Merge Recipe: the same file, byte for byte of its tensors."""
    comfy, _ = three
    graph = Graph(comfy)
    first = graph.add(
        "LorakitMergeCheckpoints",
        model_A=A,
        model_B=B,
        model_C=C,
        share_of_B=0.3,
        share_of_C=0.6,
        method="ties",
        blocks="depth=0.2,1",
        where="txt=0",
        dtype="bf16",
        prefix="checkpoints/first",
        **{"method.density": 0.3},
    )
    text = read(graph, first[0])
    again = merge(graph, text[0], prefix="checkpoints/again")
    paths = [graph.add("PreviewAny", source=node[1]) for node in (first, again)]
    ran = graph.run()
    one, other = (load_file(ran[node]["text"][0]) for node in paths)
    assert same(one, other)
    assert not same(one, three[1][0])


def test_what_is_read_is_the_recipe_and_who_went_into_it(three):
    comfy, _ = three
    graph = Graph(comfy)
    first = merge(graph, '0.5*"flux" + 0.5*"flux-tuned"', prefix="checkpoints/parent")
    name = shown(graph, first[0])
    graph = Graph(comfy)
    second = merge(graph, f'"{name}" + 0.25*("flux-third" - "{name}")', prefix="checkpoints/child")
    text = read(graph, second[0])
    told = graph.text(text)
    head, *tree = told.splitlines()
    assert head == "done · child_00001_.safetensors: a recipe of lorakit, 1 step, 2 files"
    assert tree[0].startswith("child_00001_.safetensors, by lorakit: ")
    (parent,) = (line for line in tree if line.startswith(f"  {name} ("))
    assert ", by lorakit: " in parent
    assert [line.split(" (")[0] for line in tree if line.startswith("    ")] == [
        f"    {A}",
        f"    {B}",
    ]
    document = shown(graph, text[0])
    assert document.startswith("lorakit = 1\n")
    assert document.count("sha256 = ") == 2


def test_files_are_found_by_their_hash_under_other_names(three):
    comfy, _ = three
    folder = comfy.base / "models" / "checkpoints"
    graph = Graph(comfy)
    first = merge(graph, 'flux + 0.4*("flux-third" - flux)', prefix="checkpoints/renamed")
    document = shown(graph, read(graph, first[0])[0])
    shutil.move(folder / C, folder / "called otherwise.safetensors")
    try:
        graph = Graph(comfy)
        with pytest.raises(
            GraphError, match=r"1 file of the recipe missing: `flux-third.*was not "
        ):
            graph.text(merge(graph, document))
        held = made(comfy, document, by_hash=True)
    finally:
        shutil.move(folder / "called otherwise.safetensors", folder / C)
    assert same(held, made(comfy, document))


def test_a_name_that_two_files_have_is_told(three):
    comfy, _ = three
    folder = comfy.base / "models" / "checkpoints"
    (folder / "within").mkdir()
    graph = Graph(comfy)
    node = merge(graph, 'flux + 0.4*("flux-third" - flux)')
    assert "note: " not in graph.text(node)
    shutil.copy(folder / B, folder / "within" / C)
    try:
        told = graph.text(node)
    finally:
        shutil.rmtree(folder / "within")
    assert re.search(r"note: `flux-third` is known by its name alone: .*, the first of 2", told)


def test_another_file_of_the_name_is_not_taken(three):
    comfy, _ = three
    graph = Graph(comfy)
    first = merge(graph, 'flux + 0.4*("flux-third" - flux)', prefix="checkpoints/pinned")
    document = shown(graph, read(graph, first[0])[0])
    document = re.sub(r'(?<=sha256 = ")[0-9a-f]{4}', "0000", document, count=1)
    graph = Graph(comfy)
    with pytest.raises(
        GraphError, match=r"is there, but is another file: SHA-256 0000.* is wanted"
    ):
        graph.text(merge(graph, document))


def test_a_loaded_recipe_is_the_file_loaded(three):
    comfy, _ = three
    graph = Graph(comfy)
    loaded = graph.add("LorakitLoadMergeRecipe", recipe=LINE)
    latent = graph.latent(loaded)
    before = set((comfy.base / "output").rglob("*.safetensors"))
    written = Graph(comfy)
    name = merge(written, LINE)[0]
    wanted = written.latent(written.add("CheckpointLoaderSimple", ckpt_name=name))
    assert distance(latent, wanted) < SAME
    plain = Graph(comfy)
    assert distance(latent, plain.latent(plain.checkpoint())) > 0.01
    assert len(set((comfy.base / "output").rglob("*.safetensors")) - before) == 1


def test_a_loaded_recipe_gives_the_text_encoders_and_the_vae(three):
    """Those of the base, where the recipe says nothing else of them; the VAE's numbers are its very own."""
    comfy, _ = three
    folder = comfy.base / "models" / "checkpoints"
    layers = {key: shape for key, shape in clip(768, 1).items() if "embedding" not in key}
    shapes = prefixed("model.diffusion_model.", UNET) | prefixed("first_stage_model.", taesd(4))
    shapes |= prefixed("cond_stage_model.transformer.", layers)
    for seed in (1, 2):
        whole = {key: one.half() for key, one in weights(shapes, seed).items()}
        save_file(whole, folder / f"whole-{seed}.safetensors")
    graph = Graph(comfy)
    recipe = '"whole-1" + 0.5*("whole-2" - "whole-1")'
    loaded = graph.add("LorakitLoadMergeRecipe", recipe=recipe)
    graph.add("PreviewAny", source=graph.add("CLIPTextEncode", clip=loaded[1], text="a cat"))
    grey = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    first, base, other = (
        graph.tensor(graph.add("VAEEncode", pixels=grey, vae=one[2]))
        for one in (loaded, graph.checkpoint("whole-1"), graph.checkpoint("whole-2"))
    )
    assert torch.equal(first, base)
    assert not torch.equal(first, other)


def test_recipes_of_other_programs_say_what_is_lost(three):
    comfy, (a, b, _) = three
    folder = comfy.base / "input"
    folder.mkdir(exist_ok=True)
    (folder / "merge.yaml").write_text(
        "merge_method: linear\nmodels:\n"
        "  - model: flux.safetensors\n    parameters: {weight: 0.75}\n"
        "  - model: flux-tuned.safetensors\n    parameters: {weight: 0.25}\n"
        "tokenizer_source: union\n"
    )
    graph = Graph(comfy)
    text = read(graph, "merge.yaml")
    told = graph.text(text)
    assert told.startswith("warning · merge.yaml: a recipe of mergekit, 1 step, 2 files\n! ")
    assert "tokenizer" in told
    held = made(comfy, shown(graph, text[0]))
    assert all(close(held[key], 0.75 * a[key].double() + 0.25 * b[key].double()) for key in held)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("  ", "the recipe is empty; write a line, as in"),
        ('flux + 0.3*"flux-tuned"', "add up to 1.3, not to 1"),
        ("flux + 0.3*lora", "or put the files of LoRAs into models/loras"),
        ('"a/flux" + 0.3*(flux - sd1)', "looked for in the folders of ComfyUI's models"),
        ("flux + 0.3*(nowhere - flux)", "1 file of the recipe missing: `nowhere` was not found"),
        ("flux + $a*(flux - nowhere)", "no value for `$a`"),
        ("flux + 0.3*(sd1 - flux)", "nothing to merge: no weight of"),
        ("flux +", "a model or a number is missing at column 7"),
        ("[[step]]\nbase = 'A'", "begin it with `lorakit = 1`"),
        ("lorakit = 1\n[[step]]\nmethod = 'sum'", "has neither terms nor a base"),
        ("something\nelse", "no program is known that writes a recipe like this"),
        ("one + 0.5*two", "the last step gives a change, not a model"),
        (
            "lorakit = 1\n[output]\nkind = 'lora'\n[[step]]\nbase = 'flux.safetensors'",
            "the recipe gives a LoRA, and this node a model; take",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(three, recipe, told):
    comfy, _ = three
    before = set((comfy.base / "output").rglob("*"))
    for kind in ("LorakitMergeRecipe", "LorakitLoadMergeRecipe"):
        graph = Graph(comfy)
        node = graph.add(kind, recipe=recipe)
        with pytest.raises(GraphError, match=rf"^{kind}: ") as failed:
            graph.text(node)
        assert told in str(failed.value)
        assert "argument" not in str(failed.value)
    assert {one for one in (comfy.base / "output").rglob("*") if one.is_file()} <= before


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("a=much", "`a=much` in `values` is no name and number; write `a=0.3, b=0.5`"),
        ("a=0.3, b=1", "the recipe has no `$b`"),
        ("b", "`b` in `values` is no name and number"),
    ],
)
def test_values_that_are_none(three, values, told):
    graph = Graph(three[0])
    node = merge(graph, LINE.replace("0.4", "$a"), values=values)
    with pytest.raises(GraphError, match=re.escape(told)):
        graph.text(node)


def test_a_file_without_a_recipe(three):
    graph = Graph(three[0])
    with pytest.raises(GraphError, match=r"no recipe is recorded in this file: it is no merge"):
        graph.text(read(graph, A))
