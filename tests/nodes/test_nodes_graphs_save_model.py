"""Save Model, and Bake LoRA on a loaded model, in a real ComfyUI: its own loaders read what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import GraphError
from graphs import UNET, Graph, distance, lora, scaled_fp8, taesd, weights
from keys.checkpoints import prefixed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

#: Two ways to the same weights: the last digits of float32.
SAME = 2e-5


def saved(graph: Graph, node: Any) -> Path:
    """Run it; the file that a node wrote."""
    shown = graph.add("PreviewAny", source=node[0])
    return Path(graph.run()[shown]["text"][0])


def again(comfy: Any, path: Path, like: str = "flux") -> Any:
    """What the host's own loader makes of it samples."""
    name = f"checkpoints-{path.name}"
    (comfy.base / "models" / "checkpoints" / name).write_bytes(path.read_bytes())
    graph = Graph(comfy)
    return graph.latent(graph.add("CheckpointLoaderSimple", ckpt_name=name), like)


def applied(graph: Graph, model: Any = None, name: str = "one", **given: Any) -> Any:
    model = graph.checkpoint() if model is None else model
    return graph.add("LorakitApplyLora", model=model, lora=graph.lora(name), **given)


def flux(comfy: Any) -> dict[str, Any]:
    """What the file holds, under the names of a checkpoint."""
    found = load_file(comfy.base / "models" / "checkpoints" / "flux.safetensors")
    prefix = "model.diffusion_model."
    return {
        prefix + key.removeprefix(prefix).replace("_norm.scale", "_norm.weight"): one
        for key, one in found.items()
    }


def test_a_patched_model_samples_the_same_from_its_file(comfy: Any) -> None:
    graph = Graph(comfy)
    model = applied(graph, strength_model=0.7)
    path = saved(graph, graph.add("LorakitSaveModel", model=model, prefix="checkpoints/saved"))
    latent = graph.latent(model)
    assert distance(again(comfy, path), latent) < SAME
    plain = Graph(comfy)
    assert distance(plain.latent(plain.checkpoint()), latent) > 0.01, "a change that can be seen"


def test_what_has_no_patches_is_the_file_s_bytes(comfy: Any) -> None:
    graph = Graph(comfy)
    model = applied(graph, blocks="ALL=0,D00=1")
    found = load_file(saved(graph, graph.add("LorakitSaveModel", model=model)))
    base = flux(comfy)
    assert found.keys() >= base.keys()
    changed = {key for key, one in base.items() if not torch.equal(found[key], one)}
    assert changed
    assert all("double_blocks.0." in key for key in changed)
    assert {found[key].dtype for key in base} == {one.dtype for one in base.values()}


def test_its_weights_are_the_sum_in_fp32_rounded_once(comfy: Any) -> None:
    graph = Graph(comfy)
    model = applied(graph)
    node = graph.add("LorakitSaveModel", model=model, dtype="bf16")
    found = load_file(saved(graph, node))
    adapter = load_file(comfy.base / "models" / "loras" / "one.safetensors")
    seen = 0
    for key, base in flux(comfy).items():
        tensor, was = found[key], base.double()
        name = key.removeprefix("model.").removesuffix(".weight")
        if f"{name}.lora_up.weight" in adapter:
            up, down = (adapter[f"{name}.lora_{one}.weight"].double() for one in ("up", "down"))
            was = was + up @ down * (adapter[f"{name}.alpha"].double() / down.shape[0])
            seen += 1
        assert tensor.dtype == torch.bfloat16
        # Within half a step of bf16, but for the last digits of float32.
        assert (tensor.double() - was).abs().max() <= was.abs().max() * (2**-8 + 1e-5)
        off = (tensor != was.to(torch.bfloat16)).float().mean()
        assert off < 0.001, key
    assert seen > 10


def test_the_file_has_the_graph_and_a_record(comfy: Any) -> None:
    graph = Graph(comfy)
    path = saved(graph, graph.add("LorakitSaveModel", model=applied(graph)))
    with safe_open(path, "pt") as opened:
        about = opened.metadata()
    prompt = json.loads(about["prompt"])
    assert {one["class_type"] for one in prompt.values()} >= {
        "LorakitSaveModel",
        "LorakitApplyLora",
    }
    assert about["lorakit.operation"] == "save"


