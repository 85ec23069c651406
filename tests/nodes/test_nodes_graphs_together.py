"""Nodes one after another in a graph: a record, an extraction by it, a sum with that, a schedule of the sum."""

from __future__ import annotations

import pytest
import torch
from comfy_server import GraphError
from graphs import Graph, distance

PAIR = {"tuned_name": "flux-tuned.safetensors", "base_name": "flux.safetensors"}


def recorded(graph, **inputs):
    """Save Activations, behind Record Activations and a sampler."""
    tuned = graph.checkpoint("flux-tuned")
    record = graph.add("LorakitRecordActivations", model=tuned)
    return graph.add(
        "LorakitSaveActivations", recording=record[1], after=graph.sample(record), **inputs
    )


def extracted(graph, activations, **inputs):
    """A LoRA of the tuned model, by what it uses."""
    asked = {"rank": 2, **PAIR, **inputs}
    return graph.add("LorakitExtractLoraFromFiles", activations=activations, **asked)


def summed(graph, **inputs):
    """Such a LoRA and another as one."""
    loras = [extracted(graph, recorded(graph)), graph.lora("one")]
    return graph.add("LorakitAddLoras", loras=loras, **{"strengths": "1, 0.5", **inputs})


def scheduled(graph, lora, curves):
    """It on the base, by curves."""
    return graph.add("LorakitScheduleLoras", model=graph.checkpoint(), loras=[lora], curves=curves)


def test_from_a_record_to_a_schedule(comfy):
    """A constant curve is Apply LoRA to the last bit; the whole is nearer to the tuned model than the base."""
    graph, other, plain = Graph(comfy), Graph(comfy), Graph(comfy)
    made = graph.latent(scheduled(graph, summed(graph), "0.8"))
    applied = other.add(
        "LorakitApplyLora", model=other.checkpoint(), lora=summed(other), strength_model=0.8
    )
    assert torch.equal(made, other.latent(applied))
    assert distance(made, plain.latent(plain.checkpoint())) > 0.05
    alone, off = Graph(comfy), Graph(comfy)
    both = alone.latent(scheduled(alone, extracted(alone, recorded(alone)), "0: 1, 1: 0.9"))
    wanted = off.latent(off.checkpoint("flux-tuned"))
    assert distance(both, wanted) < distance(plain.latent(plain.checkpoint()), wanted)


def test_a_record_outside_of_the_lists_is_not_taken_for_another(comfy):
    """Of the same name as one in output/activations: the list's name would be that one's."""
    graph = Graph(comfy)
    listed = recorded(graph, prefix="activations/same")
    assert "do not list it" not in graph.text(listed)
    graph = Graph(comfy)
    elsewhere = recorded(graph, prefix="elsewhere/same")
    assert "for them let `prefix` begin with activations/" in graph.text(elsewhere)
    with pytest.raises(GraphError, match="is no file in models/activations or output/activations"):
        graph.text(extracted(graph, elsewhere))


def test_what_does_not_go_together_is_said(comfy):
    graph = Graph(comfy)
    with pytest.raises(GraphError, match="`sum` keeps every LoRA whole: leave `keep_whole` empty"):
        graph.text(summed(graph, keep_whole="lora1"))
    graph = Graph(comfy)
    with pytest.raises(GraphError, match=r"`\| OUTALL` of flux-tuned \+ one: blocks: the numbers"):
        graph.text(scheduled(graph, summed(graph), "1 | OUTALL"))


def test_nothing_connected_is_nothing_to_do(comfy):
    """As where the nodes before are bypassed, whatever else is typed."""
    graph = Graph(comfy)
    node = graph.add("LorakitScheduleLoras", model=graph.checkpoint(), curves="0: 1, 1: 0\n1")
    assert graph.text(node) == "no LoRA arrives: nothing to schedule"
    told = {}
    for method in ("sum", "ties"):
        graph = Graph(comfy)
        baked = graph.add("LorakitBakeLora", checkpoint="flux.safetensors", method=method)
        with pytest.raises(GraphError) as failed:
            graph.text(baked)
        told[method] = str(failed.value)
    assert told["sum"] == told["ties"]


def test_places_of_one_file_in_several_sockets_are_those_of_the_node(comfy):
    graph = Graph(comfy)
    one = graph.lora("one")
    node = graph.add("LorakitCompareLoras", first=one, second=graph.lora("two"))
    graph.nodes[node]["inputs"]["loras.lora1"] = one[0]
    report = graph.text(node)
    assert "lora1: one" in report
    assert "first: one" in report
