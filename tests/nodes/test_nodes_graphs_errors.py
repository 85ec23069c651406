"""What is wrong with a graph's inputs is said on the node: what, where and the way out, no traceback."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, UNET, Graph, lora, scaled_fp8, weights
from safetensors.torch import save_file

TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture(scope="module")
def bad(comfy):
    """Files of models/loras that are none, or none for Flux."""
    folder = comfy.base / "models" / "loras"
    whole = (folder / "one.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:5000])
    (folder / "half.safetensors").write_bytes(whole[:90_000])
    (folder / "empty.safetensors").touch()
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (folder / "pickled.pt").write_bytes(b"\x80\x02cos\nsystem\n(U\x01xtR.")
    save_file(weights(FLUX), folder / "checkpoint.safetensors")
    save_file(lora(UNET), folder / "for-sd1.safetensors")
    broken = lora(FLUX)
    broken[next(iter(broken))].fill_(float("nan"))
    save_file(broken, folder / "nan.safetensors")
    encoder = {f"{TEXT}.lora_up.weight": torch.ones(32, 4)}
    save_file(encoder | {f"{TEXT}.lora_down.weight": torch.ones(4, 32)}, folder / "te.safetensors")
    checkpoints = comfy.base / "models" / "checkpoints"
    damaged = scaled_fp8(weights(FLUX))
    damaged[next(key for key in damaged if key.endswith(".weight_scale"))] = torch.ones(7)
    save_file(damaged, checkpoints / "quantised.safetensors")
    return comfy


def message(graph, node):
    """What the node says; never a traceback or Python's own words for a mistake in code."""
    with pytest.raises(GraphError) as failed:
        graph.text(node)
    kind, _, told = str(failed.value).partition(": ")
    assert kind == graph.nodes[node]["class_type"], "the node that is at fault says it"
    assert "Traceback" not in told
    assert "argument" not in told
    return told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("checkpoint.safetensors", "it is no adapter: it is a diffusion model"),
        ("cut.safetensors", "truncated inside its header: 5000 of at least"),
        ("half.safetensors", "truncated"),
        ("empty.safetensors", "the file is empty"),
        ("page.safetensors", "not a safetensors file"),
        ("pickled.pt", "convert it to safetensors with the program that made it"),
    ],
)
def test_files_that_are_no_lora(bad, name, told):
    graph = Graph(bad)
    said = message(graph, graph.add("LorakitLoadLora", lora_name=name))
    assert told in said
    assert name in said


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "for-sd1",
            "nothing of `for-sd1.safetensors`, which is for Stable Diffusion 1, fits this model, so",
        ),
        ("te", "1 layer: for a text encoder, and no CLIP is connected"),
    ],
)
def test_a_lora_that_would_do_nothing(bad, name, told):
    graph = Graph(bad)
    applied = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=graph.lora(name))
    assert told in message(graph, applied)


@pytest.mark.parametrize("kind", ["LorakitApplyLora", "LorakitScaleLora"])
@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"blocks": "FOO=1"}, "no block `FOO` in this file, which has IN, D00, S00, OUT"),
        ({"blocks": "FOO"}, "unknown preset `FOO`"),
        ({"blocks": "1,2,3"}, "no list has 3 numbers"),
        ({"blocks": "1," * 16 + "1"}, "17 numbers (Stable Diffusion 1 and 2, attention only)"),
        ({"where": "attn"}, "`attn` has no strength; write `PATTERN=S`, as in `te=0`"),
        ({"where": "nowhere=1"}, "`nowhere` fits none of 23 layers"),
        ({"where": "qkv=abc"}, "`abc` in `qkv=abc` is not a finite number"),
        ({"where": "/((/=1"}, "`/((/` is no regular expression"),
        ({"where": "qkv=1\n\n  mlp=0\nzz=1"}, "`zz` fits none of 23 layers"),
    ],
)
def test_rules(bad, kind, rules, told):
    graph = Graph(bad)
    model = {"model": graph.checkpoint()} if kind == "LorakitApplyLora" else {}
    assert told in message(graph, graph.add(kind, lora=graph.lora(), **model, **rules))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"rule": "energy"}, "`energy=`: give a share between 0 and 1"),
        ({"rule": "bogus=2"}, "unknown rank rule `bogus`"),
        ({"rule": "size=1KB"}, "is too small: the smallest single rank takes"),
    ],
)
def test_rank_rules(bad, inputs, told):
    graph = Graph(bad)
    assert told in message(graph, graph.add("LorakitResizeLora", lora=graph.lora(), **inputs))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"strengths": "1, 2, 3"}, "3 strengths for 2 LoRAs: give one each, in order"),
        ({"strengths": "much"}, "strength `much` is no finite number; write them as `1, 0.7`"),
        ({"strengths": "1, nan"}, "strength `nan` is no finite number"),
        ({"strengths": "1, -1", "method": "average"}, "use method `sum`, or other strengths"),
        ({"rule": "size=1MB"}, "is a budget across layers, which this operation does not take"),
        ({"method": "other"}, "no such method; use one of sum, average"),
    ],
)
def test_sums(bad, inputs, told):
    graph = Graph(bad)
    both = [graph.lora("one"), graph.lora("two")]
    assert told in message(graph, graph.add("LorakitAddLoras", loras=both, **inputs))


