"""All that an operation does, and the file that it goes into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..files import Output
from ..run.inputs import paths_of
from ..run.job import Outcome, Work
from ..run.output import Sink
from .document import RECORD, Document, Item, input_files
from .processes import Processes
from .ray_engine import RayTasks

Task = TypeVar("Task")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Division:
    """How work is done in parts.

    Attributes:
        options: What was asked for, by name, as JSON holds it: all that decides what comes out.
        version: Of lorakit.
        request: What whoever finishes it has to ask for again; kept with the plan.
        part: Only this one, by its number from 1, and of how many; None: all that are missing, then
            the result of all of them.
        finish: Whether nothing is computed: all parts must be there.
        plan: A file for the plan, as JSON; nothing else is done then.
        force: Whether that may replace a file.
        verify: Whether parts that are there are hashed; else they count by size. Where the result is
            made of parts of an earlier run that was stopped, they always are.
        engine: Who makes the parts that are missing; None: this process, one after another.
    """

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str = ""
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: tuple[int, int] | None = None
    finish: bool = False
    plan: Path | None = None
    force: bool = False
    verify: bool = False
    engine: Processes | RayTasks | None = None

    @property
    def computes(self) -> bool:
        """Whether results are made, which may need to know all of the work first."""
        return self.plan is None and not self.finish


@dataclass(frozen=True, slots=True, eq=False)
class Whole(Generic[Task, Value]):
    """All that an operation does, and the file that it goes into. It can be pickled.

    Attributes:
        operation: extract, merge, ...
        output: Where to.
        sink: The file.
        work: The jobs; their names are those of their results, and no two are equal.
    """

    operation: str
    output: Output
    sink: Sink[Value]
    work: Work[Task, Outcome[Value]]

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        return list(dict.fromkeys(paths_of(*self.sink.sources, *self.sink.others)))

    def document(self, division: Division) -> Document:
        """Return the plan as a document.

        Raises:
            FormatError: A file that is read is gone.
        """
        text = json.dumps(self.sink.asked(), sort_keys=True)
        return Document(
            self.operation,
            division.version,
            {**division.options, RECORD: hashlib.sha256(text.encode()).hexdigest()},
            Path(self.output.name).name,
            input_files(self.inputs),
            tuple(Item(job.name, job.cost, tuple(job.shape)) for job in self.work.jobs),
            division.request,
        )
