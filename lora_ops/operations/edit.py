"""An edit of adapters, from files to a file: planned from headers alone, then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters.edited import summarise
from ..adapters.layers import Layer
from ..adapters.metadata import Input, Result
from ..report import Report, Skip
from ..run.devices import Placement, place
from ..run.job import Outcome, Work
from ..run.output import write
from ..run.stream import stream
from ..run.workers import Progress
from .output import Draft
from .peft_folder import sink_of
from .preview import PlannedLayer, Preview

# What a header is filled up by, at most: data begins at a multiple of 8 bytes.
_PADDING = 7


def no_notes(_: Report) -> Iterable[str]:
    """Nothing is worth saying."""
    return ()


def planned_work(work: Work[Any, Outcome[Layer]], _: Placement) -> Work[Any, Outcome[Layer]]:
    """Return work that has nothing to read before it."""
    return work


@dataclass(frozen=True, slots=True, eq=False)
class Foreseen:
    """What an edit will do to the layers.

    Attributes:
        layers: Those in the result.
        size: Of them in the file, in bytes, at most.
        skips: Those left out, and why.
        notes: What is worth saying.
    """

    layers: Sequence[PlannedLayer]
    size: int
    skips: Sequence[Skip] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EditPlan:
    """What an edit of adapters will do, known from headers alone.

    Attributes:
        draft: The file.
        work: Gives the jobs, and how they are done; what it has to read first is read with this
            placement.
        describe: Gives the metadata, from the version of lorakit, the inputs and what was written.
        foresee: Says what will become of the layers.
        told: How it is done, for people.
        settings: The same, by name.
        inputs: What goes in, for people.
        notes: What else is worth saying, from the report.
        ahead: See `stream`.
    """

    draft: Draft
    work: Callable[[Placement], Work[Any, Outcome[Layer]]]
    describe: Callable[[str, Sequence[Input], Result], Mapping[str, str]]
    foresee: Callable[[], Foreseen]
    told: str
    settings: Mapping[str, str]
    inputs: Sequence[str]
    notes: Callable[[Report], Iterable[str]] = no_notes
    ahead: int = 1

    def preview(self) -> Preview:
        """Return what will be done, from headers alone; fail as the edit would.

        What only numbers tell, such as the ranks that a rule of energy chooses, is bounded from
        above. A few kinds say what they are by a number, which is read: IA3's side.

        Raises:
            LoraOpsError: What the edit would raise, as far as headers tell it.
        """
        found, model = self.foresee(), self.draft.architecture
        if not found.layers:
            summarise(found.skips)  # which refuses it, as it does after the work
        return Preview(
            output=str(self.draft.output),
            size_at_most=self.draft.overhead + found.size + _PADDING,
            layers=tuple(found.layers),
            told=self.told,
            settings=self.settings,
            architecture=model.title if model else None,
            inputs=tuple(self.inputs),
            skips=tuple(found.skips),
            notes=tuple(found.notes),
        )


def run_edit(
    plan: EditPlan,
    *,
    started: float,
    placement: Placement | None = None,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Run a plan into its file, and return the report.

    Args:
        plan: What to do.
        started: See `write`.
        placement: Where to compute; None: the CPU.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: See `write`, and the function that made the plan.
    """

    def describe(inputs: Sequence[Input], result: Result) -> Mapping[str, str]:
        return plan.describe(version, inputs, result)

    def results() -> Iterator[Outcome[Layer]]:
        """Within the writing, so that inputs are hashed while the work is prepared."""
        where = placement or place("cpu")
        yield from stream(plan.work(where), where, ahead=plan.ahead, progress=progress)

    return write(sink_of(plan.draft, describe, plan.notes), results(), started=started)
