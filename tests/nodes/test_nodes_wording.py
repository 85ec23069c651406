"""Messages on nodes: their advice names inputs that the node has, or the node that has them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from host_double import standing_in
from messages import advice, calls, parameters

NAMED = re.compile(r"`([a-z_]+)`")
# What a phrase may name that a node lacks: it says of which node it is.
ELSEWHERE = re.compile(r"(?:Convert|Scale|Resize) LoRA[^;.]*")

# Only what a node with these inputs calls can speak of them.
THEIRS = {"allow_partial", "exclude", "full_differences"}


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    with standing_in():
        yield


def inputs() -> dict[str, set[str]]:
    """Names of inputs by node."""
    nodes = importlib.import_module("lorakit.nodes.extension").NODES
    found = (node.define_schema() for node in nodes)
    return {one.node_id: {given.given["id"] for given in one.inputs} for one in found}


def worded(text: str, known: set[str]) -> str:
    told: Any = importlib.import_module("lorakit.nodes.form.wording").worded(text, known)
    return str(told)


def test_advice_names_inputs_that_the_node_has() -> None:
    by_node = inputs()
    every = set().union(*by_node.values())
    messages = advice(lint=False)
    assert len(messages) > 20
    for node, known in by_node.items():
        for message in messages:
            told = worded(message, known)
            assert not parameters(told) | calls(told), (node, message, told)
            here = ELSEWHERE.sub("", told)
            lacking = {name for name in NAMED.findall(here) if name in every - known}
            assert not lacking - THEIRS, (node, message, told)


def test_every_parameter_and_function_of_a_message_has_its_word() -> None:
    wording: Any = importlib.import_module("lorakit.nodes.form.wording")
    for message in advice(lint=False):
        assert parameters(message) <= set(wording.INPUTS), message
        assert calls(message) - {"place"} <= set(wording.NODES), message


def test_some_messages_on_some_nodes() -> None:
    known = inputs()
    convert = 'make it a plain LoRA first: `convert(lora, to="lora", base=checkpoint)`'
    assert worded(convert, known["LorakitScaleLora"]) == (
        "make it a plain LoRA first: Convert LoRA with `kind` lora and `base`"
    )
    assert worded(convert, known["LorakitConvertLora"]) == (
        "make it a plain LoRA first: `kind` lora and `base`"
    )
    rank = 'give one, as `rule=32` or `rule="error=0.1"`'
    assert worded(rank, known["LorakitConvertLora"]) == (
        "give one, as `rank` 32 or `rule` error=0.1"
    )
    assert worded("use `dtype=` bf16 or fp32", known["LorakitScaleLora"]) == "use less strength"
    assert (
        worded("use `dtype=` bf16 or fp32", known["LorakitSaveLora"]) == "use `dtype` bf16 or fp32"
    )
