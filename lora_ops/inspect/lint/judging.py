"""What programs make of a file, as findings: with the call that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...adapters.formats import MAGNITUDES, format_named, format_of
from ...report import counted
from .findings import Finding, converting, finding
from .programs import Program
from .reading import NAME, Verdict
from .subject import Subject

_Tell = Callable[[str, str, tuple[str, ...], str], Finding]

# Kinds that every format holds.
_PLAIN = {"lora", "mixed"}


def judged(file: Subject, program: Program, found: Verdict, *, asked: bool) -> Iterator[Finding]:
    """Yield what is worth saying of a verdict.

    Args:
        file: The file.
        program: The program that read it.
        found: The verdict.
        asked: Whether the program was asked for by name: then what it does not load is an error.
    """

    def told(code: str, message: str, where: tuple[str, ...], cure: str) -> Finding:
        message = f"{program.title} {message}"
        return finding(code, message, where, cure, program=program.name, asked=asked)

    mend = cure_for(file, program)
    if found.refused:
        yield told("refused", f"stops with an error: {found.refused}", (), mend)
        return
    left: dict[str, list[str]] = {}
    for name, read in found.reads.items():
        if read.state == "left":
            left.setdefault(read.reason, []).append(name)
    nothing = found.count("left") == found.layers
    for reason, names in left.items():
        code = "nothing-loads" if nothing else "part-loads"
        number = f"{len(names)} of {counted(found.layers, 'layer')}"
        verb = "does" if len(names) == 1 else "do"
        # The cure writes the program's own names: of no use to names that are these already.
        helps = reason != NAME or any(format_of(name).name != program.format for name in names)
        cure = mend if helps else ""
        yield told(code, f"{reason}: {number} {verb} not load", tuple(names), cure)
    perhaps = tuple(name for name, read in found.reads.items() if read.state == "perhaps")
    if perhaps:
        yield told(
            "perhaps-loads", "loads these if the model has modules of that name", perhaps, ""
        )
    yield from _unread(file, found, told, mend)
    yield from _quirks(file, program, found, told)


def cure_for(file: Subject, program: Program) -> str:
    """The call that writes the file so that the program reads it; empty where none would help."""
    architecture = file.architecture
    if file.is_control:
        return ""  # no other format holds it
    if architecture is None or not program.routes_of(architecture.name):
        return ""
    options = {"format": repr(program.format)}
    if architecture not in file.possible:
        options["architecture"] = repr(architecture.name)
    plain = {part.kind for part in file.parts} <= _PLAIN
    if not plain and program.format != "comfy":
        options = {"to": "'lora'", **options}
    places = (part.place for part in file.parts)
    scheme = format_named(program.format)
    if any(place and file.names.is_unadapted(scheme, place.native) for place in places):
        options["allow_partial"] = "True"
    return converting(file.source.name, program.format, **options)


def _unread(file: Subject, found: Verdict, told: _Tell, mend: str) -> Iterator[Finding]:
    loaded = [part for part in file.parts if found.reads[part.name].state != "left"]
    lost = [
        part
        for part in loaded
        if abs(found.reads[part.name].scale - part.scale) > 1e-6 * abs(part.scale)
    ]
    if lost:
        first = lost[0]
        yield told(
            "scale-lost",
            f"gives other scales than the file says: `{first.name}` gets "
            f"{found.reads[first.name].scale:g} instead of {first.scale:g}",
            tuple(part.name for part in lost),
            mend,
        )
    unread = {
        part.name: {role for role, key in part.keys.items() if key in found.reads[part.name].unread}
        for part in loaded
    }
    magnitudes = tuple(name for name, roles in unread.items() if roles & {*MAGNITUDES})
    others = tuple(name for name, roles in unread.items() if roles - {*MAGNITUDES})
    beside = tuple(key for key in found.unread if key not in file.strange)
    if loaded and file.is_control and beside:
        yield told(
            "key-unread", "passes over parameters beside factors that it loads", beside, mend
        )
    if magnitudes:
        message = "ignores the magnitudes of DoRA: another change than was trained"
        yield told("magnitude-lost", message, magnitudes, mend)
    if others:
        yield told("key-unread", "passes over some keys of layers that it loads", others, mend)


def _quirks(file: Subject, program: Program, found: Verdict, told: _Tell) -> Iterator[Finding]:
    for kind, message in program.quirks:
        names = tuple(
            part.name
            for part in file.parts
            if found.reads[part.name].state != "left"
            and (
                part.kind == kind
                or (kind == "dora" and "dora_scale" in part.keys and _by_rows(part.layer))
            )
        )
        if names:
            title = "DoRA by rows" if kind == "dora" else kind.upper()
            yield told("strength-differs", f"{message} ({title})", names, "")


def _by_rows(layer: object) -> bool:
    return getattr(layer, "axis", 0) == 0
