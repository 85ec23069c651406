"""The plan of a Control-LoRA: what of a ControlNet becomes factors and what stays whole, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from ...adapters.formats import CONTROL
from ...elements import Element
from ...files import FileSource, Output
from ...linalg.ranks.rules import RankRule, parse_rank
from ...models.pairing import Pair
from ..extract.file import plan_file
from ..extract.foretold import preview_extraction
from ..extract.plan import Plan
from ..preview import PlannedLayer, Preview
from .sides import Route, control_sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack


class ControlOptions(TypedDict, total=False):
    """Options of the extraction of a Control-LoRA, besides its rank rule.

    Attributes:
        dtype: Dtype of all that is written: float16, bfloat16 or float32. None: as for a LoRA.
        include: Shell patterns; only matrices that fit one become factors.
        exclude: Shell patterns; matrices that fit one do not: the UNet's own are then used.
    """

    dtype: torch.dtype | Element | None
    include: Sequence[str]
    exclude: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class ControlPlan:
    """What the extraction of a Control-LoRA will do.

    Attributes:
        plan: Of the matrices that become factors.
        whole: The other parameters that it shares with the UNet: biases and norms.
        own: The ControlNet's own, by native name.
    """

    plan: Plan
    whole: tuple[Pair, ...]
    own: Mapping[str, Route]

    @property
    def whole_size(self) -> int:
        """Bytes of all that is not in factors, as written."""
        shapes = [both.shape for both in self.whole]
        shapes += [source.shape(key) for source, key in self.own.values()]
        return sum(map(math.prod, shapes)) * self.plan.element.bits // 8


def plan_control_file(
    base: FileSource,
    controlnet: FileSource,
    rule: str | int | RankRule | None = None,
    *,
    output: Output | None = None,
    force: bool = False,
    **options: Unpack[ControlOptions],
) -> ControlPlan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        base: The checkpoint with the UNet that the ControlNet was made from.
        controlnet: The ControlNet, of Stable Diffusion 1, 2 or XL; native names, or those of diffusers.
        rule: How many directions a matrix gets; see `plan_extraction` for None.
        output: Where the result is to go; None: nowhere yet.
        force: Whether the output may replace a file.
        **options: See `ControlOptions`.

    Raises:
        ArgumentError: The output cannot or must not be written; the rule or a pattern is wrong.
        QuantisedError: A side is stored in a way that is not read.
        MismatchError: It is no such ControlNet, or one for another model than the base.
        WeightShapeError: It is for a model of other widths.
    """
    sides = control_sides(base, controlnet)
    chosen = None if rule is None else parse_rank(rule, stored=True)
    plan = plan_file(sides.base, sides.tuned, chosen, output=output, force=force, **options)
    pairing = plan.pairing
    factored = replace(plan, pairing=replace(pairing, rest=()))
    return ControlPlan(factored, pairing.rest, sides.own)


def preview_control(planned: ControlPlan, output: Path) -> Preview:
    """Return what the extraction of a Control-LoRA will do, for people and for machines.

    Args:
        planned: From `plan_control_file`.
        output: Where to.
    """
    found = preview_extraction(planned.plan, output)
    whole = (
        PlannedLayer(both.target, both.component, both.kind, both.shape, "whole")
        for both in planned.whole
    )
    return replace(
        found,
        size_at_most=found.size_at_most + planned.whole_size,
        layers=(*found.layers, *whole),
        notes=(*found.notes, own_note(planned)),
        told=f"Control-{found.told}",
        settings={**found.settings, "kind": CONTROL.name},
    )


def own_note(planned: ControlPlan) -> str:
    """Say what of the ControlNet is no change of the UNet."""
    return f"{len(planned.own)} tensors of the ControlNet's own parts are whole"
