"""What other programs keep beside a file about it: JSON under its name, and a picture.

Whatever is wrong with such a file, it is passed over: it is nobody's reason not to load a LoRA.
"""

from __future__ import annotations

import contextlib
import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .common import from_json

_LARGEST = 1 << 23  # bytes
_STRONGEST = 100.0
_PICTURES = tuple(
    f"{middle}.{end}" for middle in (".preview", "") for end in ("png", "jpg", "jpeg", "webp")
)
_MARKUP = re.compile(r"<[^<>]*>")
Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What lies beside a file.

    Attributes:
        trigger_words: As they were written: words, or several with commas.
        title: A name for people.
        description: Text.
        notes: The user's own.
        base_model: What it is for, in that program's words.
        preferred_weight: The strength that the user, or the author, finds best; None: not told.
        picture: A preview; None where there is none.
        files: What was read.
    """

    trigger_words: tuple[str, ...] = ()
    title: str = ""
    description: str = ""
    notes: str = ""
    base_model: str = ""
    preferred_weight: float | None = None
    picture: Path | None = None
    files: tuple[Path, ...] = ()


def read_sidecar(path: str | Path) -> Sidecar:
    """Read what A1111, rgthree's nodes, LoRA Manager and Civitai's helpers keep beside a file.

    Of what several say the first counts, in that order; their trigger words come together.

    Args:
        path: The file; `NAME.json` and its like lie beside `NAME.safetensors`.

    Returns:
        What is there and can be read; never an error.
    """
    place = Path(path)
    found: list[Sidecar] = []
    if not place.name:  # the folder that one is in has no name to look for
        return Sidecar()
    for beside, reader in _places(place):
        fields = _read(beside)
        if fields is not None:
            found.append(reader(fields, beside))

    def first(texts: Iterable[str]) -> str:
        return next(filter(None, texts), "")

    weights = (one.preferred_weight for one in found if one.preferred_weight is not None)
    return Sidecar(
        trigger_words=tuple(word for one in found for word in one.trigger_words),
        title=first(one.title for one in found),
        description=first(one.description for one in found),
        notes=first(one.notes for one in found),
        base_model=first(one.base_model for one in found),
        preferred_weight=next(weights, None),
        picture=next((one for one in _pictures(place) if _is_file(one)), None),
        files=tuple(path for one in found for path in one.files),
    )


def sidecar_paths(path: Path) -> list[Path]:
    """All places at which `read_sidecar` looks."""
    return [*(beside for beside, _ in _places(path)), *_pictures(path)]


def _places(path: Path) -> Iterator[tuple[Path, Callable[[Fields, Path], Sidecar]]]:
    yield path.with_name(f"{path.stem}.json"), _a1111
    yield path.with_name(f"{path.name}.rgthree-info.json"), _rgthree
    yield path.with_name(f"{path.stem}.metadata.json"), _lora_manager
    yield path.with_name(f"{path.stem}.civitai.info"), _civitai


def _pictures(path: Path) -> list[Path]:
    return [path.with_name(f"{path.stem}{end}") for end in _PICTURES]


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def _read(path: Path) -> Fields | None:
    with contextlib.suppress(OSError, ValueError):
        # A pipe would block for ever.
        if path.is_file() and path.stat().st_size <= _LARGEST:
            read = from_json(path.read_text("utf-8-sig"))
            return cast("Fields", read) if isinstance(read, dict) else None
    return None


def _a1111(fields: Fields, path: Path) -> Sidecar:
    weight = _number(fields.get("preferred weight"))
    return Sidecar(
        trigger_words=_texts([fields.get("activation text")]),
        description=_text(fields.get("description")),
        notes=_text(fields.get("notes")),
        base_model=_text(fields.get("sd version")).replace("Unknown", ""),
        preferred_weight=weight or None,  # its editor writes 0 where nothing was chosen
        files=(path,),
    )


def _rgthree(fields: Fields, path: Path) -> Sidecar:
    rows = [_fields(row) for row in _list(fields.get("trainedWords"))]
    # It lists the tags of the training beside the words that somebody gave.
    given = [row.get("word") for row in rows if row.get("civitai") or row.get("user")]
    return Sidecar(
        trigger_words=_texts(given),
        title=_text(fields.get("name")),
        notes=_text(fields.get("userNote")),
        base_model=_text(fields.get("baseModel")),
        files=(path,),
    )


def _lora_manager(fields: Fields, path: Path) -> Sidecar:
    tips = _fields(from_json(_text(fields.get("usage_tips"))))
    return Sidecar(
        trigger_words=_texts(_list(_fields(fields.get("civitai")).get("trainedWords"))),
        title=_text(fields.get("model_name")),
        description=_prose(fields.get("modelDescription")),
        notes=_text(fields.get("notes")),
        base_model=_text(fields.get("base_model")).replace("Unknown", ""),
        preferred_weight=_number(tips.get("strength")),
        files=(path,),
    )


def _civitai(fields: Fields, path: Path) -> Sidecar:
    model = _fields(fields.get("model"))
    return Sidecar(
        trigger_words=_texts(_list(fields.get("trainedWords"))),
        title=" ".join(filter(None, (_text(model.get("name")), _text(fields.get("name"))))),
        description=_prose(model.get("description")) or _prose(fields.get("description")),
        base_model=_text(fields.get("baseModel")),
        files=(path,),
    )


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(text for value in values if (text := _text(value)))


def _prose(value: object) -> str:
    """Text out of HTML, which Civitai's descriptions are."""
    return html.unescape(_MARKUP.sub(" ", _text(value))).strip()


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _fields(value: object) -> Fields:
    return cast("Fields", value) if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= _STRONGEST else None
