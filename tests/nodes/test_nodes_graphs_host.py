"""How the nodes behave in a real ComfyUI: cache, progress, Cancel, what stands on them, its own nodes."""

from __future__ import annotations

import os
import uuid

import pytest
import torch
from graphs import FLUX, Graph, cancelled, distance, first_steps, lora
from safetensors.torch import load_file, save_file


def applied(server, strength=1.0, name="one"):
    """A graph that samples; its nodes by what they are."""
    graph = Graph(server)
    nodes = {"lora": graph.lora(name), "model": graph.checkpoint()}
    nodes["apply"] = graph.add(
        "LorakitApplyLora", model=nodes["model"], lora=nodes["lora"], strength_model=strength
    )
    nodes["sample"] = graph.sample(nodes["apply"])
    nodes["show"] = graph.add("PreviewAny", source=nodes["sample"])
    return graph, nodes


def executed(server, graph, nodes):
    """Which of the nodes ran, by what they are."""
    ran = server.executed(graph.nodes)
    return {what for what, node in nodes.items() if node in ran}


def test_an_identical_graph_comes_out_of_the_cache(comfy):
    graph, _ = applied(comfy, 0.111)
    graph.run()
    assert comfy.executed(graph.nodes) == set()


def test_a_strength_re_runs_what_depends_on_it(comfy):
    applied(comfy, 0.222)[0].run()
    assert executed(comfy, *applied(comfy, 0.333)) == {"apply", "sample", "show"}


def rewritten(path, tensors):
    """The file with other content, and a time of its own even on a clock that is coarse."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    save_file(tensors, path)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_lora_that_changed_on_disk_is_loaded_again(comfy):
    path = comfy.base / "models" / "loras" / "edited.safetensors"
    rewritten(path, lora(FLUX, seed=3))
    graph, nodes = applied(comfy, name="edited")
    first = graph.tensor(nodes["sample"])
    assert executed(comfy, graph, nodes) == set()
    rewritten(path, lora(FLUX, seed=4))
    assert executed(comfy, graph, nodes) == {"lora", "apply", "sample", "show"}
    assert distance(graph.tensor(nodes["sample"]), first) > 0.01


@pytest.mark.parametrize("kind", ["LorakitExtractLoraFromFiles", "LorakitBakeLora"])
def test_a_checkpoint_that_changed_on_disk_is_read_again(comfy, kind):
    folder = comfy.base / "models" / "checkpoints"
    path = folder / "edited.safetensors"
    tensors = load_file(folder / "flux-tuned.safetensors")
    rewritten(path, tensors)
    graph = Graph(comfy)
    if kind == "LorakitBakeLora":
        node = graph.add(kind, checkpoint=path.name, loras=[graph.lora()])
    else:
        node = graph.add(kind, tuned_name=path.name, base_name="flux.safetensors", rank=2)
    graph.text(node)
    assert node not in comfy.executed(graph.nodes)
    rewritten(path, tensors)
    assert node in comfy.executed(graph.nodes)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("LorakitLoadLora", {"lora_name": "one"}),
        ("LorakitResizeFile", {"lora_name": "one"}),
        ("LorakitExtractLoraFromFiles", {"tuned_name": "flux-tuned", "base_name": "flux"}),
        ("LorakitBakeLora", {"checkpoint": "flux"}),
    ],
)
def test_a_file_that_another_node_names_is_read_again_once_it_changed(comfy, kind, names):
    """The host does not tell the name beforehand, so any file of the folder may be it."""
    graph = Graph(comfy)
    inputs = {name: graph.add("TestName", name=f"{one}.safetensors") for name, one in names.items()}
    if kind == "LorakitBakeLora":
        inputs["loras"] = [graph.lora()]
    node = graph.add(kind, **inputs)
    graph.text(node)
    folder = "loras" if "lora_name" in names else "checkpoints"
    (comfy.base / "models" / folder / f"{next(iter(names.values()))}.safetensors").touch()
    assert node in comfy.executed(graph.nodes)


@pytest.fixture(scope="module")
def medium(comfy):
    """A pair whose exact extraction takes seconds, a layer of it a fraction of one."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.diffusion_model.blocks.{at}.ffn.0.weight" for at in range(24)]
    for name in ("medium", "medium-tuned"):
        made = {one: torch.randn(768, 768, generator=generator).half() for one in names}
        save_file(made, comfy.base / "models" / "checkpoints" / f"{name}.safetensors")
    return {"tuned_name": "medium-tuned.safetensors", "base_name": "medium.safetensors"}


