"""A graph that records while it samples, and extractions by the record, in a real ComfyUI."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest
import torch
from comfy_server import GraphError
from graphs import Graph, cancelled, distance, first_steps
from safetensors import safe_open
from safetensors.torch import load_file

PAIR = {"tuned_name": "flux-tuned.safetensors", "base_name": "flux.safetensors"}
LOADERS = {"flux": "CheckpointLoaderSimple", "sd1": "TestLoadCheckpoint"}


def model_of(graph, like="flux", name="tuned"):
    title = f"{like}-{name}" if name else like
    return graph.add(LOADERS[like], ckpt_name=f"{title}.safetensors")


def recorded(graph, like="flux", seed=1, **inputs):
    """Record Activations, a sampler, Save Activations: the latter two."""
    memory = {"memory": 2.0, **inputs}
    record = graph.add("LorakitRecordActivations", model=model_of(graph, like), **memory)
    latent = graph.sample(record, like, seed)
    return latent, graph.add("LorakitSaveActivations", recording=record[1], after=latent)


def path_of(graph, node, output):
    shown = graph.add("PreviewAny", source=node[output])
    return json.loads(json.dumps(graph.run()[shown]["text"][0]))


def saved(graph, lora):
    """The tensors of a LoRA, through Save LoRA."""
    return load_file(path_of(graph, graph.add("LorakitSaveLora", lora=lora), 0))


def output_error(tensors, told):
    """Of all layers' outputs together, by the definition, in float64: for the change that there is."""
    base, tuned = (
        load_file(f"{told['folder']}/{told['files'][name]}") for name in ("base", "tuned")
    )
    missed = whole = 0.0
    for key, gram in told["grams"].items():
        target = key.removesuffix(".gram")
        name = f"model.{target}.weight"
        delta = (tuned[name].double() - base[name].double()).flatten(1).numpy()
        up, down = (tensors[f"{target}.lora_{part}.weight"].double().numpy() for part in ("B", "A"))
        scale = float(tensors[f"{target}.alpha"]) / len(down)
        left = delta - scale * (up @ down)
        gram = gram.double().numpy()
        missed += np.einsum("ij,jk,ik->", left, gram, left)
        whole += np.einsum("ij,jk,ik->", delta, gram, delta)
    return float(np.sqrt(missed / whole))


def test_what_is_extracted_by_a_record_misses_less_of_the_output(comfy):
    """And the report says by how much; the pictures are nearer to the tuned model's."""
    graph = Graph(comfy)
    latent, save = recorded(graph)
    made = graph.add("LorakitExtractLoraFromFiles", **PAIR, rank=2, dtype="fp32", activations=save)
    plain = graph.add("LorakitExtractLoraFromFiles", **PAIR, rank=2, dtype="fp32")
    told = {
        "folder": comfy.base / "models" / "checkpoints",
        "files": {"base": PAIR["base_name"], "tuned": PAIR["tuned_name"]},
        "grams": {
            key: one
            for key, one in load_file(path_of(graph, save, 1)).items()
            if key.endswith(".gram")
        },
    }
    errors = {
        name: output_error(saved(graph, one), told)
        for name, one in {"by": made, "not": plain}.items()
    }
    assert errors["by"] < 0.9 * errors["not"]
    report = graph.text(made)
    (line,) = [line for line in report.splitlines() if line.startswith("of the layers' output")]
    assert float(line.rpartition(" ")[2]) == pytest.approx(errors["by"], abs=2e-4)
    assert "without a record" not in report, "the names are those of the extraction"
    assert "of the layers' output" not in graph.text(plain)
    base = model_of(graph, name="")
    far = {
        name: distance(
            graph.latent(graph.add("LorakitApplyLora", model=base, lora=one)), graph.tensor(latent)
        )
        for name, one in {"by": made, "not": plain}.items()
    }
    assert far["by"] < far["not"]


@pytest.mark.parametrize("like", LOADERS)
def test_the_picture_stays_and_every_layer_of_the_model_is_there(comfy, like):
    """Bit for bit; convolutions and layers too wide for their whole matrix too."""
    graph = Graph(comfy)
    latent, save = recorded(graph, like)
    assert torch.equal(graph.tensor(latent), graph.latent(model_of(graph, like), like))
    held = {key.rpartition(".")[0] for key in load_file(path_of(graph, save, 1))}
    with safe_open(comfy.base / "models" / "checkpoints" / f"{like}.safetensors", "pt") as file:
        matrices = {
            key.removeprefix("model.").removesuffix(".weight")
            for key in file.keys()  # noqa: SIM118 - not a mapping
            if key.startswith("model.") and len(file.get_slice(key).get_shape()) > 1
        }
    assert held == matrices
    report = graph.text(save)
    assert f"{len(matrices)} layers, up to" in report
    assert ("128 directions and the diagonal" in report) == (like == "sd1")


