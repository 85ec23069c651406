"""How a checkpoint lies in a GGUF file: the type of each tensor, and what keeps its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...elements import ELEMENTS, Element
from ...files import GgufFile, QuantisedSource
from ...files.reading.gguf_file import SHAPE
from ...files.writing.gguf_writer import GgufLayout, GgufTensor
from ...report import Skip
from ...source import TensorSource

LEFT_OUT = "not of the diffusion model, which is all that a GGUF file holds"
EMPTY = "holds no numbers"
NO_TYPE = "stored in a dtype that a GGUF file does not hold"
#: Why something is not in a GGUF file.
NOT_HELD = (LEFT_OUT, EMPTY, NO_TYPE)
# What is of the old file alone.
_FALSE = (SHAPE, "general.alignment", "lorakit.", "split.")


# Numbers that are written as others: ComfyUI's loader has no wider ones, and ggml none of float8.
_OTHERS = {"F64": "F32", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}
_SAME = ("F32", "F16", "BF16", "I8", "I16", "I32", "I64")
#: Ggml's type of numbers where they are not written in blocks.
PLAIN_TYPES: Mapping[Element, str] = {
    ELEMENTS[name]: type for name, type in ({one: one for one in _SAME} | _OTHERS).items()
}
#: What the numbers of a type are, of those that are not in blocks.
TYPE_ELEMENTS: Mapping[str, Element] = {name: ELEMENTS[name] for name in ("F64", *_SAME)}


@dataclass(frozen=True, slots=True, eq=False)
class GgufPlan:
    """How a checkpoint lies in a GGUF file.

    Attributes:
        layout: Of the file, by key of the checkpoint: what is not in it is left out.
        skips: What is left out.
        notes: What is worth a sentence.
    """

    layout: GgufLayout
    skips: tuple[Skip, ...]
    notes: tuple[str, ...]


def gguf_file(source: TensorSource) -> GgufFile | None:
    """The GGUF file that a source is; None if it is none."""
    found = source.original if isinstance(source, QuantisedSource) else source
    return found if isinstance(found, GgufFile) else None


def carried(file: GgufFile) -> dict[str, bytes]:
    """What a file says of its model, and stays true in another: kinds and values, by name."""
    entries = file.header_entries()
    return {name: one for name, one in entries.items() if not name.startswith(_FALSE)}


def types_note(tensors: Iterable[GgufTensor]) -> str:
    """Say how many tensors are of which type."""
    counts = Counter(one.type for one in tensors).most_common()
    return "tensors by type: " + ", ".join(f"{count} {type}" for type, count in counts)
