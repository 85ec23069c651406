"""To LoRA: every kind as up and down alone, at exactly the rank it has or the best of another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...adapters.adapter import Adapter
from ...adapters.base import base_weights
from ...adapters.changes import as_changes
from ...adapters.edited import converted
from ...adapters.formats import format_named
from ...adapters.layers import Convention, Layer
from ...adapters.model import names_for
from ...adapters.renamed import renamed
from ...adapters.repacking.plan import RenamedLayer, convert_notes, planned, unplaced
from ...adapters.some import without
from ...elements import Element
from ...linalg.ranks.budgets import Budget, parse_rule
from ...linalg.ranks.rules import RankRule
from ...models.architectures import Architecture, detect, parameters
from ...report import Report
from ...run.devices import Placement
from ...run.job import Outcome, Work
from ...source import TensorSource
from ..resize.resize import Resizing, resize_notes, resize_work
from .layer import with_left_out

# A rank above that of any weight: all directions are kept.
_ALL = RankRule("rank", 1 << 16)


@dataclass(frozen=True, slots=True, eq=False)
class Lowering:
    """A conversion to LoRA, planned from headers alone.

    Attributes:
        adapter: What is converted.
        changes: Its changes under the names of the result; from `as_changes`.
        pieces: How names change; empty where they stay.
        rule: The rank rule that was asked for.
        resizing: How the changes are cut to their ranks.
        architecture: Of the model, where it is known.
        left: Full differences of the adapter that the format has no place for.
    """

    adapter: Adapter
    changes: Adapter
    pieces: Sequence[RenamedLayer]
    rule: RankRule | Budget | None
    resizing: Resizing
    architecture: Architecture | None
    left: Sequence[str] = ()

    def work(self, placement: Placement, *, overhead: int = 0) -> Work[Any, Outcome[Layer]]:
        """Return the jobs of the result's layers, and how they are done; see `resize_work`.

        Args:
            placement: Where spectra are computed.
            overhead: Bytes of the file that are no layer's, for a budget of its size.
        """
        resizing = replace(self.resizing, overhead=overhead)
        work = resize_work(self.changes, resizing, placement)
        return with_left_out(work, self.adapter, self.left)

    def notes(self, report: Report) -> Iterator[str]:
        """Yield the notes of the report."""
        if self.pieces:
            yield from convert_notes(without(self.adapter, self.left), self.pieces, self.rule)
        if self.rule is None:
            yield from converted(report)
        else:
            yield from resize_notes(self.resizing, report)


def plan_to_lora(
    adapter: Adapter,
    layers: Mapping[str, Layer],
    rule: str | int | RankRule | Budget | None = None,
    *,
    format: str | None = None,
    architecture: Architecture | None = None,
    reference: Collection[str] = (),
    base: TensorSource | None = None,
    name: str = "the adapter",
    element: Element | None = None,
    dora: Convention = "paper",
    exact: bool = False,
    allow_partial: bool = False,
    configured: bool = False,
) -> Lowering:
    """Plan to write every kind as plain LoRA; full differences of vectors stay what they are.

    Args:
        adapter: Its layers are read one after another, when the plan is run.
        layers: The adapter's layers, of which only shapes are read.
        rule: How many directions every layer gets; None: all that its change has, exactly.
        format: How the result is named; None: as the adapter is.
        architecture: Of the model it is for; None: that of the base, or told by names and shapes.
        reference: Canonical targets of a checkpoint, which give a kohya name its dots back.
        base: The checkpoint that it was trained on, for kinds that are made from the weight.
        name: What messages call the adapter.
        element: What the numbers of the factors are to be; None: each layer's own.
        dora: How to read kinds on which programs differ; see docs/kinds.md.
        exact: See `Resizing`.
        allow_partial: Leave out full differences that the format has no place for.
        configured: Whether scales are in a configuration beside the file, as the file has no place.

    Raises:
        LoraOpsError: As `convert`, but for what the numbers themselves may cause.
    """
    chosen = None if rule is None else parse_rule(rule)
    weights = None if base is None else base_weights(adapter, layers, base, name, architecture)
    changes = as_changes(adapter, layers, weights, dora, cut=chosen is not None)
    scheme = format_named(format or adapter.format)
    if base is not None:
        known = parameters(base)
        architecture = architecture or detect(known)
        reference = reference or [one.target for one in known.values()]
    names = names_for(adapter, architecture, reference, scheme)
    left = unplaced(changes, scheme, names) if allow_partial else []
    changes = without(changes, left)
    pieces: list[RenamedLayer] = []
    if format is not None:
        pieces = planned(changes, scheme, names)
        changes = renamed(changes, pieces, names, scheme)
    resizing = Resizing(
        chosen or _ALL,
        element=element,
        has_alpha=scheme.keeps_alpha or configured,
        needs_alpha=scheme.needs_alpha,
        exact=exact,
    )
    return Lowering(adapter, changes, pieces, chosen, resizing, names.architecture, left)