def test_a_small_memory_is_kept_and_one_too_small_is_said(comfy):
    graph = Graph(comfy)
    _, save = recorded(graph, "sd1", memory=0.3)
    full = path_of(graph, save, 1)
    graph = Graph(comfy)
    _, save = recorded(graph, "sd1", memory=0.01)
    report, path = graph.text(save), path_of(graph, save, 1)
    assert "16 directions and the diagonal" in report
    sizes = [sum(one.nbytes for one in load_file(one).values()) for one in (full, path)]
    assert sizes[1] < 10e6 < sizes[0]


def test_each_run_begins_anew_unless_runs_add_up(comfy):
    """The loader and Record Activations come out of the cache then, with the record in it."""
    rows = {}
    for across in (False, True):
        told = []
        for seed in (1, 2, 3):
            graph = Graph(comfy)
            _, save = recorded(graph, seed=seed, memory=1.5, across_runs=across)
            told.append(graph.text(save))
        rows[across] = [one.splitlines()[0].rpartition("recorded in ")[2] for one in told]
    assert rows[False] == ["2 calls of the model"] * 3
    assert rows[True] == [f"{count} calls of the model" for count in (2, 4, 6)]


def test_a_sampling_that_is_cancelled_leaves_the_model_as_it_was(comfy):
    graph = Graph(comfy)
    model = model_of(graph)
    record = graph.add("LorakitRecordActivations", model=model, memory=1.7)
    latent = graph.sample(record, seed=5)
    graph.nodes[latent]["inputs"]["steps"] = 2000
    graph.add("LorakitSaveActivations", recording=record[1], after=latent)
    number, _ = first_steps(comfy, graph, uuid.uuid4().hex)
    cancelled(comfy, number)
    counted = Graph(comfy)
    model = model_of(counted)
    assert path_of(counted, counted.add("TestHooks", model=model, after=model), 0) == "0"
    graph.nodes[latent]["inputs"]["steps"] = 2
    save = graph.add("LorakitSaveActivations", recording=record[1], after=latent)
    assert "recorded in 2 calls of the model" in graph.text(save), "what was cancelled is not in it"
    assert torch.equal(graph.tensor(latent), graph.tensor(graph.sample(model_of(graph), seed=5)))


def test_a_record_without_a_sampling_is_said(comfy):
    graph = Graph(comfy)
    record = graph.add("LorakitRecordActivations", model=model_of(graph), memory=1.1)
    other = graph.sample(model_of(graph), seed=9)
    save = graph.add("LorakitSaveActivations", recording=record[1], after=other)
    with pytest.raises(GraphError, match="nothing was recorded: the sampler has not run with"):
        graph.text(save)


def test_all_that_extract_and_resize_take_it(comfy):
    """From models as from files; a LoRA in a socket as in a file; by name from the list, too."""
    graph = Graph(comfy)
    _, save = recorded(graph, memory=1.9)
    pair = {"tuned": model_of(graph), "base": model_of(graph, name="")}
    given = {"rank": 2, "dtype": "fp32", "activations": save}
    by_files = saved(graph, graph.add("LorakitExtractLoraFromFiles", **PAIR, **given))
    by_models = saved(graph, graph.add("LorakitExtractLora", **pair, **given))
    assert by_files.keys() == by_models.keys()
    assert all(torch.allclose(by_files[key], by_models[key], atol=1e-5) for key in by_files)
    given["activations"] = path_of(graph, save, 0)
    assert given["activations"].startswith("lorakit_0")
    named = graph.add("LorakitExtractAndSave", **pair, **given)
    assert load_file(path_of(graph, named, 0)).keys() == by_files.keys()
    shrunk = [
        graph.add("LorakitResizeLora", lora=graph.lora(), rank=2, activations=save),
        graph.add("LorakitResizeFile", lora_name="one.safetensors", rank=2, activations=save),
    ]
    lines = [
        [line for line in graph.text(one).splitlines() if line.startswith("of the layers' output")]
        for one in shrunk
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1
    listed = comfy.get("/object_info/LorakitResizeLora")["LorakitResizeLora"]["input"]["optional"]
    assert given["activations"] in listed["activations"][1]["options"]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"rule": "mean=2"}, "is a budget, which compares layers by their weights"),
        ({"kind": "lokr"}, "activations weigh a LoRA; leave one of them out"),
        ({"like": "sd1"}, "the activations are of other layers"),
    ],
)
def test_what_cannot_be_weighed_is_said(comfy, inputs, told):
    graph = Graph(comfy)
    like = inputs.get("like", "flux")
    _, save = recorded(graph)
    names = {key: one.replace("flux", like) for key, one in PAIR.items()}
    made = graph.add("LorakitExtractLoraFromFiles", **names, rank=2, activations=save)
    graph.nodes[made]["inputs"] |= {key: one for key, one in inputs.items() if key != "like"}
    with pytest.raises(GraphError) as failed:
        graph.text(made)
    assert told in str(failed.value)
