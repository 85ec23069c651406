"""Checkpoints that nodes write with scales, in a real ComfyUI: chosen, kept, and loaded again."""

from __future__ import annotations

import importlib
import subprocess

import comfy_host
import pytest
from comfy_server import GraphError
from graphs import Graph, distance
from host_double import standing_in

from lorakit.lora_ops import open_source
from lorakit.lora_ops.files.quantised.storages import SCHEMES

KEY = "double_blocks.0.img_attn.proj.weight"


def written(comfy, kind, prefix, **inputs):
    """Run a node that writes a checkpoint; its file, and what it says."""
    graph = Graph(comfy)
    more = {"loras": [graph.lora("one")]} if kind == "LorakitBakeLora" else {"share_of_B": 0.3}
    told = graph.text(graph.add(kind, **more, **inputs, prefix=f"checkpoints/{prefix}"))
    (path,) = (comfy.base / "output" / "checkpoints").glob(f"{prefix}_00001_.*")
    return path, told


def storage(path):
    with open_source(path) as source:
        (key,) = (one for one in source.keys() if one.endswith(KEY))  # noqa: SIM118
        return source.storage(key)


@pytest.mark.parametrize("kind", ["LorakitBakeLora", "LorakitMergeCheckpoints"])
def test_a_storage_is_chosen_and_then_kept(comfy, kind):
    name, base = f"stored-{kind}", "checkpoint"
    models = {base: "flux.safetensors"}
    if kind == "LorakitMergeCheckpoints":
        base = "model_A"
        models = {base: "flux.safetensors", "model_B": "flux.safetensors"}
    path, told = written(comfy, kind, name, **models, storage="int8")
    assert storage(path) == "int8"
    assert "weights written as int8" in told
    chosen = {**models, base: path.name}
    kept, told = written(comfy, kind, f"{name}-kept", **chosen, rounding="stochastic")
    assert storage(kept) == "int8"
    assert "stored as the checkpoint has them" in told
    plain, _ = written(comfy, kind, f"{name}-plain", **chosen, dtype="bf16")
    assert storage(plain) == "bf16"
    graph = Graph(comfy)
    assert distance(*(graph.latent(graph.checkpoint(one.stem)) for one in (kept, plain))) < 0.1


@pytest.mark.parametrize("to", ["fp8", "fp8_legacy", "nf4", "fp4", "gguf bf16", "gguf f16"])
def test_every_kind_of_storage_is_written(comfy, to):
    kind, name = "LorakitBakeLora", f"every-{to.replace(' ', '-')}"
    path, told = written(comfy, kind, name, checkpoint="flux.safetensors", storage=to)
    wanted = {"fp8": "fp8 e4m3", "fp8_legacy": "fp8 e4m3, scaled", "gguf f16": "fp16"}
    assert storage(path) == wanted.get(to, to.removeprefix("gguf "))
    assert path.name in told
    if to.startswith("fp8"):
        graph = Graph(comfy)
        made, base = (graph.latent(graph.checkpoint(one)) for one in (path.stem, "flux"))
        assert 0.001 < distance(made, base) < 0.5


@pytest.mark.parametrize("kind", ["LorakitBakeLora", "LorakitMergeCheckpoints"])
def test_a_gguf_file_is_listed_and_stays_one(comfy, kind):
    models = {"checkpoint": "flux.safetensors"}
    first, _ = written(comfy, "LorakitBakeLora", f"first-{kind}", **models, storage="gguf bf16")
    name = f"sub/{kind}.gguf"
    place = comfy.base / "models" / "diffusion_models" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(first.read_bytes())
    models = {"checkpoint": name}
    if kind == "LorakitMergeCheckpoints":
        models = {"model_A": name, "model_B": "flux.safetensors"}
    again, _ = written(comfy, kind, f"again-{kind}", **models)
    assert again.suffix == ".gguf"
    plain, _ = written(comfy, kind, f"plain-{kind}", **models, dtype="fp32")
    assert plain.suffix == ".safetensors"
    with open_source(first) as was, open_source(again) as made, open_source(plain) as wide:
        assert was.keys() == made.keys()
        assert was.shape(KEY) == made.shape(KEY) == wide.shape(KEY)
        old, new, exact = (one.tensor(KEY).float() for one in (was, made, wide))
        assert (exact - old).norm() > 0.001 * old.norm()
        assert (new - exact).norm() < 0.01 * exact.norm()


def test_a_loaded_model_becomes_a_gguf_file_of_the_diffusion_model(comfy):
    graph = Graph(comfy)
    loaded = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
    given = {"model": graph.checkpoint(), "clip": loaded[1], "prefix": "checkpoints/as-gguf"}
    told = graph.text(graph.add("LorakitSaveModel", **given, storage="gguf bf16"))
    assert "left out" in told
    assert "not of the diffusion model" in told
    path = comfy.base / "output" / "checkpoints" / "as-gguf_00001_.gguf"
    assert storage(path) == "bf16"


def test_blocks_of_gguf_ask_for_the_package(comfy):
    python = comfy_host.find_python(comfy_host.find_tree())
    if not subprocess.run(
        [python, "-c", "import gguf"], capture_output=True, check=False
    ).returncode:
        pytest.skip("ComfyUI has the package gguf here")
    with pytest.raises(GraphError) as failed:
        written(comfy, "LorakitBakeLora", "b", checkpoint="flux.safetensors", storage="gguf q8_0")
    assert "`pip install gguf`, or choose `storage` gguf bf16" in str(failed.value)


def test_the_storages_that_nodes_offer_can_be_written():
    with standing_in():
        storage = importlib.import_module("lorakit.nodes.form.storage")
        assert set(storage.STORAGES[1:]) <= set(SCHEMES)
        assert len(storage.STORAGES) > 5
