"""Recipes at random, and those that other programs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from lorakit.lora_ops.errors import LoraOpsError
from lorakit.lora_ops.operations.merge.recipes.document import as_toml, parse_document
from lorakit.lora_ops.operations.merge.recipes.recipe import (
    LEGACY,
    PARTS,
    SPARSIFIERS,
    STEP_KEYS,
    TERM_KEYS,
    Output,
    Recipe,
    RecipeFile,
    Step,
    Term,
)

#: What the programs themselves wrote when they were run with invented settings: the `sd_merge_recipe` of
#: AUTOMATIC1111 1.10, supermerger 0b1c491, Chattiori 5fc7fc2, model-mixer 8d55c1d; the history of
#: supermerger; sd-mecha 1.1.8; mergekit 0.1.5, with the weights that it finds for some names.
FOREIGN: dict[str, Any] = json.loads(
    (Path(__file__).with_name("data") / "foreign_recipes.json").read_text("utf-8")
)
MODELS = {letter * 64: f"{letter}model.safetensors" for letter in "abc"}

#: A table of methods as a recipe asks for it.
METHODS = {
    "sum": SimpleNamespace(parameters={}),
    "average": SimpleNamespace(parameters={}),
    "lerp": SimpleNamespace(parameters={}),
    "ties": SimpleNamespace(
        parameters={"density": SimpleNamespace(low=0, high=1, whole=False), "scope": None}
    ),
    "karcher": SimpleNamespace(
        parameters={"iterations": SimpleNamespace(low=1, high=100, whole=True)}
    ),
    "cosine_a": SimpleNamespace(parameters={}),
}

_numbers = st.floats(-1e6, 1e6).filter(lambda x: x == x + 0.0)
_named = st.sampled_from(["$a", "1 - $a", "$a*$b", "-0.5*$other"])
_amounts = _numbers | _named
_weights = _amounts | st.lists(_amounts, min_size=1, max_size=5).map(tuple)
_letters = st.characters(exclude_categories=("C", "Z"), exclude_characters="$/\\")
_words = st.text(_letters, min_size=1, max_size=12).filter(lambda x: x not in (".", ".."))
_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
_values = st.booleans() | _weights | _texts.filter(lambda x: "$" not in x)


def _parameters(taken: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(
        ["density", "alpha", "lambda", "scope", "t", "größe", "x y", "iterations"]
    )
    return st.dictionaries(names.filter(lambda name: name not in taken), _values, max_size=3)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that means something."""
    files = {
        key: RecipeFile(
            draw(_words),
            draw(st.sampled_from(["", "0123456789abcdef" * 4])),
            draw(_texts),
            kind=draw(st.sampled_from(["", "checkpoint"])),
            part=draw(st.sampled_from(["", *PARTS])),
        )
        for key in draw(st.lists(_words, min_size=1, max_size=3, unique=True))
    }
    known = list(files)
    steps: list[Step] = []
    for name in draw(
        st.lists(_words.filter(lambda x: x not in files), min_size=1, max_size=3, unique=True)
    ):
        of = st.sampled_from(known)
        term = st.builds(
            Term,
            of,
            weight=_weights,
            blocks=_texts,
            where=st.lists(_texts.filter(bool), max_size=2).map(tuple),
            parameters=_parameters(TERM_KEYS),
        )
        steps.append(
            Step(
                name,
                tuple(draw(st.lists(term, min_size=1, max_size=3))),
                method=draw(st.sampled_from(["sum", *METHODS])),
                base=draw(of | st.just("")),
                sparsify=draw(st.sampled_from(SPARSIFIERS)),
                legacy=draw(st.sampled_from(["", *LEGACY])),
                seed=draw(st.none() | st.integers(0, 2**63 - 1)),
                parameters=draw(_parameters(STEP_KEYS)),
            )
        )
        known.append(name)
    parts = draw(st.dictionaries(st.sampled_from(PARTS), st.sampled_from(known), max_size=2))
    output = Output(
        draw(st.dictionaries(st.sampled_from(["all", *PARTS]), st.sampled_from(["fp16", "bf16"]))),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        format=draw(st.sampled_from(["", "single", "sharded", "8GB"])),
        keep=draw(st.sampled_from(["auto", "on", "off"])),
    )
    return Recipe(tuple(steps), files, draw(_texts), parts, output)


def read_or_refused(read):
    """Either our document, which reads back, or a message of ordinary length."""
    found, refused = None, ""
    try:
        found = read()
    except LoraOpsError as error:
        refused = str(error)
    assert len(refused) < 900
    assert found is None or parse_document(as_toml(found.recipe)) == found.recipe
