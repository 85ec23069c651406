"""The file of a LoRA that an extraction writes: tensors under their names, and what it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor

from ...adapters.formats import Format, Namer, encode_layer, module_namer, writable
from ...adapters.layers import Layer, innermost
from ...adapters.metadata import HASH_KEYS, Input, extraction_metadata
from ...errors import ArgumentError, UnsupportedLayerError
from ...files import Output, writer_of
from ...models.differences import are_floats
from ...report import LayerReport, Report, Skip
from ...run.inputs import placeholders
from ...run.job import Outcome
from ...run.output import Sink, Writer
from ...source import TensorSource
from .extract import summarise
from .foretold import header_size
from .plan import Plan

NO_NAME = "no name in this format"


class Record(Protocol):
    """What a checkpoint that is computed is made from, for the file of a LoRA of it."""

    @property
    def sources(self) -> Sequence[TensorSource]:
        """What is read, of which hashes are recorded."""
        ...

    def entries(self, inputs: Sequence[Input], rank: str) -> Mapping[str, str]:
        """Return entries of the LoRA's metadata.

        Args:
            inputs: The record of `sources`.
            rank: The rank rule of the LoRA.
        """
        ...


@runtime_checkable
class Recorded(Protocol):
    """A checkpoint that is computed from others, and says from which."""

    @property
    def record(self) -> Record:
        """The others."""
        ...


class ExtractedFile(Sink[Layer]):
    """The LoRA file of an extraction.

    Args:
        plan: From `plan_file`.
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        output: Where to.
        format: comfy or kohya.
        force: Whether the output may replace a file.
        exact: How the work was done, for the record.
        seed: The same.
        version: Of lorakit, for the record.

    Raises:
        ArgumentError: The format is not offered for this architecture, or cannot hold full
            differences.
    """

    hash_keys = HASH_KEYS

    def __init__(
        self,
        plan: Plan,
        base: TensorSource,
        tuned: TensorSource,
        output: Output,
        format: str,
        force: bool,
        exact: bool,
        seed: int,
        version: str,
    ) -> None:
        self._record = tuned.record if isinstance(tuned, Recorded) else None
        made_from = self._record.sources if self._record else ()
        recorded = () if plan.activations is None else (plan.activations.source,)
        self.sources = (base, tuned, *(one for one in made_from if one is not base), *recorded)
        self._plan, self._output, self._force = plan, output, force
        self._scheme, self._namer = naming(plan, format)
        self._exact, self._seed, self._version = exact, seed, version
        self._reports: list[LayerReport | Skip] = []
        self._sizes: dict[str, int] = {}

    def writer(self) -> AbstractContextManager[Writer]:
        """The file."""
        return writer_of(self._output, header_room=self._room, replace=self._force)

    @property
    def _room(self) -> int:
        """Bytes that the header may take at most."""
        told = self._made_from(placeholders(self.sources))
        return header_size(self._plan, self._scheme) + len(json.dumps(told))

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
        base, tuned, *_ = inputs
        found = extraction_metadata(
            report,
            title=self._output.stem,
            rule=str(self._plan.rule),
            exact=self._exact,
            seed=self._seed,
            dtype=self._plan.dtype,
            format=self._scheme,
            architecture=self._plan.pairing.architecture,
            base=base,
            tuned=tuned,
            tuned_metadata=self.sources[1].metadata,
            version=self._version,
            kind=self._plan.form.name,
            arguments=self._arguments(),
            sizes=self._sizes,
        )
        if self._plan.relative is not None:
            found |= {"lorakit.relative_to": base.name, "lorakit.norm": self._plan.relative}
        return found | self._made_from(inputs)

    def _made_from(self, inputs: Sequence[Input]) -> dict[str, str]:
        """What is recorded of the activations, and of what the tuned checkpoint is made from."""
        known = {id(one): file for one, file in zip(self.sources, inputs, strict=True)}
        told: dict[str, str] = {}
        if self._plan.activations is not None:
            file = known[id(self._plan.activations.source)]
            told = {"lorakit.activations": file.name, "lorakit.activations_sha256": file.sha256}
        if self._record is None:
            return told
        files = [known[id(one)] for one in self._record.sources]
        return {**told, **self._record.entries(files, str(self._plan.rule))}

    def _arguments(self) -> dict[str, str]:
        """What LyCORIS records of its own networks."""
        plan = self._plan
        factor = {"factor": str(plan.factor)} if plan.form.takes_factor else {}
        return {**plan.form.arguments, **factor}

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
