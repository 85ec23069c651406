"""Graphs in which something is missing, empty, bypassed or too many: they go on, or say so."""

from __future__ import annotations

import json

import pytest
from comfy_server import GraphError
from graphs import Graph, distance

SAME = 1e-4


def applied(graph, lora, model=None):
    return graph.add("LorakitApplyLora", model=model or graph.checkpoint(), lora=lora)


def sum_of(graph, strengths, **sockets):
    """Add LoRAs with these sockets connected, `lora0` and so on."""
    node = graph.add("LorakitAddLoras", strengths=strengths)
    inputs = graph.nodes[node]["inputs"]
    inputs |= {f"loras.{name}": one[0] for name, one in sockets.items()}
    return node


def message(graph, node):
    with pytest.raises(GraphError) as failed:
        graph.text(node)
    return str(failed.value)


def test_a_socket_without_a_lora_keeps_its_strength(comfy):
    """As when the node before the first socket is bypassed: `0.1, 0.5` stays 0.5 for the second."""
    graph = Graph(comfy)
    added = sum_of(graph, "0.1, 0.5", lora1=graph.lora("two"))
    latent = graph.latent(applied(graph, added))
    wanted = Graph(comfy)
    scaled = wanted.add("LorakitScaleLora", lora=wanted.lora("two"), strength=0.5)
    truth = wanted.latent(applied(wanted, scaled))
    assert distance(latent, truth) < SAME
    twin = Graph(comfy)
    wrong = twin.add("LorakitScaleLora", lora=twin.lora("two"), strength=0.1)
    assert distance(twin.latent(applied(twin, wrong)), truth) > 0.01


def test_a_missing_middle_socket(comfy):
    graph = Graph(comfy)
    added = sum_of(graph, "1, 9, 0.5", lora0=graph.lora("one"), lora2=graph.lora("two"))
    wanted = Graph(comfy)
    both = wanted.add(
        "LorakitAddLoras", loras=[wanted.lora("one"), wanted.lora("two")], strengths="1, 0.5"
    )
    assert (
        distance(graph.latent(applied(graph, added)), wanted.latent(applied(wanted, both))) < SAME
    )


def test_more_sockets_than_there_are(comfy):
    graph = Graph(comfy)
    lora = graph.lora("one")
    added = sum_of(graph, "", **{f"lora{at}": lora for at in range(17)})
    told = message(graph, added)
    assert "lora16" in told
    assert "use a second node" in told
    assert "TypeError" not in told


def test_strengths_for_more_sockets_than_are_connected(comfy):
    graph = Graph(comfy)
    told = message(graph, sum_of(graph, "1, 2, 3", lora0=graph.lora("one")))
    assert "3 strengths for 1 LoRAs" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "inputs", "name"),
    [
        ("LorakitScaleLora", {}, "strength"),
        ("LorakitLoraToStack", {}, "strength_clip"),
        ("LorakitApplyLora", {"model": "model"}, "strength_model"),
    ],
)
def test_a_strength_that_is_no_number(comfy, kind, inputs, name, value):
    graph = Graph(comfy)
    given = {key: graph.checkpoint() for key in inputs}
    node = graph.add(kind, lora=graph.lora("one"), **given, **{name: value})
    told = message(graph, node)
    assert f"`{name}` is {value}; give a finite number" in told or "value_" in told


@pytest.mark.parametrize("text", ["nan", "1, inf", "x"])
def test_strengths_that_are_no_numbers(comfy, text):
    graph = Graph(comfy)
    told = message(graph, sum_of(graph, text, lora0=graph.lora("one"), lora1=graph.lora("two")))
    assert "is no finite number" in told


