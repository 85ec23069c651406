"""What only recipes of other programs say, in the words of the methods here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...adapters.strengths.blocks import locate
from ...errors import ArgumentError
from ..methods.choosing import legacies, method_taken
from .recipes.recipe import Step, Term

_BASE = "BASE"
_NOT = "NOT"


def plainly(step: Step) -> Step:
    """Return a step as the methods take it.

    `B - C` as the one term of a method with places for B and C is two terms; a number `beta` is the
    weight of the second, or where `tensor_sum` begins; `rescale` by yes or no is by density or not; and
    `legacy` is left where the program's meaning of the method is its definition.

    Args:
        step: With numbers for all names.
    """
    known = method_taken(step.method)
    parameters = dict(step.parameters)
    terms = step.terms
    beta = parameters.get("beta")
    if known is not None and "beta" not in known.parameters and isinstance(beta, int | float):
        if "offset" in known.parameters:
            parameters["offset"] = parameters.pop("beta")
        elif known.terms == (2, 2):
            del parameters["beta"]
    if known is not None and known.terms == (2, 2) and len(terms) == 1 and terms[0].minus:
        second = Term(terms[0].minus, weight=beta if isinstance(beta, int | float) else 0.0)
        terms = (replace(terms[0], minus=""), second)
    if isinstance(parameters.get("rescale"), bool):
        parameters["rescale"] = "density" if parameters["rescale"] else "no"
    return replace(step, terms=terms, parameters=parameters, legacy=_meant(step))


def _meant(step: Step) -> str:
    """The program of `legacy`, if what it calls the method is not the definition."""
    method = method_taken(step.method, step.sparsify)
    return step.legacy if method is not None and step.legacy in legacies(method) else ""


def elemental_weights(step: Step, text: str, names: Sequence[str]) -> dict[str, float]:
    """Read supermerger's `BLOCKS:ELEMENTS:RATIO`: the weights of the parameters that it is about.

    Blocks are labels, ranges of them, or any part of a name, with spaces between; nothing is all of
    them, and `NOT` in front means all others. Elements are parts of names, with the same rules. The
    last entry that fits decides.

    Args:
        step: For messages.
        text: Entries with commas or ends of lines between.
        names: Targets of all parameters that are merged.

    Raises:
        ArgumentError: An entry is none, or has no finite number.
    """
    blocks = locate(names)
    held = {} if blocks is None else {one.label: own for one, own in blocks.modules.items()}
    of = {name: label for label, own in held.items() for name in own}
    order = list(held)
    found: dict[str, float] = {}
    for entry in filter(None, (one.strip() for one in text.replace("\n", ",").split(","))):
        words, elements, ratio = _entry(step, entry)
        places = [one for word in words for one in _range(word, order)]
        for name in names:
            end = "" if name.endswith(".bias") else ".weight"
            spelled = f"model.{name}{end}{of.get(name, _BASE)}"
            if _fits(places, spelled) and _fits(elements, spelled):
                found[name] = ratio
    return found


def _entry(step: Step, entry: str) -> tuple[list[str], list[str], float]:
    parts = entry.split(":")
    try:
        ratio = float(parts[-1])
    except ValueError:
        ratio = math.nan
    if len(parts) != 3 or not math.isfinite(ratio):
        raise ArgumentError(
            f"step `{step.name}`: `{entry}` of `elemental` is not BLOCKS:ELEMENTS:RATIO"
        )
    return parts[0].split(" "), parts[1].split(" "), ratio


def _range(word: str, order: Sequence[str]) -> Iterator[str]:
    first, _, last = word.partition("-")
    if first in order and last in order:
        yield from order[order.index(first) : order.index(last) + 1]
    else:
        yield word


def _fits(words: Sequence[str], name: str) -> bool:
    if words[0] == _NOT:
        return not any(word in name for word in words[1:])
    return any(word in name for word in words)
