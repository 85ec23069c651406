"""Inputs of a sum whose change is made from the weight: what they make of the checkpoint's, at their strengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ...adapters.base import base_weights
from ...adapters.changes import changes_at
from ...adapters.layers import Convention, MadeLayer, innermost
from ...adapters.matching.align import Match
from ...adapters.matching.group import Term
from ...adapters.outline import outline
from ...errors import ArgumentError
from ...models.architectures import Architecture, parameters
from ...report import Report, counted
from ...source import TensorSource
from ..reasons import of_one_weight
from .apart import is_made
from .layer import Adding

# Above this share of such changes that a rank has no room for, the way out is named.
_LOST = 0.3


def with_base(
    term: Term, base: TensorSource | None, convention: Convention, architecture: Architecture | None
) -> Term:
    """Return an input with what its layers make of the weight, at their strengths, in place of those that need it.

    Args:
        term: The adapter and its strengths.
        base: The checkpoint; None: the layers stay what they are.
        convention: How to read kinds on which programs differ; see docs/kinds.md.
        architecture: Of the model; None: told by the checkpoint.

    Raises:
        LoraOpsError: See `base_weights`.
    """
    if base is None:
        return term
    layers = outline(term.adapter.layers)
    if not any(layer.needs_base for layer in layers.values()):
        return term
    weights = base_weights(term.adapter, layers, base, term.name, architecture)
    adapter = changes_at(term.adapter, layers, weights, term.strengths, convention)
    return replace(term, adapter=adapter)


def targets_of(checkpoint: TensorSource | None) -> list[str]:
    """Return the canonical targets of a checkpoint; of none there are none."""
    return [] if checkpoint is None else [one.target for one in parameters(checkpoint).values()]


def check_factors(match: Match, adding: Adding) -> None:
    """Refuse a method that needs factors where changes have all directions of the weight.

    Args:
        match: The inputs, without data.
        adding: What is to be done.

    Raises:
        ArgumentError: Names the first, and what can be done.
    """
    if adding.parameters.get("scope") == "element":
        return
    found: dict[str, str] = {}
    for group in match.groups:
        live = [at for at in group.members if match.terms[at[0]].strength(at[1]) != 0]
        layers = [match.terms[index].layer(target) for index, target in live]
        if len(live) > 1 and adding.makes(layers[0].shape) and any(map(is_made, layers)):
            found[group.target] = next(one.title for one in layers if is_made(one))
    if found:
        target, kind = next(iter(found.items()))
        raise ArgumentError(
            f"method `{adding.method}` needs factors, and {counted(len(found), 'weight')}, the first "
            f"`{target}` by a {kind}, would change in all directions: take a sum or a mean of them, make "
            'a LoRA of a rank of it first (`convert(lora, to="lora", base=checkpoint)`), or bake '
            "the inputs into their checkpoint",
            target=target,
        )


def base_notes(match: Match, report: Report) -> Iterator[str]:
    """Yield what is worth saying of changes that were made from the weight.

    Args:
        match: The inputs, from `with_base`.
        report: Of the sum.
    """
    made, shared = set[str](), list[str]()
    known = match.outline()
    for group in known.groups:
        live = [at for at in group.members if match.terms[at[0]].strength(at[1]) != 0]
        layers = [innermost(known.terms[index].adapter.layers[target]) for index, target in live]
        if any(isinstance(layer, MadeLayer) for layer in layers):
            made.add(group.target)
            if len(live) > 1:
                shared.append(group.target)
    yield from of_one_weight(shared)
    found = [one for one in report.layers if one.target in made]
    energy = math.fsum(one.norm**2 for one in found)
    lost = math.sqrt(math.fsum(one.residual**2 for one in found) / energy) if energy else 0.0
    if lost > _LOST:
        yield (
            f"{lost:.0%} of what is made from the base weights has no room in the rank; baked into "
            "the checkpoint all of it has"
        )
