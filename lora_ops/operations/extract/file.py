"""Extraction from file to file: streamed in, streamed out, complete under its name or not at all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from ...adapters.formats import PEFT, Format, Namer, encode_layer, module_namer, writable
from ...adapters.layers import Layer, innermost
from ...adapters.metadata import HASH_KEYS, Input, extraction_metadata, metadata_room
from ...errors import ArgumentError, MismatchError, UnsupportedLayerError
from ...files import FileSource, Output, check_output, read_errors, writer_of
from ...files.header import header_room
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.differences import are_floats
from ...report import LayerReport, Report, Skip
from ...run.devices import Placement
from ...run.inputs import placeholders
from ...run.job import Outcome
from ...run.output import Sink, Writer, write
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..peft_folder import check_folder
from ..preview import PlannedLayer, Preview
from .extract import extraction_work, summarise
from .kinds.table import LORA
from .peft_file import PeftExtraction, peft_work
from .peft_plan import PeftPlan, plan_peft
from .plan import Plan, PlanOptions, plan_extraction
from .spending import with_ranks

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_NAME = "no name in this format"


def plan_file(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None = None,
    *,
    output: Output | None = None,
    force: bool = False,
    format: str = "comfy",
    embeddings: Literal["whole", "lora", "none"] = "whole",
    **options: Unpack[PlanOptions],
) -> Plan:
    """Check everything that can be checked before the work begins, and plan it.

    Args:
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        rule: How many directions a layer gets; see `plan_extraction` for None.
        output: Where the result is to go; None: nowhere yet.
        force: Whether the output may replace a file.
        format: comfy, kohya, or peft, which is a folder; that it can hold this model is checked.
        embeddings: For peft, what becomes of embeddings and heads that changed: kept `whole`, as
            `modules_to_save`; given factors, `lora`; or left out, `none`.
        **options: See `PlanOptions`.

    Raises:
        ArgumentError: The output cannot or must not be written; the rule or a pattern is wrong.
        QuantisedError: A checkpoint's numbers are stored with scales.
        MismatchError: The checkpoints do not belong together, or are one file.
    """
    if isinstance(output, Path) and format == PEFT.name:
        check_folder(output, [*_paths(base), *_paths(tuned)], force=force)
    elif output is not None:
        check_output(output, [*_paths(base), *_paths(tuned)], force=force)
    if _same(_paths(base), _paths(tuned)):
        raise MismatchError(
            f"{base.name} and {tuned.name} are one file: no layer differs; "
            "give the base and the tuned checkpoint"
        )
    if format == PEFT.name:
        return plan_peft(base, tuned, rule, embeddings=embeddings, **options)
    plan = plan_extraction(base, tuned, rule, **options)
    _naming(plan, format)
    return plan


def extract_file(
    plan: Plan,
    base: TensorSource,
    tuned: TensorSource,
    output: Output,
    *,
    format: str = "comfy",
    force: bool = False,
    exact: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Run a plan into a file, and return its report.

    Args:
        plan: From `plan_file`, of these two.
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        output: The LoRA file, or folder of PEFT. A file in memory is filled.
        format: comfy, kohya or peft, as the plan was made for.
        force: Whether the output may replace a file.
        exact: Compute the exact truncation.
        placement: Where to compute; None: the CPU.
        seed: Of the random start.
        version: Of lorakit, for the record.
        progress: Called after each parameter.

    Raises:
        ArgumentError: The format is not offered for this architecture, or cannot hold full
            differences; or the output exists.
        MismatchError: No layer differs; no file is written.
        FormatError: A checkpoint changed while it was read; no file is written.
        NonFiniteError: NaN or infinity in, or out of the factors' dtype.
        WriteError: The disk is full, or the like.
    """
    started = time.perf_counter()
    if isinstance(plan, PeftPlan) and isinstance(output, Path):
        folder = PeftExtraction(plan, base, tuned, output, force, exact, seed, version)
        jobs = peft_work(plan, exact=exact, seed=seed)
        return write(folder, stream(jobs, placement, progress=progress), started=started)
    sink = ExtractedFile(plan, base, tuned, output, format, force, exact, seed, version)
    plan, progress = with_ranks(
        plan,
        overhead=sink.overhead,
        exact=exact,
        seed=seed,
        placement=placement,
        progress=progress,
    )
    work = extraction_work(plan, exact=exact, seed=seed)
    return write(sink, stream(work, placement, progress=progress), started=started)


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
        self.sources = (base, tuned, *(one for one in made_from if one is not base))
        self._plan, self._output, self._force = plan, output, force
        self._scheme, self._namer = _naming(plan, format)
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
        return _header_room(self._plan, self._scheme) + len(json.dumps(told))

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no factors, at most: full differences are counted as if all changed."""
        plan = self._plan
        rest = plan.pairing.rest if plan.full_differences else ()
        numbers = sum(math.prod(both.shape) for both in rest if are_floats(plan.sides, both))
        return 8 + self._room + numbers * plan.dtype.itemsize

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
        """What is recorded of what the tuned checkpoint is made from."""
        if self._record is None:
            return {}
        known = {id(one): file for one, file in zip(self.sources, inputs, strict=True)}
        files = [known[id(one)] for one in self._record.sources]
        return dict(self._record.entries(files, str(self._plan.rule)))

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


def _paths(source: TensorSource) -> tuple[Path, ...]:
    return source.paths if isinstance(source, FileSource) else ()


def _same(ones: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether they are the same files."""
    if not ones or len(ones) != len(others):
        return False
    with read_errors(ones[0]):
        return all(a.samefile(b) for a, b in zip(ones, others, strict=True))


