"""What an extraction is written with: where to, how it was done, and the record of it that its file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ...adapters.formats import PEFT, Format
from ...adapters.metadata import Input, extraction_metadata
from ...files import Output
from ...report import Report
from ...run.inputs import placeholders
from ...source import TensorSource
from .plan import Plan


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


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """An extraction that is to be written, as far as it is known before.

    Attributes:
        plan: From `plan_file`.
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        output: The file, or the folder of PEFT. A file in memory is filled.
        format: comfy, kohya or peft, as the plan was made for.
        force: Whether the output may replace a file.
        exact: Whether exact truncations are computed.
        seed: Of the random start.
        version: Of lorakit.
    """

    plan: Plan
    base: TensorSource
    tuned: TensorSource
    output: Output
    format: str = "comfy"
    force: bool = False
    exact: bool = False
    seed: int = 0
    version: str = ""

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """All that the result is made from, base and tuned first."""
        activations = self.plan.activations
        recorded = () if activations is None else (activations.source,)
        others = () if self._record is None else self._record.sources
        return (
            *(self.base, self.tuned),
            *(one for one in others if one is not self.base),
            *recorded,
        )

    @property
    def asked(self) -> dict[str, str]:
        """What is recorded of it that no result decides."""
        return self._made_from(placeholders(self.sources))

    @property
    def room(self) -> int:
        """Bytes that the record may take at most, beside what `metadata_room` counts."""
        return len(json.dumps(self.asked))

    def metadata(
        self,
        inputs: Sequence[Input],
        report: Report,
        scheme: Format,
        sizes: Mapping[str, int] | None = None,
    ) -> dict[str, str]:
        """Return the record of the extraction, beside what programs ask for.

        Args:
            inputs: The record of `sources`.
            report: Of the extraction.
            scheme: How the tensors are named.
            sizes: By target, what an alpha is divided by; see `extraction_metadata`.
        """
        base, tuned, *_ = inputs
        plan, output = self.plan, self.output
        is_folder = self.format == PEFT.name and isinstance(output, Path)
        factor = {"factor": str(plan.factor)} if plan.form.takes_factor else {}
        found = extraction_metadata(
            report,
            title=output.name if is_folder else output.stem,
            rule=str(plan.rule),
            exact=self.exact,
            seed=self.seed,
            dtype=plan.dtype,
            format=scheme,
            architecture=plan.pairing.architecture,
            base=base,
            tuned=tuned,
            tuned_metadata=self.tuned.metadata,
            version=self.version,
            kind=plan.form.name,
            arguments={**plan.form.arguments, **factor},
            sizes=sizes,
        )
        if plan.relative is not None:
            found |= {"lorakit.relative_to": base.name, "lorakit.norm": plan.relative}
        return found | self._made_from(inputs)

    @property
    def _record(self) -> Record | None:
        return self.tuned.record if isinstance(self.tuned, Recorded) else None

    def _made_from(self, inputs: Sequence[Input]) -> dict[str, str]:
        """What is recorded of the activations, and of what the tuned checkpoint is made from."""
        known = {id(one): file for one, file in zip(self.sources, inputs, strict=True)}
        told: dict[str, str] = {}
        if self.plan.activations is not None:
            file = known[id(self.plan.activations.source)]
            told = {"lorakit.activations": file.name, "lorakit.activations_sha256": file.sha256}
        if self._record is None:
            return told
        files = [known[id(one)] for one in self._record.sources]
        return {**told, **self._record.entries(files, str(self.plan.rule))}