@pytest.mark.parametrize("case", ["empty", "strength 0", "unconnected"])
@pytest.mark.parametrize(
    "through", [(), ("ScaleLora",), ("ResizeLora",), ("ConvertLora",), ("ScaleLora", "ResizeLora")]
)
def test_an_empty_stack_changes_nothing(comfy, case, through):
    graph = Graph(comfy)
    if case == "unconnected":
        lora = graph.add("LorakitStackToLora")
    else:
        name = "" if case == "empty" else "one.safetensors"
        strength = 0.0 if case == "strength 0" else 1.0
        stack = graph.add("TestLoraStack", lora_name=name, model=strength, clip=strength)
        lora = graph.add("LorakitStackToLora", lora_stack=stack)
    for kind in through:
        lora = graph.add(f"Lorakit{kind}", lora=lora)
    latent = graph.latent(applied(graph, lora))
    plain = Graph(comfy)
    assert distance(latent, plain.latent(plain.checkpoint())) == 0


def test_an_empty_lora_among_others(comfy):
    graph = Graph(comfy)
    empty = graph.add("LorakitStackToLora")
    added = sum_of(graph, "1, 0.5", lora0=empty, lora1=graph.lora("two"))
    wanted = Graph(comfy)
    scaled = wanted.add("LorakitScaleLora", lora=wanted.lora("two"), strength=0.5)
    assert (
        distance(graph.latent(applied(graph, added)), wanted.latent(applied(wanted, scaled))) < SAME
    )


def test_a_stack_is_not_computed_again_for_nothing(comfy):
    def ran():
        graph = Graph(comfy)
        stack = graph.add("TestLoraStack", lora_name="one.safetensors", model=0.5, clip=0.5)
        lora = graph.add("LorakitStackToLora", lora_stack=stack)
        graph.report(lora)
        return lora, comfy.executed(graph.nodes)

    ran()
    lora, second = ran()
    assert lora not in second
    file = comfy.base / "models" / "loras" / "one.safetensors"
    file.touch()
    lora, third = ran()
    assert lora in third, "a file that changed counts"


def test_one_lora_on_a_stack_is_one_file_at_any_strength(comfy):
    folder = comfy.base / "output" / "loras"

    def row(strength):
        graph = Graph(comfy)
        node = graph.add(
            "LorakitLoraToStack", lora=graph.lora("one"), strength_model=strength, prefix="once"
        )
        shown = graph.add("PreviewAny", source=node)
        return json.loads(graph.run()[shown]["text"][0])[0]

    rows = [row(strength) for strength in (0.1, 0.2, 0.3)]
    assert [one[1] for one in rows] == [0.1, 0.2, 0.3]
    assert len({one[0] for one in rows}) == 1
    assert [path.name for path in folder.glob("once*")] == [rows[0][0]]


def test_a_prefix_that_leads_out(comfy):
    graph = Graph(comfy)
    lora = graph.lora("one")
    for prefix in ("/tmp/lora", "../out", "loras/../../out"):
        told = message(graph, graph.add("LorakitLoraToStack", lora=lora, prefix=prefix))
        assert "leads out of the output folder" in told
    pair = {"tuned": graph.checkpoint("flux-tuned"), "base": graph.checkpoint()}
    late = graph.add("LorakitExtractAndSave", **pair, prefix="/tmp/lora")
    assert "leads out of the output folder" in message(graph, late)


def test_the_error_is_shown_by_its_bare_name(comfy):
    graph = Graph(comfy)
    node = graph.add("LorakitScaleLora", lora=graph.lora("one"), where="nothing=1")
    graph.report(node)
    number = comfy.start(graph.nodes)
    with pytest.raises(GraphError):
        comfy.result(number)
    messages = comfy.get(f"/history/{number}")[number]["status"]["messages"]
    (told,) = (about for kind, about in messages if kind == "execution_error")
    assert told["exception_type"] == "ArgumentError"


def test_compare_tells_the_same_file_before_and_after_apart(comfy):
    graph = Graph(comfy)
    one = graph.lora("one")
    node = graph.add(
        "LorakitCompareLoras", first=one, second=graph.add("LorakitResizeLora", lora=one, rank=2)
    )
    assert graph.text(node).startswith("done · first: one and second: one: cosine 0.")
