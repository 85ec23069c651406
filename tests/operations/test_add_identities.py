"""What holds of every way of adding, at every scope: one input, equal inputs, and their order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lorakit.lora_ops import Adapter, LoraLayer, Term, add
from lorakit.lora_ops.errors import MismatchError
from lorakit.lora_ops.operations.methods import FACTORED, METHODS
from lorakit.lora_ops.operations.methods.parameters import Choice

NAME, OUT, INTO, RANK = "diffusion_model.x", 20, 14, 4
STRENGTHS = (0.7, -0.4, 1.2)
# Where nothing is dropped, elements are only elected and weighed.
WHOLE = {"density": 1.0, "gamma": 0.0}
# As these stand for: of equal inputs the first gives way, copies are one cluster that is made up for by
# the root of its size, and all directions get their mean strength.
NP, LEGO = 2 - 0.5 / 1.5, math.sqrt(2)
TWICE = {"sum", "energy", "magnitude", "dare", "breadcrumbs", "ctm"}


def scopes(method: str) -> tuple[str, ...]:
    scope = FACTORED[method].parameters.get("scope") if method in FACTORED else None
    return scope.options if isinstance(scope, Choice) else ("",)


CASES = [(method, scope) for method in (*METHODS, *FACTORED) for scope in scopes(method)]


def told(method: str, scope: str, **more: Any) -> dict[str, Any]:
    known = FACTORED[method].parameters if method in FACTORED else {}
    whole = {name: value for name, value in WHOLE.items() if name in known}
    return {**whole, **({"scope": scope} if scope else {}), **more}


def layers() -> list[LoraLayer]:
    source = torch.Generator().manual_seed(1)
    return [
        LoraLayer(
            torch.randn(OUT, RANK, generator=source), torch.randn(RANK, INTO, generator=source)
        )
        for _ in STRENGTHS
    ]


def added(
    method: str, held: list[LoraLayer], strengths: tuple[float, ...], parameters: dict[str, Any]
) -> Tensor:
    terms = [
        Term(Adapter({NAME: layer}, {}, {}, "comfy"), {NAME: strength}, str(at))
        for at, (layer, strength) in enumerate(zip(held, strengths, strict=True))
    ]
    rule = INTO if parameters.get("scope") == "element" else None
    result, _ = add(terms, rule, method=method, parameters=parameters)
    return result.layers[NAME].delta(torch.float64)


def near(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 2e-6


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_one_input_gives_itself_whatever_is_trimmed(method: str, scope: str) -> None:
    trimmed = {"scope": scope} if scope else {}
    one = layers()[0]
    assert near(added(method, [one], (0.7,), trimmed), 0.7 * one.delta(torch.float64))


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_equal_inputs_give_the_input_or_their_sum(method: str, scope: str) -> None:
    one, parameters = layers()[0], told(method, scope)
    if method == "orthogonalise":  # what the second adds to the first
        with pytest.raises(MismatchError, match="cancel"):
            added(method, [one, one], (1.0, 1.0), parameters)
        return
    found = added(method, [one, one], (1.0, 1.0), parameters)
    delta = one.delta(torch.float64)
    if method == "iso":
        u, s, vh = torch.linalg.svd(delta)
        wanted = 2 * s[:RANK].mean() * u[:, :RANK] @ vh[:RANK]
    else:
        wanted = delta * {"np": NP, "lego": LEGO}.get(method, 2.0 if method in TWICE else 1.0)
    assert near(found, wanted)


def test_equal_inputs_in_one_subspace_and_by_ties_are_the_input() -> None:
    one = layers()[0]
    found = added("ctm", [one, one], (1.0, 1.0), told("ctm", "", merge="ties"))
    assert near(found, one.delta(torch.float64))


# Masks are drawn by place; the others are about a first and a second, or begin with a first center.
@pytest.mark.parametrize(
    ("method", "scope"), [one for one in CASES if one[0] not in ("orthogonalise", "np", "lego")]
)
def test_order_does_not_matter(method: str, scope: str) -> None:
    random = method in ("dare", "dare_ties", "della")
    parameters = told(method, scope) if random else {"scope": scope} if scope else {}
    held = list(zip(layers(), STRENGTHS, strict=True))[: 2 if method == "slerp" else 3]
    one, other = (
        added(method, [layer for layer, _ in order], tuple(s for _, s in order), parameters)
        for order in (held, held[::-1])  # slerp: half the way, by default
    )
    assert near(one, other)
