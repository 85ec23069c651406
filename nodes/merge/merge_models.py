"""Merge Models: loaded models into one, weight by weight as they are used; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..form.schema import lines, report_output, reported, schema
from ..form.several import parse_strengths
from ..form.texts import merged_text
from ..form.wording import explained
from ..host.api import io
from .loaded import LETTERS, Matched, connected, predictions
from .mixing import METHODS, Mixed, check

_LIMIT = 10.0


class MergeModels(io.ComfyNode):
    """Puts one patch on each weight of a clone of the first model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        told = "; ".join(f"{name}: {help}" for name, help in METHODS.items())
        return schema(
            "MergeModels",
            "Merge Models",
            description="Merges loaded models, and their text encoders where CLIPs are connected: in fp32, "
            "with the LoRAs that are on each, rounded once. Nothing is computed before it is used, so a "
            "change shows at once. A gives all that is not in the weights.",
            search_aliases=[
                "model merge",
                "checkpoint merge",
                "weighted sum",
                "add difference",
                "block merge",
                "mbw",
                "slerp",
                *("merge", "model difference", "subtract model"),
            ],
            inputs=[
                _sockets("models", io.Model.Input("model", optional=True, tooltip="A model.")),
                io.Float.Input(
                    "share_of_B",
                    default=0.5,
                    min=-_LIMIT,
                    max=_LIMIT,
                    step=0.01,
                    tooltip="How much of B there is in the result: 0 is A, 1 is B. ComfyUI's own merging "
                    "nodes have the share of their first model instead: 0.7 there is 0.3 here.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="weighted_sum",
                    tooltip=f"How they are merged; b and c are the shares of B and C. {told}.",
                ),
                _sockets(
                    "clips",
                    io.Clip.Input("clip", optional=True, tooltip="Text encoders."),
                    optional=True,
                ),
                io.String.Input(
                    "other_shares",
                    default="",
                    optional=True,
                    placeholder="0.2, 0.1",
                    tooltip="The shares of C, D, …, in order, separated by commas (0.2, 0.1). Empty: each "
                    "as that of B. With add_difference C has none.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    optional=True,
                    tooltip="Factors by block on the shares, as Block Weights gives them: a preset (GRAD_V, "
                    "OUTALL), labels (IN=0.5,OUT=1,BASE=0), 20, 26 or 61 numbers, or a gradient over the "
                    "depth (depth=0,1). BASE is the text encoders. Empty: all blocks alike.",
                ),
                io.String.Input(
                    "where",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Factors by name on the shares, one PATTERN=S a line; the last that fits decides, "
                    "in place of what `blocks` says. A pattern is a component (te, te1, unet), words of the "
                    "name (attn2), a shell pattern (*ff*) or a /regular expression/.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="A clone of A with the merged weights."
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="A clone of the first CLIP with the merged weights.",
                ),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        share_of_B: float,  # noqa: N803  as it is shown
        method: str,
        models: Mapping[str, Any] | None = None,
        clips: Mapping[str, Any] | None = None,
        other_shares: str = "",
        blocks: str = "",
        where: str = "",
    ) -> io.NodeOutput:
        """Merge them.

        Raises:
            LoraOpsError: Too few models, models of different kinds, or a share or rule that means nothing.
        """
        from ...lora_ops.adapters.strengths.rules import strengths
        from ..host.model_source import ModelSource

        unets, encoders = connected(models, "model"), connected(clips, "clip")
        count = _count(unets, encoders)
        pairs = zip(unets or [None] * count, encoders or [None] * count, strict=True)
        matched = Matched.of(
            [ModelSource(letter, *pair) for letter, pair in zip(LETTERS, pairs, strict=False)]
        )
        rest = parse_strengths(other_shares, count - 2, "share", "models after B", share_of_B)
        shares = (share_of_B, *rest)
        names = matched.names()
        factors = strengths(list(names.values()), blocks=blocks.strip() or None, where=lines(where))
        mixed: dict[str, Mixed] = {}
        for key, name in names.items():
            own = tuple(factors[name] * share for share in shares)
            if any(own) and any(matched.others[key]):
                mixed[key] = Mixed(method, own, matched.reads(key))
        check(method, count, {shares, *(one.shares for one in mixed.values())})
        report = merged_text(
            f"{method} of {count} models",
            shares[:1] if method == "add_difference" else shares,
            {names[key]: factors[names[key]] for key in names if any(matched.others[key])},
            len(mixed),
            [*predictions(unets), *matched.notes()],
        )
        return reported(
            report,
            matched.patched(unets[0], mixed) if unets else None,
            matched.patched(encoders[0], mixed) if encoders else None,
        )


def _sockets(name: str, template: io.Input, *, optional: bool = False) -> io.Autogrow.Input:
    """Sockets A, B, …; the next appears when the last is connected."""
    what = name.removesuffix("s")
    return io.Autogrow.Input(
        name,
        template=io.Autogrow.TemplateNames(
            # Optional, so that the graph says what is missing where a node before it is bypassed.
            template,
            names=[f"{what}_{letter}" for letter in LETTERS],
            min=2,
        ),
        optional=optional,
        tooltip=f"The {name}; {what}_A is what the others are mixed into.",
    )


def _count(models: list[Any], clips: list[Any]) -> int:
    """How many models there are.

    Raises:
        ArgumentError: Fewer than two, or not as many CLIPs as models.
    """
    from ...lora_ops import ArgumentError

    counts = {what: len(found) for what, found in (("model", models), ("clip", clips)) if found}
    for what in counts or ("model",):
        if counts.get(what, 0) < 2:
            missing = LETTERS[counts.get(what, 0)]
            raise ArgumentError(f"nothing arrives at `{what}_{missing}`; connect two or more")
    if len(set(counts.values())) > 1:
        least = min(counts, key=lambda what: counts[what])
        raise ArgumentError(
            f"nothing arrives at `{least}_{LETTERS[counts[least]]}`: connect as many CLIPs as models, or none "
            "of them"
        )
    return max(counts.values())
