"""Add LoRAs shows a parameter where it does something: with each method, at each scope that the method has."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapters import Part, adapter
from host_double import standing_in

from lorakit.lora_ops import Term, add
from lorakit.lora_ops.operations.methods import FACTORED, METHODS, Choice

# Another value of each, which a method that looks at it does not overlook.
OTHER: dict[str, Any] = {
    "t": 0.9,
    "iterations": 1,
    "tolerance": 1.0,
    "density": 0.37,
    "mu": 3.0,
    "directions": 2,
    "seed": 5,
}


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    with standing_in():
        yield


def shown(method: str) -> list[str]:
    """The parameters that the node shows with a method."""
    node: Any = importlib.import_module("lorakit.nodes.edit.add_loras")
    return [one.given["id"] for one in node._parameters(method)]


def cases(method: str) -> Iterator[tuple[str, str]]:
    """Each scope, and each parameter that is shown with it."""
    names, found = shown(method), FACTORED.get(method)
    scope = found.parameters.get("scope") if found and "scope" in names else None
    scopes = scope.options if isinstance(scope, Choice) else ("",)
    yield from ((one, name) for one in scopes for name in names if name != "scope")


def made(method: str, scope: str, **parameters: Any) -> torch.Tensor:
    """What the method makes of three LoRAs, or of two where it takes no more."""
    found = FACTORED.get(method)
    most = 2 if method == "slerp" or (found and found.most == 2) else 3
    terms = [Term(adapter([Part("linear", 4, seed=seed)])) for seed in range(1, most + 1)]
    chosen = parameters | ({"scope": scope} if scope else {})
    rule = 4 if scope == "element" else None
    summed, _ = add(terms, rule, method=method, parameters=chosen)
    (layer,) = summed.layers.values()
    return layer.delta(torch.float64)


@pytest.mark.parametrize("method", [*METHODS, *FACTORED])
def test_what_is_shown_does_something(method: str) -> None:
    for scope, name in cases(method):
        plain, other = made(method, scope), made(method, scope, **{name: OTHER[name]})
        assert not torch.allclose(plain, other, rtol=1e-4, atol=1e-6), (scope, name)


def test_most_methods_have_something_to_set() -> None:
    assert sum(len(list(cases(method))) for method in METHODS | FACTORED) > 30
    assert shown("sum") == shown("tsv") == []
    assert "seed" not in shown("ties")
    assert "scope" not in shown("knots")