def test_loras_of_two_architectures(bad):
    graph = Graph(bad)
    both = [graph.lora("one"), graph.lora("for-sd1")]
    said = message(graph, graph.add("LorakitAddLoras", loras=both))
    assert "one.safetensors is for Flux.1, for-sd1.safetensors for Stable Diffusion 1" in said


def test_numbers_that_are_none(bad):
    graph = Graph(bad)
    loaded = graph.lora("nan")
    graph.add("LorakitAddLoras", loras=[graph.lora("one"), loaded], rank=4)
    said = message(graph, loaded)
    assert "NaN" in said
    assert "nan.safetensors" in said


@pytest.mark.parametrize(
    ("checkpoint", "lora", "told"),
    [
        ("sd1", "one", "23 of 23 layers of one.safetensors are not in"),
        ("quantised", "one", "cannot be decoded"),
    ],
)
def test_checkpoints_that_cannot_be_baked_into(bad, checkpoint, lora, told):
    graph = Graph(bad)
    baked = graph.add(
        "LorakitBakeLora",
        checkpoint=f"{checkpoint}.safetensors",
        loras=[graph.lora(lora)],
        prefix="checkpoints/refused",
    )
    assert told in message(graph, baked)
    assert not list((bad.base / "output").rglob("*refused*")), "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("absent.safetensors", "'absent.safetensors' not found"),
        ("../checkpoints/flux.safetensors", "not found"),
        ("checkpoint.safetensors", "it is no adapter"),
    ],
)
def test_stacks(bad, name, told):
    graph = Graph(bad)
    stack = graph.add("TestLoraStack", lora_name=name, model=1.0, clip=1.0)
    assert told in message(graph, graph.add("LorakitStackToLora", lora_stack=stack))


@pytest.mark.parametrize(
    ("kind", "inputs", "kind_of_error"),
    [
        ("LorakitResizeLora", {"rank": 0}, "value_smaller_than_min"),
        ("LorakitResizeLora", {"rank": 5000}, "value_bigger_than_max"),
        ("LorakitScaleLora", {"strength": 1000.0}, "value_bigger_than_max"),
        ("LorakitSaveLora", {"dtype": "fp8"}, "value_not_in_list"),
        ("LorakitConvertLora", {"format": "other"}, "value_not_in_list"),
    ],
)
def test_the_host_refuses_what_is_out_of_range(comfy, kind, inputs, kind_of_error):
    graph = Graph(comfy)
    node = graph.add(kind, lora=graph.lora(), **inputs)
    with pytest.raises(GraphError) as refused:
        graph.text(node)
    errors = json.loads(str(refused.value))["node_errors"][node]["errors"]
    assert [one["type"] for one in errors] == [kind_of_error]


@pytest.mark.parametrize("name", ["absent.safetensors", "../checkpoints/flux.safetensors"])
def test_the_host_refuses_a_file_that_it_does_not_list(comfy, name):
    graph = Graph(comfy)
    node = graph.add("LorakitLoadLora", lora_name=name)
    with pytest.raises(GraphError, match="value_not_in_list"):
        graph.text(node)