def test_progress_and_cancel_of_an_extraction(comfy, medium):
    graph = Graph(comfy)
    extracted = graph.add("LorakitExtractLoraFromFiles", **medium, exact=True)
    graph.add("LorakitSaveLora", lora=extracted, prefix="loras/cancelled")
    number, steps = first_steps(comfy, graph, uuid.uuid4().hex)
    assert [node for node, _ in steps] == [extracted] * 3
    assert 0 <= steps[0][1] < steps[1][1] < steps[2][1] < 0.5
    cancelled(comfy, number)
    assert not list((comfy.base / "output").rglob("*cancelled*"))


def test_a_bake_that_is_cancelled_leaves_no_file(comfy, medium):
    shapes = {f"blocks.{at}.ffn.0.weight": (768, 768) for at in range(24)}
    path = comfy.base / "models" / "loras" / "medium.safetensors"
    save_file(lora(shapes, rank=64), path)
    graph = Graph(comfy)
    graph.add(
        "LorakitBakeLora",
        checkpoint=medium["base_name"],
        loras=[graph.lora("medium")] * 16,
        prefix="checkpoints/cancelled",
    )
    number, _ = first_steps(comfy, graph, uuid.uuid4().hex, count=1)
    cancelled(comfy, number)
    assert not list((comfy.base / "output").rglob("*cancelled*"))


def told(server, graph, client, messages):
    """Run a graph for a client; the texts by node among all that its connection says until then."""
    server.start(graph.nodes, client)
    texts = {}
    for kind, message in messages:
        if kind == "text" or (kind == "executed" and "text" in (message["output"] or {})):
            shown = message["text"] if kind == "text" else "\n".join(message["output"]["text"])
            texts[message["node"]] = shown
        if kind == "execution_success":
            return texts
    raise AssertionError("the connection ended")


def test_a_report_reaches_the_client_that_asked_and_no_other(comfy):
    graph, own, other = Graph(comfy), uuid.uuid4().hex, uuid.uuid4().hex
    scaled = graph.add("LorakitScaleLora", lora=graph.lora(), strength=0.123)
    graph.add("PreviewAny", source=scaled[1])
    beside = Graph(comfy)  # one node, which no other client has run yet
    beside.add("PreviewAny", source=uuid.uuid4().hex)
    with comfy.listening(other) as others:
        with comfy.listening(own) as owns:
            texts = told(comfy, graph, own, owns)
        assert texts[scaled].startswith("done · one.safetensors: 23 layers, rank 4 → 4")
        assert told(comfy, beside, other, others).keys() == {"1"}


def test_a_report_is_shown_again_where_the_node_comes_out_of_the_cache(comfy):
    graph, client = Graph(comfy), uuid.uuid4().hex
    scaled = graph.add("LorakitScaleLora", lora=graph.lora(), strength=0.234)
    graph.add("PreviewAny", source=graph.add("LorakitResizeLora", lora=scaled, rank=2)[1])
    with comfy.listening(client) as messages:
        first = told(comfy, graph, client, messages)
    assert comfy.executed(graph.nodes) == set()
    with comfy.listening(client) as messages:
        assert told(comfy, graph, client, messages) == first
    assert len(first) == 4, "each node's, and what shows one"


def test_ten_graphs_of_two_clients_at_once_keep_their_texts_apart(comfy):
    """Each graph has the same ids as the others, and a strength that its report tells."""
    clients = [uuid.uuid4().hex, uuid.uuid4().hex]
    graphs: dict[str, tuple[str, str]] = {}  # by number: the client, and the strength
    with comfy.listening(clients[0]) as first, comfy.listening(clients[1]) as second:
        for at in range(10):
            graph, strength = Graph(comfy), f"0.{at + 1}37"
            model = graph.checkpoint()
            rows = f"one | {strength}\ntwo | 0.5"
            made = graph.add("LorakitLoraLoader", rows=rows, model=model)
            graph.add("PreviewAny", source=made[5])
            client = clients[at % 2]
            graphs[comfy.start(graph.nodes, client)] = (client, strength)
        for client, messages in zip(clients, (first, second), strict=True):
            own = {number for number, (whose, _) in graphs.items() if whose == client}
            told, ended = [], set()
            for kind, message in messages:
                if kind == "text":
                    raise AssertionError("a text that names no graph")
                if kind == "executed" and "text" in (message["output"] or {}):
                    told.append((message["prompt_id"], message["output"]["text"][0]))
                ended |= {message["prompt_id"]} if kind == "execution_success" else set()
                if ended == own:
                    break
            assert len(told) == 10, "a report and what shows it, of five graphs"
            for number, text in told:
                assert number in own
                assert f"of the model at {graphs[number][1]})" in text
