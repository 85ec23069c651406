"""Files that graphs write in a real ComfyUI: true, complete, and read back by the host's loaders."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import struct

import pytest
import torch
from comfy_server import GraphError
from graphs import ABOUT, Graph, distance, weights
from graphs import lora as lora_of
from keys.checkpoints import prefixed, unet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import open_source
from lorakit.lora_ops.inspect.lint import lint

SAME = 2e-5


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def data_hash(path):
    """SHA-256 of a safetensors file without its header, which A1111 calls its model hash."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


@pytest.fixture
def loras(comfy):
    """Where saved LoRAs lie."""
    return comfy.base / "output" / "loras"


def save(graph, lora, prefix, **inputs):
    return graph.add("LorakitSaveLora", lora=lora, prefix=f"loras/{prefix}", **inputs)


def saved(server, prefix, **inputs):
    graph = Graph(server)
    save(graph, graph.lora(), prefix, **inputs)
    graph.run()
    return server.base / "output" / "loras" / f"{prefix}_00001_.safetensors"


def core(server, name, **inputs):
    """The host's loader of a LoRA, from its list by name."""
    graph = Graph(server)
    file = {"lora_name": f"{name}.safetensors", **inputs}
    return graph.latent(graph.add("LoraLoaderModelOnly", model=graph.checkpoint(), **file))


def test_what_is_saved_is_what_was_loaded(comfy):
    path = saved(comfy, "whole")
    started = load_file(comfy.base / "models" / "loras" / "one.safetensors")
    held = load_file(path)
    assert held.keys() == started.keys()
    assert all(torch.equal(held[key], started[key]) for key in held)
    about = metadata(path)
    assert about["sshs_model_hash"] == data_hash(path)
    assert about["ss_output_name"] == path.stem
    assert {key: about[key] for key in ABOUT if key != "ss_output_name"} == {
        key: ABOUT[key] for key in ABOUT if key != "ss_output_name"
    }


def test_a_result_says_what_it_was_made_of(comfy, loras):
    graph = Graph(comfy)
    added = graph.add(
        "LorakitAddLoras", loras=[graph.lora("one"), graph.lora("two")], strengths="1, 0.5"
    )
    save(graph, added, "sum")
    graph.run()
    path = loras / "sum_00001_.safetensors"
    about = metadata(path)
    assert about["sshs_model_hash"] == data_hash(path)
    told = " ".join(value for key, value in about.items() if key.startswith("lorakit."))
    for name in ("one", "two"):
        source = comfy.base / "models" / "loras" / f"{name}.safetensors"
        assert f"{name}.safetensors" in told
        assert hashlib.sha256(source.read_bytes()).hexdigest() in told
    assert str(comfy.base) not in told, "a path is nobody else's business"


def test_saved_is_listed_and_loads_as_applied(comfy):
    graph = Graph(comfy)
    half = graph.add("LorakitScaleLora", lora=graph.lora(), strength=0.5, where="mlp=0.2")
    save(graph, half, "half")
    graph.run()
    applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=half)
    assert "half_00001_.safetensors" in comfy.get("/models/loras")
    assert distance(core(comfy, "half_00001_"), graph.latent(applied)) < SAME


def test_names_are_numbered_and_nothing_is_overwritten(comfy, loras):
    first = saved(comfy, "numbered")
    before = first.read_bytes()
    graph = Graph(comfy)
    save(graph, graph.lora("two"), "numbered")
    graph.run()
    assert first.read_bytes() == before
    assert (loras / "numbered_00002_.safetensors").is_file()
    assert sorted(one.name for one in loras.glob("*numbered*")) == [
        "numbered_00001_.safetensors",
        "numbered_00002_.safetensors",
    ], "no file that was not finished"


def test_permissions_are_the_umasks(comfy):
    made = stat.S_IMODE(saved(comfy, "permissions").stat().st_mode)
    other = comfy.base / "ordinary"
    other.touch()
    assert made == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_dtypes(comfy, dtype):
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    path = saved(comfy, f"as-{dtype}", dtype=dtype)
    stored = load_file(path)
    assert {t.dtype for key, t in stored.items() if "lora" in key} == {kinds[dtype]}
    near = {"fp16": 1e-3, "bf16": 1e-2, "fp32": SAME}[dtype]
    assert distance(core(comfy, path.stem), core(comfy, "one")) < near