@pytest.fixture(scope="module")
def whole(comfy: Any) -> str:
    """A checkpoint of SD1.5's kind with a VAE beside the model."""
    tensors = weights(
        prefixed("model.diffusion_model.", UNET) | prefixed("first_stage_model.", taesd(4))
    )
    save_file(tensors, comfy.base / "models" / "checkpoints" / "whole.safetensors")
    save_file(lora(UNET), comfy.base / "models" / "loras" / "unet.safetensors")
    return "whole"


def test_clip_and_vae_go_into_the_file(comfy: Any, whole: str) -> None:
    graph = Graph(comfy)
    loaded = graph.checkpoint(whole)
    other = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
    node = graph.add("LorakitSaveModel", model=loaded, clip=other[1], vae=loaded[2])
    found = load_file(saved(graph, node))
    folder = comfy.base / "models" / "checkpoints"
    base, text = (load_file(folder / f"{name}.safetensors") for name in (whole, "sd1"))
    encoder = {key: one for key, one in text.items() if key.startswith("cond_stage_model.")}
    assert len(encoder) > 10
    for key, tensor in (base | encoder).items():
        if "position_ids" not in key:  # the host holds encoders in fp16
            assert torch.equal(found[key], tensor.to(found[key].dtype)), key
    assert {found[key].dtype for key in base if key.startswith("model.")} == {torch.float32}
    assert {found[key].dtype for key in encoder if "weight" in key} == {torch.float16}


def test_fp8_stays_fp8_where_nothing_is_on_it_and_where_something_is(comfy: Any) -> None:
    base = load_file(comfy.base / "models" / "checkpoints" / "flux.safetensors")
    stored = scaled_fp8(base)
    save_file(stored, comfy.base / "models" / "checkpoints" / "flux-scaled.safetensors")
    graph = Graph(comfy)
    model = applied(graph, graph.checkpoint("flux-scaled"), blocks="ALL=0,D00=1")
    node = graph.add("LorakitSaveModel", model=model)
    path = saved(graph, node)
    found = {
        key.removeprefix("model.diffusion_model."): one for key, one in load_file(path).items()
    }
    stored = {key.removeprefix("model.diffusion_model."): one for key, one in stored.items()}
    scaled = {key for key, one in stored.items() if one.dtype == torch.float8_e4m3fn}
    assert len(scaled) > 10
    assert {key for key in found if found[key].dtype == torch.float8_e4m3fn} == scaled
    changed = {key for key in scaled if not torch.equal(found[key].float(), stored[key].float())}
    assert changed
    assert all(key.startswith("double_blocks.0.") for key in changed)
    latent = graph.latent(model)
    assert distance(again(comfy, path), latent) < 0.05, "one rounding to fp8 more"


def test_stored_with_scales_on_demand(comfy: Any) -> None:
    graph = Graph(comfy)
    model = applied(graph)
    node = graph.add("LorakitSaveModel", model=model, storage="fp8_scaled")
    path = saved(graph, node)
    assert any(one.dtype == torch.float8_e4m3fn for one in load_file(path).values())
    assert distance(again(comfy, path), graph.latent(model)) < 0.1


def test_bake_takes_a_loaded_model(comfy: Any) -> None:
    graph = Graph(comfy)
    model = applied(graph, strength_model=0.5)
    given = {"checkpoint": "flux-tuned.safetensors", "loras": [graph.lora("two")]}
    node = graph.add("LorakitBakeLora", model=model, strengths="-0.4", **given)
    both = graph.add("LorakitApplyLora", model=model, lora=graph.lora("two"), strength_model=-0.4)
    assert distance(again(comfy, saved(graph, node)), graph.latent(both)) < SAME


def test_a_vae_without_a_model_is_refused(comfy: Any, whole: str) -> None:
    graph = Graph(comfy)
    given = {"checkpoint": "flux.safetensors", "loras": [graph.lora()]}
    node = graph.add("LorakitBakeLora", vae=graph.checkpoint(whole)[2], **given)
    with pytest.raises(GraphError) as failed:
        graph.text(node)
    assert "`clip` and `vae` go with a `model`" in str(failed.value)
