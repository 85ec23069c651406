"""Add LoRAs: several adapters as one, exactly, or recompressed to a rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..form.schema import (
    dtype_input,
    dtype_of,
    format_input,
    lora_output,
    rank_inputs,
    report_output,
    reported,
    rule_of,
    schema,
)
from ..form.several import (
    ingredients_of,
    keep_whole_input,
    kept_of,
    nothing_in_it,
    several_inputs,
)
from ..form.texts import edit_text
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import from_file

AS_FIRST = "as the first"
# Repeats the methods of the core: importing it would slow the host's start. A test compares the two.
METHODS = {
    "sum": "add them, each times its strength",
    "average": "the sum over the sum of the strengths",
    "slerp": "on the arc from the first to the second",
    "karcher": "mean of the directions on the sphere, at the mean norm",
    "geometric_median": "nearest to all in total; outvotes an outlier",
    "model_stock": "the mean, weaker the less they agree; unrelated LoRAs nearly vanish",
    "orthogonalise": "the last, without its parts along the earlier ones",
    "energy": "add them at equal norms, whatever their sizes",
    "ties": "trim, elect a sign for each element, take the mean of what agrees",
    "magnitude": "keep each one's largest elements and add them",
    "dare": "keep elements by chance, made up for, and add them",
    "dare_ties": "keep elements by chance, then elect signs as TIES does",
    "della": "keep elements by chance, large ones rather, then elect signs",
    "breadcrumbs": "keep elements but the smallest and the largest",
    "sce": "keep the elements that differ most, inputs weighed by them",
    "tsv": "TSV-M: all inputs' singular directions, made orthogonal to each other",
    "iso": "Iso-C: the sum, all of its directions at their mean strength",
    "np": "NP-LoRA: the first gives way in the principal directions of the second",
    "knots": "KnOTS: TIES in common output directions",
    "ctm": "CtM: compress into one subspace, then add there",
    "lego": "LoRA-LEGO: ranks of all inputs clustered",
}
# Where a method on elements works; and how many of those it keeps, if it says so.
_SCOPES = {
    **dict.fromkeys(
        ("ties", "magnitude", "dare_ties", "della", "breadcrumbs", "sce"), ("core", "element")
    ),
    "dare": ("core", "element", "units"),
}
_DENSITIES = {
    "ties": 0.2,
    "knots": 0.2,
    "magnitude": 0.5,
    "dare": 0.5,
    "dare_ties": 0.5,
    "della": 0.5,
    "breadcrumbs": 0.5,
    "sce": 1.0,
}
_BY_CHANCE = ("dare", "dare_ties", "della", "lego")


class AddLoras(io.ComfyNode):
    """Adds adapters of any ranks, alphas, formats and sets of layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "AddLoras",
            "Add LoRAs",
            description="Adds LoRAs into one. Without a rank the sum is exact; with one it is the best "
            "of that rank. Ranks, alphas, formats and sets of layers may differ. Methods from ties on make "
            "something else than a sum; the report says how near it is to the sum.",
            search_aliases=[
                "merge loras",
                "combine loras",
                "concat lora",
                "sum loras",
                "lora merge",
                "subtract lora",
                "ties",
                "np-lora",
                "dare",
                "lora arithmetic",
            ],
            inputs=[
                *several_inputs(2, "1, 0.7, -0.3", " Below 0 subtracts."),
                _method_input(),
                *rank_inputs(default=0, none="all of them: the sum is exact."),
                format_input(AS_FIRST, "Whose names the sum has."),
                dtype_input(),
                io.Model.Input(
                    "reference",
                    optional=True,
                    tooltip="A model that the LoRAs are for, where their names alone leave that in doubt: "
                    "it gives names with underscores their dots back.",
                ),
                io.Model.Input(
                    "base",
                    optional=True,
                    tooltip="The model that the LoRAs were trained on, for kinds that are made from its weights: "
                    "what DoRA, OFT and the like make of them, each at its strength, is added.",
                ),
                keep_whole_input("a method from ties on"),
            ],
            outputs=[lora_output("The sum."), report_output()],
        )

    @classmethod
    @explained
    def execute(
        cls,
        loras: Mapping[str, Mapping[str, Tensor] | None],
        rank: int,
        method: Mapping[str, Any] | None = None,
        strengths: str = "",
        rule: str | None = None,
        format: str = AS_FIRST,
        dtype: str | None = None,
        reference: Any = None,
        base: Any = None,
        keep_whole: str = "",
    ) -> io.NodeOutput:
        """Add them.

        Raises:
            LoraOpsError: They are for different models, or the method, rule or strengths are wrong.
        """
        from ...lora_ops import ArgumentError, MemoryFile, add_files
        from ...version import __version__
        from ..host.model_source import ModelSource

        if method is None:  # the host does not check this choice, and drops what it does not know
            raise ArgumentError(f"no such method; use one of {', '.join(METHODS)}")
        ingredients = ingredients_of(loras, strengths)
        if loras and not ingredients:
            return nothing_in_it()
        made = MemoryFile(" + ".join(Path(one.source.name).stem for one in ingredients))
        report = add_files(
            ingredients,
            made,
            rule_of(rank, rule),
            method=method["method"],
            options={name: value for name, value in method.items() if name != "method"},
            keep_whole=kept_of(loras, keep_whole),
            format=None if format == AS_FIRST else format,
            dtype=dtype_of(dtype),
            reference=None if reference is None else ModelSource("the reference", reference),
            base=None if base is None else ModelSource("the base model", base),
            placement=host.placement(),
            version=__version__,
            progress=host.progress(),
        )
        return reported(edit_text(made.name, report), from_file(made))