@pytest.mark.parametrize("scheme", ["kohya", "comfy", "diffusers"])
def test_formats_load_in_the_host_all_the_same(comfy, scheme):
    path = saved(comfy, f"in-{scheme}", format=scheme)
    start = {"kohya": "lora_unet_", "comfy": "diffusion_model.", "diffusers": "transformer."}
    assert all(key.startswith(start[scheme]) for key in load_file(path))
    assert distance(core(comfy, path.stem), core(comfy, "one")) < SAME


def test_a_saved_file_tells_which_programs_load_it_in_the_words_of_lint(comfy):
    for scheme in ("comfy", "diffusers"):
        graph = Graph(comfy)
        told = graph.text(save(graph, graph.lora(), f"told-{scheme}", format=scheme))
        (path,) = (comfy.base / "output" / "loras").glob(f"told-{scheme}_*")
        with open_source(path) as source:
            verdicts = {one.title: one.summary for one in lint(source).verdicts}
        assert len(verdicts) == 4
        line = told.splitlines()[1]
        for title, summary in verdicts.items():
            # Programs of which the same is true share the words.
            assert re.search(rf"{re.escape(title)}[^;:]*: {re.escape(summary)}(;|$)", line)


def test_what_comfyui_does_not_load_is_a_warning(comfy):
    """Names of diffusers for Wan, which only diffusers and our nodes know."""
    shapes = {
        f"blocks.{at}.self_attn.{part}.weight": (64, 64) for at in range(30) for part in "qkvo"
    }
    path = comfy.base / "models" / "loras" / "wan.safetensors"
    save_file(lora_of(shapes), path)
    graph = Graph(comfy)
    told = graph.text(save(graph, graph.lora("wan"), "for-diffusers", format="diffusers"))
    head, line = told.splitlines()
    assert head.startswith("warning · for-diffusers_00001_.safetensors: ")
    assert re.match(r"! ComfyUI[^:;]*: 0 of 120 layers load; diffusers[^:;]*: 120 of 120 ", line)
    graph = Graph(comfy)
    told = graph.text(save(graph, graph.lora("wan"), "for-comfy", format="comfy"))
    assert told.startswith("done · ")


@pytest.mark.parametrize("scheme", ["kohya", "comfy", "diffusers", "peft"])
def test_converted_is_the_same_lora(comfy, scheme):
    graph = Graph(comfy)
    made = graph.add("LorakitConvertLora", lora=graph.lora(), format=scheme)
    back = graph.add("LorakitConvertLora", lora=made, format="comfy")
    wanted = core(comfy, "one")
    for lora in (made, back):
        applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=lora)
        assert distance(graph.latent(applied), wanted) < SAME


def test_block_numbers_of_a_pruned_unet_come_from_the_model(comfy):
    """One block a level, as BK-SDM has: kohya's numbers mean other blocks than in the whole model."""
    shapes = unet(768, [1, 1], blocks=1)
    folder = comfy.base / "models"
    started = weights(prefixed("model.diffusion_model.", shapes))
    save_file(started, folder / "checkpoints" / "pruned.safetensors")
    attentions = {key: shape for key, shape in shapes.items() if ".attn" in key}
    save_file(lora_of(attentions), folder / "loras" / "pruned.safetensors")

    def applied(graph, made):
        model = graph.add("LorakitApplyLora", model=graph.checkpoint("pruned"), lora=made)
        return graph.latent(model, like="sd1")

    def converted(graph):
        reference = graph.checkpoint("pruned")
        file = {"lora": graph.lora("pruned"), "reference": reference}
        return reference, graph.add("LorakitConvertLora", format="kohya", **file)

    known = Graph(comfy)
    reference, there = converted(known)
    back = known.add("LorakitConvertLora", lora=there, format="comfy", reference=reference)
    plain = Graph(comfy)
    wanted = applied(plain, plain.lora("pruned"))
    assert distance(applied(known, there), wanted) < SAME, "as the host reads kohya's names"
    assert distance(applied(known, back), wanted) < SAME


@pytest.mark.parametrize(
    "prefix", ["../outside", "loras/../../outside", "/outside", "..", "loras/.."]
)
@pytest.mark.parametrize("kind", ["LorakitSaveLora", "LorakitBakeLora", "LorakitLoraToStack"])
def test_nothing_is_written_outside_the_output_folder(comfy, kind, prefix):
    before = {path for path in comfy.base.rglob("*") if path.suffix == ".safetensors"}
    graph = Graph(comfy)
    inputs = {
        "LorakitSaveLora": {"lora": graph.lora()},
        "LorakitBakeLora": {"loras": [graph.lora()], "checkpoint": "flux.safetensors"},
        "LorakitLoraToStack": {"lora": graph.lora()},
    }
    node = graph.add(kind, **inputs[kind], prefix=prefix)
    with pytest.raises(GraphError, match="leads out of the output folder; give a name, or folders"):
        graph.text(node)
    assert {path for path in comfy.base.rglob("*") if path.suffix == ".safetensors"} == before


