"""Chattiori's model merger, by the `sd_merge_recipe` of its files.

Fields: `merge.py` of Faildes/Chattiori-Model-Merger 5fc7fc2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .....errors import FormatError
from .....text import plain
from ..recipe import Output, Term
from .found import Draft, Foreign, block_list, number, numbers, text

PROGRAM = "Chattiori's merger"
TYPE = "merge-models-chattiori"
LEGACY = "chattiori"

# preset:[(min,max,seed,[elements])],BASE,[[numbers],[elements]]; the preset for random ratios alone.
_INFO = re.compile(
    r"(?:preset:\[(?P<random>.*)\],)?(?P<base>[^,\[\]]+)(?:,\[\[(?P<blocks>[^\]]*)\],\[(?P<elements>.*)\]\])?"
)
_LONGEST = 100_000  # characters
#: Methods of one model and the difference of two, and methods of two models.
_DIFFERENCE = {
    "Add Difference": "sum",
    "smooth Add Difference": "smooth_add",
    "Train Difference": "train_difference",
    "Similarity Add Difference": "similarity",
    "Multiply Difference": "multiply_difference",
}
_PAIR = {
    "Weighted Sum": "lerp",
    "Tensor Sum": "tensor_sum",
    "Sigmoid Merge": "sigmoid",
    "Geometric Sum": "geometric",
    "Max Merge": "max",
    "DARE Merge": "sum",
}


@dataclass(frozen=True, slots=True)
class _Ratio:
    """What the text about one ratio says."""

    base: float
    blocks: str
    elemental: str

    def term(self, of: str, minus: str = "") -> Term:
        weight = 1.0 if self.blocks else self.base
        return Term(of, minus, weight, self.blocks, elemental=self.elemental)


def read(recipe: Mapping[str, object], models: Mapping[str, str]) -> Foreign:
    """Read the recipe of a merged file.

    Args:
        recipe: `sd_merge_recipe`.
        models: Names by SHA-256.

    Raises:
        FormatError: It does not say what was merged, or how.
    """
    draft = Draft(PROGRAM, models)
    a = draft.file(sha256=text(recipe.get("primary_model_hash")))
    method = text(recipe.get("merge_method"))
    if method == "No Interpolation":
        draft.step(base=a)
    else:
        _merged(draft, recipe, method, a)
    vae = text(recipe.get("bake_in_vae"))
    if vae:
        draft.parts["vae"] = draft.file(f"{vae}.safetensors")
    calculation = text(recipe.get("calculation"))
    for word in re.findall(r"fine\[.*\]|use_dif_\d\d", calculation):
        draft.lose(f"`{word}`, which changes a model before it is merged")
    if recipe.get("pruned") is True:
        draft.lose("what belongs to no component was pruned; it is kept here if the base has it")
    dtype = text(recipe.get("fp"))
    if dtype == "fp8":
        draft.lose("it was saved in fp8")
    output = Output({"all": dtype} if dtype in ("fp16", "fp32") else {})
    return draft.finished(text(recipe.get("output_name")), output)


def _merged(draft: Draft, recipe: Mapping[str, object], method: str, a: str) -> None:
    b = draft.file(sha256=text(recipe.get("secondary_model_hash")))
    alpha = _ratio(draft, recipe.get("alpha_info"))
    beta = _ratio(draft, recipe.get("beta_info")) if recipe.get("beta_info") else None
    if method in ("Triple Sum", "Sum Twice", *_DIFFERENCE):
        c = draft.file(sha256=text(recipe.get("tertiary_model_hash")))
        second = beta or _Ratio(0, "", "")
        if method == "Triple Sum":
            draft.step([alpha.term(b), second.term(c)], base=a, legacy=LEGACY)
        elif method == "Sum Twice":
            step = draft.step([alpha.term(b)], base=a, method="lerp", legacy=LEGACY)
            draft.step([second.term(c)], base=step, method="lerp", legacy=LEGACY)
        else:
            parameters = _beta(draft, beta)
            draft.step(
                [alpha.term(b, c)],
                base=a,
                method=_DIFFERENCE[method],
                legacy=LEGACY,
                parameters=parameters,
            )
        return
    ours = _PAIR.get(method)
    if ours is None:
        ours = method.lower().replace(" ", "_") or "unknown"
        draft.lose(f"method `{method}` has no like here")
    words = text(recipe.get("calculation")).split(",")
    if method == "Weighted Sum" and "cosine_0" in words:
        ours = "cosine_a"
    if method == "Weighted Sum" and "cosine_1" in words:
        ours = "cosine_b"
    if method == "DARE Merge":
        draft.lose("the random numbers of its mask, which have no seed")
        # Half of the change, twice as strong; later versions keep a share of beta.
        density = beta.base if beta else 0.5
        parameters = {"density": density}
        legacy = LEGACY if beta and density != 0.5 else ""
        draft.step([alpha.term(b)], base=a, sparsify="dare", legacy=legacy, parameters=parameters)
        return
    draft.step([alpha.term(b)], base=a, method=ours, legacy=LEGACY, parameters=_beta(draft, beta))


def _beta(draft: Draft, beta: _Ratio | None) -> dict[str, float]:
    if beta is None:
        return {}
    if beta.blocks:
        draft.lose("beta by block: it is the one number of BASE here")
    return {"beta": beta.base}


def _ratio(draft: Draft, info: object) -> _Ratio:
    written = text(info)
    match = _INFO.fullmatch(written) if len(written) < _LONGEST else None
    if match is None:
        raise FormatError(
            f"the recipe of {PROGRAM} gives a ratio as `{plain(str(info)[:80])}`, which is not known"
        )
    base = number(match["base"], "a ratio", PROGRAM)
    draft.lose("ratios are recorded to three digits")
    if match["random"]:
        draft.lose(f"how ratios were drawn: {match['random']}; the numbers themselves are there")
    elements = ",".join(re.findall(r"'([^']*:[^']*:[^']*)'", match["elements"] or ""))
    if not match["blocks"]:
        return _Ratio(base, "", elements)
    values = [base, *numbers(match["blocks"], "block weights", PROGRAM)]
    if len(values) == 21:  # the last is of the VAE of XL
        values.pop()
    return _Ratio(base, block_list(values), elements)
