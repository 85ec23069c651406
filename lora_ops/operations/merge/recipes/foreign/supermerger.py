"""supermerger, by the `sd_merge_recipe` of its files and by its `mergehistory.csv`.

Fields and their quirks: `mergers.py` of hako-mikan/sd-webui-supermerger 0b1c491.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .....adapters.strengths.blocks import SCHEMES
from .....errors import FormatError
from .....text import plain
from ..recipe import Term
from ..toml_text import number_text
from .found import Draft, Foreign, block_list, listing, number, numbers, substring, text

PROGRAM = "supermerger"
TYPE = "sd-webui-supermerger"
#: Blocks of the list of 110 numbers for Stable Diffusion XL.
_EXTENDED = 110
_METHODS = {
    "normal": "",
    "cosineA": "cosine_a",
    "cosineB": "cosine_b",
    "trainDifference": "train_difference",
    "smoothAdd": "smooth_add",
    "smoothAdd MT": "smooth_add",
    "tensor": "tensor_sum",
    "tensor2": "tensor_sum",
}
_COLUMNS = 23
_LONGEST = 2**20  # characters of one field


@dataclass(frozen=True, slots=True)
class _Merge:
    """What both records say, in one form. `alphas` and `betas` have BASE first; empty: no blocks."""

    mode: str
    calculation: str
    models: Sequence[tuple[str, str]]  # name, SHA-256
    alpha: float
    beta: float
    alphas: Sequence[float]
    betas: Sequence[float]
    elemental: str
    choice: str  # Off, Include, Exclude
    chosen: Sequence[str]


def read(recipe: Mapping[str, object], models: Mapping[str, str]) -> Foreign:
    """Read the recipe of a merged file.

    Args:
        recipe: `sd_merge_recipe`.
        models: Names by SHA-256.

    Raises:
        FormatError: It does not say what was merged, or how.
    """
    draft = Draft(PROGRAM, models)
    choice = next((key for key in ("Include", "Exclude") if key in recipe), "Off")

    def weights(which: str) -> list[float]:
        if recipe.get("mbw") is not True:
            return []
        given = recipe.get(f"weights_{which}_orig")
        if choice != "Off":  # the other then has 0 for blocks of which one layer is left out
            base = number(recipe.get(f"base_{which}"), f"base_{which}", PROGRAM)
            given = [base, *numbers(recipe.get(f"weights_{which}") or [], which, PROGRAM)]
        return _of_scheme(numbers(given or [], f"weights_{which}_orig", PROGRAM))

    elements = [text(one) for one in listing(recipe.get("elemental_merge"))]
    merge = _Merge(
        text(recipe.get("mode")),
        text(recipe.get("calcmode")) or "normal",
        [("", text(recipe.get(key))) for key in ("model_a", "model_b", "model_c")],
        number(recipe.get("base_alpha"), "base_alpha", PROGRAM),
        number(recipe.get("base_beta") or 0, "base_beta", PROGRAM),
        weights("alpha"),
        weights("beta") if isinstance(recipe.get("weights_beta"), list) else [],
        ",".join(one for one in elements if one.strip()),
        choice,
        [text(one) for one in listing(recipe.get(choice)) if one],
    )
    draft.lose(
        "whether a VAE was baked in, and adjustments of colour, are not in supermerger's record"
    )
    return _drafted(draft, merge).finished()


def read_history(content: str, row: int | None = None) -> Foreign:
    """Read one merge of a `mergehistory.csv`.

    Args:
        content: The file's text.
        row: The number of the merge, as in its column `ID`; None for the last.

    Raises:
        FormatError: There is no such row, or it does not say what was merged.
    """
    limit = csv.field_size_limit(_LONGEST)
    try:
        rows = [one for one in csv.reader(io.StringIO(content)) if one]
    except csv.Error as error:
        raise FormatError(f"the history of supermerger is no table: {plain(str(error))}") from None
    finally:
        csv.field_size_limit(limit)
    if not rows or rows[0][:3] != ["ID", "time", "name"]:
        raise FormatError("this is no history of supermerger: it begins with other columns")
    ids = [one[0] for one in rows[1:]]
    if not ids or (row is not None and str(row) not in ids):
        raise FormatError(f"the history has no merge {row}; it has {', '.join(ids[:20]) or 'none'}")
    found = rows[1 + (len(ids) - 1 if row is None else ids.index(str(row)))]
    return _of_row([*found, *[""] * (_COLUMNS - len(found))])


def _of_row(row: Sequence[str]) -> Foreign:
    # The header names 16 columns and is wrong from the 13th on; these are of the rows.
    (_, _, title, alphas, betas, a, b, c, alpha, beta, mode, blocks, name, saved) = row[:14]
    (elemental, calculation, seed, adjust, gamma, choice, ex_blocks, ex_elements) = row[15:23]
    draft = Draft(PROGRAM)
    used = blocks == "True"
    if saved and "fp16" in saved:
        draft.lose("it was saved in fp16: give a dtype for the output")
    if adjust.strip(",0 "):
        draft.lose(f"adjustments of colour and detail: `{adjust}`")
    if calculation == "extract" and gamma:
        draft.lose(f"the gamma of extract: {gamma}")
    if seed not in ("", "0") and "R" in f"{alphas}{betas}{elemental}":
        draft.lose(f"random weights, seed {seed}")
    named = [(f"{one}.safetensors" if one else "", "") for one in (a, b, c)]
    if any(re.fullmatch(r"[0-9a-f]{8,10}", one) for one in (a, b, c)):
        draft.lose("models are recorded by the beginning of their hash, which is here their name")
    chosen = [*re.findall(r"[\w]+", ex_blocks), *_split(ex_elements.strip("[]").replace("'", ""))]
    merge = _Merge(
        mode.partition(":")[0],
        calculation or "normal",
        named,
        number(alpha, "alpha", PROGRAM),
        number(beta or 0, "beta", PROGRAM),
        _of_scheme(numbers(alphas, "weights alpha", PROGRAM)) if used and alphas else [],
        _of_scheme(numbers(betas, "weights beta", PROGRAM)) if used and betas else [],
        ",".join(_split(elemental)),
        choice or "Off",
        chosen,
    )
    return _drafted(draft, merge).finished(name or title)


def _split(value: str) -> list[str]:
    return [one.strip() for one in re.split(r"[,\n]", value) if one.strip()]


def _of_scheme(values: list[float]) -> list[float]:
    """A list as users write it: that of XL comes with a number of the VAE behind."""
    if len(values) in (*SCHEMES, _EXTENDED) or not values:
        return values
    if len(values) == 21:
        return values[:20]
    raise FormatError(
        f"the recipe of {PROGRAM} has {len(values)} block weights; it knows 20, 26, 61, 110"
    )


def _drafted(draft: Draft, merge: _Merge) -> Draft:
    a, b = (draft.file(*model) for model in merge.models[:2])
    method = _METHODS.get(merge.calculation)
    if method is None:
        method = merge.calculation
        draft.lose(f"calculation mode `{method}` has no method here")
    legacy = PROGRAM
    first = _term(draft, merge, b, merge.alpha, merge.alphas)
    if "Add" in merge.mode or merge.calculation in ("trainDifference", "extract"):
        c = draft.file(*merge.models[2])
        term = Term(
            b, c, first.weight, first.blocks, first.where, first.elemental, first.parameters
        )
        draft.step([term], base=a, method=method or "sum", legacy=legacy)
    elif "Triple" in merge.mode or "Twice" in merge.mode:
        if method:
            draft.lose(f"calculation mode `{merge.calculation}` in mode `{merge.mode}`")
        c = draft.file(*merge.models[2])
        second = _term(draft, merge, c, merge.beta, merge.betas, elemental=False)
        if "Triple" in merge.mode:
            draft.step([first, second], base=a, legacy=legacy)
        else:
            step = draft.step([first], base=a, method="lerp", legacy=legacy)
            draft.step([second], base=step, method="lerp", legacy=legacy)
    else:
        parameters = {"beta": merge.beta} if "tensor" in merge.calculation else {}
        if parameters and merge.betas:
            draft.lose("beta by block: it is the one number of BASE here")
        if merge.calculation == "tensor2":
            draft.lose("`tensor2` cuts along the second axis, `tensor_sum` along the first")
        draft.step([first], base=a, method=method or "lerp", legacy=legacy, parameters=parameters)
    return draft


def _term(
    draft: Draft,
    merge: _Merge,
    of: str,
    weight: float,
    blocks: Sequence[float],
    *,
    elemental: bool = True,
) -> Term:
    """A term with its weights by block and element, and with what was left out."""
    values = list(blocks)
    where: list[str] = []
    if len(values) == _EXTENDED:
        where = [
            f"{pattern}={number_text(value)}"
            for pattern, value in zip(_extended(), values, strict=True)
            if pattern
        ]
        weight, values = 1.0, []
    labels = SCHEMES[len(values) or 26].labels
    chosen = [one for one in merge.chosen if one not in ("print", "VAE", "Adjust")]
    named = [one for one in chosen if one in labels]
    elements = [one for one in chosen if one not in labels]
    if merge.choice != "Off" and named and not where:
        values = values or [weight] * len(labels)
        out = [(label in named) == (merge.choice == "Exclude") for label in labels]
        values = [0.0 if gone else value for gone, value in zip(out, values, strict=True)]
    elif merge.choice != "Off" and named:
        draft.lose(f"{merge.choice.lower()}d blocks with 110 numbers: {', '.join(named)}")
    if merge.choice == "Exclude":
        where += [substring(one, 0) for one in elements]
    elif merge.choice == "Include" and elements:
        draft.lose(f"only these elements were merged: {', '.join(elements)}")
    return Term(
        of,
        weight=1.0 if values else weight,
        blocks=block_list(values),
        where=tuple(where),
        elemental=merge.elemental if elemental else "",
    )


def _extended() -> list[str]:
    """Patterns for the 110 numbers of XL, in their order; those of parts follow that of the whole."""
    counts = {4: 2, 5: 2, 7: 10, 8: 10}  # transformer blocks of the input blocks
    found = ["te1", "te2", "input_blocks.0", "input_blocks.0.0"]
    for block in range(1, 9):
        found.append(f"input_blocks.{block}.0")
        if count := counts.get(block):
            found.append(f"input_blocks.{block}.1")
            found += [f"input_blocks.{block}.1.transformer_blocks.{n}" for n in range(count)]
    found += ["middle_block.0", "middle_block.1"]
    found += [f"middle_block.1.transformer_blocks.{n}" for n in range(10)] + ["middle_block.2"]
    for block in range(9):
        found.append(f"output_blocks.{block}.0")
        count = 10 if block < 3 else 2 if block < 6 else 0
        if count:
            found.append(f"output_blocks.{block}.1")
            found += [f"output_blocks.{block}.1.transformer_blocks.{n}" for n in range(count)]
        if block in (2, 5):
            found.append(f"output_blocks.{block}.2")
    return [*found, r"/(?:^|\.)out\.\d/", "time_embed", "label_emb", ""]