@pytest.mark.parametrize("dtype", ["as input", "fp16"])
def test_baked_is_applied(comfy, dtype):
    graph = Graph(comfy)
    both = [graph.lora("one"), graph.lora("two")]
    name = f"baked-{dtype.split()[0]}"
    graph.add(
        "LorakitBakeLora",
        checkpoint="flux.safetensors",
        loras=both,
        strengths="0.8, -0.3",
        prefix=f"checkpoints/{name}",
        dtype=dtype,
    )
    model = graph.checkpoint()
    for lora, strength in zip(both, (0.8, -0.3), strict=True):
        model = graph.add("LorakitApplyLora", model=model, lora=lora, strength_model=strength)
    wanted = graph.latent(model)
    loaded = Graph(comfy)
    latent = loaded.latent(loaded.checkpoint(f"{name}_00001_"))
    assert distance(latent, wanted) < (SAME if dtype == "as input" else 2e-3)
    path = comfy.base / "output" / "checkpoints" / f"{name}_00001_.safetensors"
    assert metadata(path)["lorakit.version"]


def test_a_stack_of_names_becomes_one_lora(comfy):
    graph = Graph(comfy)
    first = graph.add("TestLoraStack", lora_name="one.safetensors", model=0.7, clip=0.1)
    both = graph.add(
        "TestLoraStack", lora_name="two.safetensors", model=-0.4, clip=0.1, lora_stack=first
    )
    lora = graph.add("LorakitStackToLora", lora_stack=both)
    latent = graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=lora))
    loaded = Graph(comfy)
    model = loaded.checkpoint()
    for name, strength in (("one", 0.7), ("two", -0.4)):
        file = {"lora_name": f"{name}.safetensors", "strength_model": strength}
        model = loaded.add("LoraLoaderModelOnly", model=model, **file)
    assert distance(latent, loaded.latent(model)) < SAME


def test_a_lora_joins_a_stack_and_comes_back(comfy):
    graph = Graph(comfy)
    first = graph.add("TestLoraStack", lora_name="two.safetensors", model=0.5, clip=0.5)
    stacked = graph.add(
        "LorakitLoraToStack",
        lora=graph.lora("one"),
        strength_model=0.25,
        prefix="loras/stacked",
        lora_stack=first,
    )
    rows = graph.add("PreviewAny", source=stacked)
    back = graph.add("LorakitStackToLora", lora_stack=stacked)
    latent = graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=back))
    shown = graph.run()[rows]["text"][0]
    before, (name, *strengths) = json.loads(shown)
    assert before == ["two.safetensors", 0.5, 0.5]
    assert re.fullmatch(r"stacked_[0-9a-f]{12}\.safetensors", name)
    assert strengths == [0.25, 1.0]
    both = [graph.lora("two"), graph.lora("one")]
    added = graph.add("LorakitAddLoras", loras=both, strengths="0.5, 0.25")
    wanted = graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=added))
    assert distance(latent, wanted) < SAME


def test_nodes_that_save_by_themselves_write_what_two_nodes_do(comfy, loras):
    graph = Graph(comfy)
    resized = graph.add("LorakitResizeLora", lora=graph.lora(), rank=2)
    save(graph, resized, "two-nodes")
    graph.add("LorakitResizeFile", lora_name="one.safetensors", rank=2, prefix="loras/one-node")
    pair = {"tuned": graph.checkpoint("flux-tuned"), "base": graph.checkpoint(), "rank": 2}
    save(graph, graph.add("LorakitExtractLora", **pair), "two-extracting")
    graph.add("LorakitExtractAndSave", **pair, prefix="loras/one-extracting")
    graph.run()
    for one, two in (("one-node", "two-nodes"), ("one-extracting", "two-extracting")):
        path = loras / f"{one}_00001_.safetensors"
        made, wanted = load_file(path), load_file(loras / f"{two}_00001_.safetensors")
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[key], wanted[key]) for key in made), one
        assert metadata(path)["sshs_model_hash"] == data_hash(path)
