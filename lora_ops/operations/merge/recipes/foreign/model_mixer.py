"""model-mixer, by the `sd_merge_recipe` of its files: models are folded in one after the other.

Fields: `model_mixer.py` of wkpark/sd-webui-model-mixer 8d55c1d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .....errors import FormatError
from ..recipe import Term
from ..toml_text import number_text
from .found import Draft, Foreign, bare, block_list, listing, number, numbers, text

PROGRAM = "model-mixer"
TYPE = "sd-webui-model-mixer"
LEGACY = "model_mixer"
#: How the change of a model is thinned, and whether the weight is the density.
_THINNED = {
    "DARE": ("dare", False),
    "Dare-Fixed": ("dare", True),
    "TIES": ("magnitude", False),
    "Ties-Fixed": ("magnitude", True),
}
#: Labels of lists that are not those of merge-block-weighted, by count.
_LABELS = {
    25: ("BASE", *(f"D{n:02}" for n in range(24))),
    58: ("BASE", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38))),
}
_MOST = 64


def read(recipe: Mapping[str, object], models: Mapping[str, str]) -> Foreign:
    """Read the recipe of a merged file.

    Args:
        recipe: `sd_merge_recipe`.
        models: Names by SHA-256.

    Raises:
        FormatError: It does not say what was merged, or how.
    """
    draft = Draft(PROGRAM, models)
    hashes = {name: sha256 for sha256, name in models.items()}

    def file(key: str) -> str:
        name = text(recipe.get(key))
        plain_name = bare(name)
        found = hashes.get(name, hashes.get(plain_name, ""))
        complete = "." in plain_name or not plain_name
        return draft.file(plain_name if complete else f"{plain_name}.safetensors", found)

    modes = [text(one) for one in listing(recipe.get("mode"))][:_MOST]
    if not modes:
        raise FormatError(f"the recipe of {PROGRAM} has no `mode`: nothing was merged")
    last = file("model_a")
    base = file("base_model") if "Add-Diff" in modes and recipe.get("base_model") else ""
    for index, mode in enumerate(modes):
        key = f"model_{chr(ord('b') + index)}"
        if text(recipe.get(key)):
            last = _folded(draft, recipe, index, mode, last, file(key), base)
    if not draft.steps:
        draft.step(base=last)
    if adjust := text(recipe.get("adjust")).strip(",0 "):
        draft.lose(f"adjustments of colour and detail: `{adjust}`")
    return draft.finished()


def _folded(
    draft: Draft,
    recipe: Mapping[str, object],
    index: int,
    mode: str,
    last: str,
    of: str,
    base: str,
) -> str:
    """Add the step that folds one model into what there is."""

    def nth(key: str) -> object:
        return dict(enumerate(listing(recipe.get(key)))).get(index)

    calculation = text(nth("calcmode")) or "Normal"
    if calculation != "Normal":
        draft.lose(f"calculation mode `{calculation}` of model {index + 2}")
    weight = number(nth("alpha") or 0, "alpha", PROGRAM)
    blocks = ""
    if nth("use_mbws") is True:
        weight, blocks = 1.0, _blocks(numbers(nth("weights_alpha"), "weights_alpha", PROGRAM))
    elemental = text(nth("elemental")) if nth("use_elemental") is True else ""
    term = Term(of, weight=weight, blocks=blocks, elemental=elemental)
    if mode in _THINNED:
        sparsify, is_density = _THINNED[mode]
        parameters: dict[str, bool | float] = {"density": 0.5, "rescale": mode == "DARE"}
        if is_density:
            parameters["density"] = weight
            term = Term(of, blocks=blocks, elemental=elemental)
            if blocks:
                draft.lose(f"density by block in mode `{mode}`: the blocks weigh the change here")
                parameters["density"] = 1.0
        if sparsify == "dare":
            draft.lose("the random numbers of its mask; its seed is a setting of the program")
        return draft.step(
            [term], base=last, sparsify=sparsify, legacy=LEGACY, parameters=parameters
        )
    if mode == "Add-Diff" and base:
        term = Term(of, base, weight, blocks, elemental=elemental)
        return draft.step([term], base=last, legacy=LEGACY)
    if mode == "Add-Diff":
        draft.lose("the base model of `Add-Diff` is not recorded: taken for the first model")
    elif mode == "Replace":
        draft.lose("`Replace` times a weight, and its exceptions: taken for a weighted sum")
    elif mode != "Sum":
        draft.lose(f"mode `{mode}` has no like here: taken for a weighted sum")
    return draft.step([term], base=last, method="lerp", legacy=LEGACY)


def _blocks(values: Sequence[float]) -> str:
    labels = _LABELS.get(len(values))
    if labels is None:
        return block_list(values)
    given = zip(labels, values, strict=True)
    return ",".join(f"{label}={number_text(value)}" for label, value in given)