def _naming(plan: Plan, format: str) -> tuple[Format, Namer]:
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


def _header_room(plan: Plan, scheme: Format) -> int:
    """Bytes for the header at most: of every pair all tensors of its form, under names of any format."""
    pairs = [*plan.pairing.candidates, *(plan.pairing.rest if plan.full_differences else ())]
    longest = max(len(both.target.encode()) for both in pairs)
    rows = [
        (f"{both.target}{scheme.down}{'_' * 24}{role}", "BF16", (*both.shape, 10**6))
        for both in pairs
        for role in (
            "up",
            "down",
            "alpha",
            *(("mid", "dora_scale") if plan.form is not LORA else ()),
        )
    ]
    told = metadata_room(len(pairs), longest, plan.sides.tuned.metadata)
    return header_room(rows, spare=told)


def preview_extraction(plan: Plan, output: Path) -> Preview:
    """Return what an extraction will do, for people and for machines.

    Args:
        plan: From `plan_file`.
        output: Where to.
    """
    model, dtype = plan.pairing.architecture, plan.element.title
    return Preview(
        output=str(output),
        size_at_most=largest_size(plan),
        layers=tuple(
            PlannedLayer(
                *(both.target, both.component, both.kind, both.shape),
                rank_at_most=plan.form_for(both).rank(
                    both.shape, plan.most_ranks(both), plan.factor
                ),
            )
            for both in plan.pairing.candidates
        ),
        notes=() if plan.why is None else (plan.why,),
        told=f"{plan.form.title}, rank rule {plan.rule}, {dtype}"
        + ("" if plan.relative is None else f", relative to the {plan.relative} norms of base"),
        settings={
            "kind": plan.form.name,
            "rank": str(plan.rule),
            "dtype": dtype,
            **({} if plan.relative is None else {"norm": plan.relative}),
        },
        architecture=model.title if model else None,
    )


def largest_size(plan: Plan) -> int:
    """Bytes of the factors if every layer gets the largest rank that the rule allows it."""
    numbers = sum(
        plan.form_for(both).size(both.shape, plan.most_ranks(both), plan.factor)
        for both in plan.pairing.candidates
    )
    size = numbers * plan.element.bits // 8 + plan.whole_size
    if isinstance(plan.rule, Budget) and plan.rule.kind == "size":
        return min(size, int(plan.rule.value))
    return size
