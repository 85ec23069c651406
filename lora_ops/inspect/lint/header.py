"""Checks of a file's header: alphas, factors, dtypes, names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ...adapters.formats import component, format_of
from ...elements import DTYPES
from ...errors import LayerShapeError, QuantisedError
from ...models.architectures import TE
from ...report import counted
from .findings import Finding, converting, finding, leaving_out
from .subject import Part, Subject, has

# Kinds whose alpha makes a scale; in others it is a bound, where 0 means that there is none.
_SCALED = ("lora", "loha", "lokr", "glora")
_NOT_FACTORS = ("alpha", "on_input", "reshape_weight")


def check_header(file: Subject) -> Iterator[Finding]:
    """Yield what the header alone tells."""
    yield from _alphas(file)
    yield from _layers(file)
    yield from _dtypes(file)
    yield from _targets(file)
    yield from _models(file)


def same_format(file: Subject, suffix: str = "mended", **options: str) -> str:
    """The call that writes the file again, in its own format, with all that it says made true."""
    format = "comfy" if file.format == "peft" else file.format
    return converting(file.source.name, suffix, format=repr(format), **options)


def _alphas(file: Subject) -> Iterator[Finding]:
    scaled = [part for part in file.parts if part.kind in _SCALED and part.rank]
    without = [part.name for part in scaled if "alpha" not in part.keys]
    if file.is_control:
        pass  # whose factors have no alpha, and no scale
    elif scaled and len(without) == len(scaled) and all(part.scale == 1 for part in scaled):
        yield finding("alpha-missing", "no layer has an alpha: all have scale 1")
    elif without and len(without) < len(scaled):
        yield finding(
            "alpha-partly",
            f"{counted(len(without), 'layer')} of {len(scaled)} without an alpha: they have scale 1, "
            "or what a program makes of it",
            without,
            same_format(file) if file.format == "kohya" else "",
        )
    if file.odd_alphas:
        told = "alphas that are not one number"
        yield finding("alpha-shape", told, file.odd_alphas, _UNREADABLE)
    if file.whole_alphas:
        told = "alphas stored as integers"
        yield finding("alpha-integer", told, file.whole_alphas, same_format(file))
    zero = [part.name for part in scaled if part.alpha == 0]
    if zero:
        yield finding(
            "alpha-zero", "alpha 0: these layers change nothing", zero, leave_out(file, zero)
        )
    above = {part.name: part.scale for part in scaled if part.scale > 1}
    if above:
        most = max(above.values())
        yield finding("alpha-above-rank", f"alpha above rank: scales up to {most:g}", tuple(above))
    scales = sorted({round(part.scale, 6) for part in scaled})
    if len(scales) > 1:
        yield finding(
            "alpha-differs", f"{len(scales)} different scales, from {scales[0]:g} to {scales[-1]:g}"
        )


def _layers(file: Subject) -> Iterator[Finding]:
    found: dict[str, list[Part]] = {}
    for part in file.parts:
        if part.kind == "mixed":
            found.setdefault("kinds-mixed", []).append(part)
        elif isinstance(part.trouble, QuantisedError):
            found.setdefault("dtype-integer", []).append(part)
        elif isinstance(part.trouble, LayerShapeError):
            code = "incomplete" if part.is_incomplete else "shapes-disagree"
            found.setdefault(code, []).append(part)
        elif part.trouble is not None:
            found.setdefault("unsupported", []).append(part)
    for code, parts in found.items():
        message = (
            "two kinds of layer under one name"
            if code == "kinds-mixed"
            else _message(parts[0].trouble)
        )
        yield finding(code, message, [part.name for part in parts], _CURES.get(code, _UNREADABLE))
    if file.strange:
        yield finding(
            "keys-left-over",
            f"{counted(len(file.strange), 'key')} of no layer; lorakit carries them",
            file.strange,
        )


def _message(error: Exception | None) -> str:
    """What an error says, without the file in front."""
    return str(error.args[0]) if error is not None and error.args else ""


def _dtypes(file: Subject) -> Iterator[Finding]:
    found: dict[str, list[str]] = {}
    for part in file.parts:
        for role, key in part.keys.items():
            element = file.source.element(key)
            if role not in _NOT_FACTORS and element.is_floating_point:
                found.setdefault(element.title, []).append(key)
    if len(found) > 1:
        listed = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(found.items()))
        yield finding("dtypes-mixed", f"factors of several dtypes: {listed}")
    for name in sorted(found.keys() - DTYPES.values()):
        yield finding(
            "dtype-rare",
            f"factors of dtype {name}, which not every program reads",
            found[name],
            same_format(file, "fp16", dtype="torch.float16"),
        )


def _targets(file: Subject) -> Iterator[Finding]:
    groups: dict[str, list[Part]] = {}
    for part in file.parts:
        if part.place is not None:
            groups.setdefault(part.place.native, []).append(part)
    twice: list[str] = []
    for parts in groups.values():
        placed = [(part.place, part) for part in parts if part.place is not None]
        placed.sort(key=lambda one: (one[0].start, one[0].stop))
        for (at, one), (behind, other) in pairwise(placed):
            if behind.start < at.stop:
                twice += [name for name in (one.name, other.name) if name not in twice]
    if twice:
        yield finding(
            "target-twice",
            f"{counted(len(twice), 'layer')} share their weights with another: programs apply one "
            "of them, or both",
            twice,
            leave_out(file, twice[1:]),
        )


def _models(file: Subject) -> Iterator[Finding]:
    formats = sorted({format_of(part.name).name for part in file.parts})
    if len(formats) > 1:
        yield finding(
            "format-mixed",
            f"names in the formats {' and '.join(formats)}",
            cure=same_format(file),
        )
    title = file.architecture.title if file.architecture is not None else ""
    others: dict[str, list[str]] = {}
    unknown: list[str] = []
    for part in file.parts:
        if part.stranger:
            others.setdefault(part.stranger, []).append(part.name)
        elif _is_unknown(file, part):
            unknown.append(part.name)
    for other, modules in others.items():
        message = f"{counted(len(modules), 'layer')} of {other} among those of {title}"
        yield finding("model-mixed", message, modules, leave_out(file, modules))
    if unknown and title:
        yield finding(
            "model-unknown", f"names that lorakit does not know as those of {title}", unknown
        )
    elif unknown:
        yield finding(
            "model-unknown",
            "names of no model that lorakit knows: whether programs know them cannot be told",
            unknown,
            "if you know the model, name it with `architecture=`",
        )


def _is_unknown(file: Subject, part: Part) -> bool:
    """Whether a layer of the diffusion model is in no table; parameters that are no layers are in none."""
    if part.kind in ("full", "set") or component(part.name) != "unet":
        return False
    return not part.name.startswith(TE) and not has(file.names, part.name)


def leave_out(file: Subject, modules: Sequence[str]) -> str:
    """The call that writes the file without some layers."""
    if len(modules) > _LISTED:
        return 'leave them out: `scale()` with `where="NAME=0"` for each'
    return leaving_out(file.source.name, "without", modules)


_LISTED = 3
_UNREADABLE = "get the file again, or ask whoever made it: the numbers are not there"
_CURES = {
    "kinds-mixed": "no program applies both; ask whoever made the file",
    "dtype-integer": "use the file it was quantised from",
    "unsupported": "use a program that knows the kind, and extract from its baked checkpoint",
}
