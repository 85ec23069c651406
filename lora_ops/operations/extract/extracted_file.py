"""The file of a LoRA that an extraction writes: tensors under their names, and what it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from ...adapters.formats import Format, Namer, encode_layer, module_namer, writable
from ...adapters.layers import Layer, innermost
from ...adapters.metadata import HASH_KEYS, Input
from ...errors import ArgumentError, UnsupportedLayerError
from ...files import writer_of
from ...models.differences import are_floats
from ...report import LayerReport, Report, Skip
from ...run.job import Outcome
from ...run.output import Sink, Writer
from .extract import summarise
from .extraction import Extraction
from .foretold import header_size
from .plan import Plan
from .task import MADE

NO_NAME = "no name in this format"


class ExtractedFile(Sink[Layer]):
    """The LoRA file of an extraction.

    Args:
        extraction: What is written, into a file of a format other than peft.

    Raises:
        ArgumentError: The format is not offered for this architecture, or cannot hold full
            differences.
    """

    hash_keys = HASH_KEYS
    classes = MADE

    def __init__(self, extraction: Extraction) -> None:
        self.extraction, self.sources = extraction, extraction.sources
        self._plan, self._output = extraction.plan, extraction.output
        self._force = extraction.force
        self._scheme, self._namer = naming(self._plan, extraction.format)
        self._reports: list[LayerReport | Skip] = []
        self._sizes: dict[str, int] = {}

    def asked(self) -> Mapping[str, str]:
        """What it is made from."""
        return self.extraction.asked

    def writer(self) -> AbstractContextManager[Writer]:
        """The file."""
        return writer_of(self._output, header_room=self._room, replace=self._force)

    @property
    def _room(self) -> int:
        """Bytes that the header may take at most."""
        return header_size(self._plan, self._scheme) + self.extraction.room

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no factors, at most: full differences are counted as if all changed."""
        plan = self._plan
        rest = plan.pairing.rest if plan.full_differences else ()
        numbers = sum(math.prod(both.shape) for both in rest if are_floats(plan.sides, both))
        return 8 + self._room + numbers * plan.element.bits // 8

    def tensors(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        """The tensors of a layer; none for a skip, or where the format has no name for it."""
        tensors = self._named(outcome)
        size = innermost(outcome.value).factor_rank if tensors and outcome.value else None
        if size is not None:
            self._sizes[outcome.name] = size
        self._reports.append(outcome.report if tensors else _unnamed(outcome.report))
        return tensors

    def report(self) -> Report:
        """The report."""
        return summarise(self._plan, self._reports)

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record of the extraction, beside what programs ask for."""
        return self.extraction.metadata(inputs, report, self._scheme, self._sizes)

    def _named(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        if outcome.value is None:
            return {}
        try:
            return encode_layer(self._scheme, self._namer, outcome.name, outcome.value)
        except (ArgumentError, UnsupportedLayerError):
            return {}


def naming(plan: Plan, format: str) -> tuple[Format, Namer]:
    """The format and how it names targets, once it is sure that it can hold what is planned."""
    scheme = writable(format)
    for asked, name in ((plan.full_differences, "full_differences"), (plan.auto_full, "auto_full")):
        if asked and not scheme.holds_full:
            raise ArgumentError(
                f"format `{format}` has no place for full differences; use format `comfy`, or leave "
                f"`{name}=True` out"
            )
    return scheme, module_namer(scheme, plan.pairing.architecture, plan.pairing.names)


def _unnamed(report: LayerReport | Skip) -> Skip:
    if isinstance(report, Skip):
        return report
    return Skip(report.target, report.component, report.kind, NO_NAME, report.norm)
