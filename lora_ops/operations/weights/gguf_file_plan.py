"""How a checkpoint lies in a GGUF file: the type of each tensor, and what keeps its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from ...files import GgufFile, QuantisedSource, dtype_name
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


@cache
def plain_types() -> Mapping[torch.dtype, str]:
    """Ggml's type of the numbers of a dtype, where they are not written in blocks."""
    return {
        torch.float32: "F32",
        torch.float64: "F32",  # ComfyUI's loader has no wider ones
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "BF16",
        torch.float8_e5m2: "BF16",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.int32: "I32",
        torch.int64: "I64",
    }


@cache
def type_dtypes() -> Mapping[str, torch.dtype]:
    """The dtype of a type's numbers, of those that are not in blocks."""
    own = {name: dtype for dtype, name in plain_types().items() if dtype_name(dtype) == name}
    return {"F64": torch.float64, **own}


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
