"""Lint: what is odd about an adapter file, and which programs load what of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ArgumentError
from ...files import FileSource
from ...models.architectures import architecture_named
from ...run.inputs import unchanged
from ...run.workers import Progress
from ...source import TensorSource
from .findings import Finding
from .header import check_header
from .judging import judged
from .metadata import check_hash, check_metadata
from .programs import PROGRAMS, Program
from .reading import Verdict, verdict
from .subject import subject
from .values import check_values

_ORDER = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Lint:
    """What lint has to say of a file.

    Attributes:
        name: The file, as the user gave it.
        architecture: Title of the model that it is for; None if unknown.
        possible: Titles of models that it may be for, where it is in doubt; programs are judged by
            the first.
        format: kohya, comfy, peft, diffusers or control-lora.
        verdicts: What each program loads.
        findings: Those on the file, then those on each program; errors first within each.
    """

    name: str
    architecture: str | None
    possible: tuple[str, ...]
    format: str
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether anything in it is worse than a warning."""
        return any(one.severity == "error" for one in self.findings)

    def of(self, program: str | None) -> tuple[Finding, ...]:
        """The findings on a program's reading; None: on the file itself."""
        return tuple(one for one in self.findings if one.program == program)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "possible": list(self.possible),
            "format": self.format,
            "errors": self.has_errors,
            "programs": {
                one.program: {
                    "layers": one.layers,
                    "loads": one.count("loads"),
                    "perhaps": one.count("perhaps"),
                    "scales": {f"{scale:g}": number for scale, number in one.scales.items()},
                    "refused": one.refused,
                    "unread": list(one.left),
                }
                for one in self.verdicts
            },
            "findings": [one.to_dict() for one in self.findings],
        }


def lint(
    source: TensorSource,
    programs: Sequence[str] = (),
    *,
    architecture: str | None = None,
    headers_only: bool = False,
    progress: Progress | None = None,
) -> Lint:
    """Say what is odd about an adapter file, and which programs load what of it.

    None of the programs is started: what they read is in tables, see `lint.programs`.

    Args:
        source: The file.
        programs: comfy, forge, diffusers, kohya; () for all. What one that is named does not load
            is an error, else a warning.
        architecture: Short name of the model's that it is for; None: told by its names and shapes.
        headers_only: Whether to leave the numbers and the hash alone; only alphas are then read.
        progress: Called after each layer.

    Raises:
        ArgumentError: There is no such program, or no such architecture.
        FormatError: The file changes while it is read.
        UnknownFormatError: It is no adapter file.
    """
    chosen = [_named(name) for name in dict.fromkeys(programs or PROGRAMS)]
    spelling = source.spelling if isinstance(source, FileSource) else None
    known = None if architecture is None else architecture_named(architecture)
    with unchanged(source):
        file = subject(source, spelling or "", known)
        found = [*check_header(file), *check_metadata(file)]
        if not headers_only:
            found += [*check_values(file, progress), *check_hash(file)]
    found.sort(key=lambda one: _ORDER.index(one.severity))
    verdicts: list[Verdict] = []
    for program in chosen:
        verdicts.append(verdict(file, program))
        said = judged(file, program, verdicts[-1], asked=program.name in programs)
        found += sorted(said, key=lambda one: _ORDER.index(one.severity))
    sure = None if file.doubt else file.architecture
    title = None if sure is None else sure.title
    return Lint(source.name, title, file.doubt, file.format, tuple(verdicts), tuple(found))


def _named(name: str) -> Program:
    if name in PROGRAMS:
        return PROGRAMS[name]
    raise ArgumentError(f"unknown program `{name}`; it is one of {', '.join(PROGRAMS)}")