def _method_input() -> io.DynamicCombo.Input:
    """The methods, each with its own numbers."""
    told = "; ".join(f"{name}: {help}" for name, help in METHODS.items())
    options = [io.DynamicCombo.Option(name, _parameters(name)) for name in METHODS]
    return io.DynamicCombo.Input("method", options=options, tooltip=f"How they are added. {told}.")


def _parameters(method: str) -> list[io.Input]:
    """What a method takes besides strengths."""
    inputs: list[io.Input] = []
    if method == "slerp":
        inputs.append(_share("t", 0.5, "How far from the first to the second."))
    if method in ("karcher", "geometric_median"):
        inputs += [
            io.Int.Input("iterations", default=100, min=1, max=10_000, tooltip="Steps at most."),
            io.Float.Input(
                "tolerance",
                default=1e-8,
                min=0.0,
                max=1.0,
                step=1e-9,
                round=1e-12,
                tooltip="Stop at steps of this share of the size.",
            ),
        ]
    if method in _SCOPES:
        inputs.append(
            io.Combo.Input(
                "scope",
                options=list(_SCOPES[method]),
                default="core",
                tooltip="Where it works: core, on small matrices between the inputs' common directions; element, on "
                "the weight's own elements, which needs a rank and does not fit in a LoRA; units, on whole ranks.",
            )
        )
    if method in _DENSITIES:
        inputs.append(_share("density", _DENSITIES[method], "Share of the elements that stays."))
    if method == "np":
        inputs += [
            io.Float.Input(
                "mu",
                default=0.5,
                min=0.0,
                max=1e6,
                step=0.1,
                tooltip="How far the first gives way: by the share mu / (1 + mu). 0 is the sum.",
            ),
        ]
    if method in ("np", "ctm", "lego"):
        inputs.append(
            io.Int.Input(
                "directions",
                default=0,
                min=0,
                max=1 << 16,
                tooltip="np: of the second that are kept free, 0: all. ctm, lego: of the result, 0: as many as the "
                "largest input has.",
            )
        )
    if method in _BY_CHANCE:
        inputs.append(
            io.Int.Input("seed", default=0, min=0, max=2**53, tooltip="Of what is drawn by chance.")
        )
    return inputs


def _share(name: str, default: float, told: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=told)
