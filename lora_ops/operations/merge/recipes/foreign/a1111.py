"""The checkpoint merger of AUTOMATIC1111's web UI, by the `sd_merge_recipe` of its files.

Fields: `extras.py` of the web UI 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..recipe import Output, Term
from .found import Draft, Foreign, number, text

PROGRAM = "AUTOMATIC1111's web UI"
TYPE = "webui"


def read(recipe: Mapping[str, object], models: Mapping[str, str]) -> Foreign:
    """Read the recipe of a merged file.

    Args:
        recipe: `sd_merge_recipe`.
        models: Names by SHA-256.

    Raises:
        FormatError: It does not say what was merged.
    """
    draft = Draft(PROGRAM, models)
    a = draft.file(sha256=text(recipe.get("primary_model_hash")))
    method = text(recipe.get("interp_method"))
    if method == "No interpolation":
        draft.step(base=a)
    else:
        weight = number(recipe.get("multiplier"), "multiplier", PROGRAM)
        b = draft.file(sha256=text(recipe.get("secondary_model_hash")))
        if method == "Add difference":
            c = draft.file(sha256=text(recipe.get("tertiary_model_hash")))
            step = draft.step([Term(b, c, weight)], base=a)
        else:
            step = draft.step([Term(b, weight=weight)], base=a, method="lerp")
            if method != "Weighted sum":
                draft.lose(f"interpolation `{method}` is unknown: taken for a weighted sum")
        draft.parts["vae"] = step  # merged like all else
        draft.lose(
            "weights that only the second model has were taken from it; here they are left out"
        )
    vae = text(recipe.get("bake_in_vae"))
    if vae not in ("", "None"):
        draft.parts["vae"] = draft.file(vae)
    if discarded := text(recipe.get("discard_weights")):
        draft.lose(f"weights that match `{discarded}` were thrown away")
    if saved := text(recipe.get("save_as")):
        draft.lose(f"number formats by component: {saved}")
    half = {"all": "fp16"} if recipe.get("save_as_half") is True else {}
    return draft.finished(text(recipe.get("custom_name")), Output(half))
