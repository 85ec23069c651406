"""Checks of what a file says of itself against what it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...adapters.formats import configuration_notes, configured, experts_apart, special
from ...errors import LoraOpsError
from ...files import DATA_HASH as HASH
from ...files import FileSource, false_hash, recorded_hash
from ...models.architectures import ARCHITECTURES
from .findings import Finding, converting, finding
from .header import same_format
from .subject import Part, Subject

_PLAIN = ("lora", "full", "set", "mixed")
# Kinds that a trainer's module makes, by its name; LyCORIS, which makes any, is not here.
_KINDS = {"networks.lora": _PLAIN, "networks.dylora": _PLAIN, "networks.oft": ("oft", "boft")}
# How far two alphas may differ: one that is stored in bf16 has three digits.
_DIGITS = 0.01


def check_metadata(file: Subject) -> Iterator[Finding]:
    """Yield where the metadata are missing, or contradict the tensors."""
    told = file.source.metadata
    if not any(key.startswith("ss_") for key in told) and file.format == "kohya":
        yield finding(
            "metadata-missing",
            "no ss_* entries: programs cannot tell the model, and some hide the file",
            cure=same_format(file),
        )
    if not recorded_hash(file.source) and file.format == "kohya":
        yield finding(
            "hash-missing", f"no `{HASH}`; A1111 and Forge take it anew", cure=same_format(file)
        )
    yield from _configuration(file)
    yield from _numbers(file)
    yield from _module(file)
    yield from _model(file)


def _configuration(file: Subject) -> Iterator[Finding]:
    """What PEFT's configuration makes of the layers, besides their scales."""
    try:
        told = configured(experts_apart(file.source), [part.name for part in file.parts])
    except LoraOpsError as error:
        yield finding("configuration", str(error).removeprefix(f"{file.source.name}: "))
        return
    began = [name for name, one in told.items() if one.initial is not None]
    if began:
        yield finding(
            "base-changed",
            f"{special(file.source.metadata)}: PEFT takes the initial factors out of the weights at "
            "loading; other programs add the trained ones to the weights as they are",
            began,
            converting(file.source.name, "lora", to="'lora'", base="checkpoint"),
        )
    for note in configuration_notes(file.source.metadata):
        yield finding("base-changed", note)


def check_hash(file: Subject) -> Iterator[Finding]:
    """Yield where the hash is not that of the data; reads all of the file."""
    source = file.original
    false = false_hash(source) if isinstance(source, FileSource) else None
    if false is not None:
        told, true = false
        yield finding(
            "hash-false",
            f"`{HASH}` is {told:.12}…, the data's {true:.12}…: programs take the file for another one",
            cure=same_format(file),
        )


def _numbers(file: Subject) -> Iterator[Finding]:
    told = file.source.metadata
    linear = [part for part in file.parts if part.kind in ("lora", "loha") and part.rank]
    small = [part for part in linear if _is_small(part)] or linear
    ranks = sorted({part.rank for part in small if part.rank})
    rank = _number(told.get("ss_network_dim"))
    if ranks and rank is not None and rank not in ranks:
        yield finding(
            "metadata-rank",
            f"`ss_network_dim` is {rank:g}, the ranks are {_range(ranks)}",
            cure=same_format(file),
        )
    stored = sorted({part.alpha for part in small if part.alpha is not None})
    without = [part for part in small if part.alpha is None]
    meant = {part.scale * (part.rank or 0) for part in without}
    alpha = _number(told.get("ss_network_alpha"))
    if small and alpha is not None and not any(_near(alpha, one) for one in {*stored, *meant}):
        are = f"the alphas are {_range(stored)}" if stored else "no layer has an alpha"
        if without and stored:
            are += ", and some layers have none"
        elif without:
            are += f": the scale is {_range(sorted({part.scale for part in without}))}"
        yield finding(
            "metadata-alpha",
            f"`ss_network_alpha` is {alpha:g}, {are}",
            cure=same_format(file),
        )


def _is_small(part: Part) -> bool:
    """A linear layer or a 1x1 convolution: larger kernels have a rank of their own."""
    return part.layer is not None and set(part.layer.shape[2:]) <= {1}


def _module(file: Subject) -> Iterator[Finding]:
    module = file.source.metadata.get("ss_network_module", "")
    allowed = next((kinds for start, kinds in _KINDS.items() if module.startswith(start)), None)
    odd = [part for part in file.parts if allowed is not None and part.kind not in allowed]
    if odd:
        yield finding(
            "metadata-module",
            f"`ss_network_module` is `{module}`, which makes no {odd[0].kind} layers",
            [part.name for part in odd],
            "kohya's tools need the trainer's own: lycoris.kohya for LyCORIS",
        )


def _model(file: Subject) -> Iterator[Finding]:
    for key, field in (
        ("ss_base_model_version", "base_model_version"),
        ("modelspec.architecture", "modelspec"),
    ):
        value = file.source.metadata.get(key, "").partition("/")[0]
        told = [one for one in ARCHITECTURES if value and getattr(one, field) == value]
        if told and file.possible and not any(one in file.possible for one in told):
            yield finding(
                "metadata-model",
                f"`{key}` says {told[0].title}, the layers are those of {file.possible[0].title}",
                cure="programs that go by it hide the file, or apply it to the wrong model; the "
                "names decide what loads",
            )


def _number(text: str | None) -> float | None:
    """The finite number in a text; None for other text, such as `Dynamic`."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= _DIGITS * max(abs(one), abs(other))


def _range(values: list[int] | list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
