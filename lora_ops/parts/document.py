"""The plan of some work as a document: what there is to do, of what, and a hash over it.

Runs that share the work between them, on one machine or on many, or one after another, must mean the
same work. They do where the hash is the same: it is over everything that decides what comes out, and
over nothing that differs from machine to machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..errors import FormatError
from ..files import read_errors

#: Of documents and manifests; another is not read.
FORMAT = 1
#: The option that is the hash of what the result will say was asked for, such as a recipe.
RECORD = "record"


@dataclass(frozen=True, slots=True)
class Item:
    """What can be done by itself.

    Attributes:
        name: A target, or a key of the output.
        cost: What it takes, against the others.
        shape: Of the weight.
    """

    name: str
    cost: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is read.

    Attributes:
        name: Without folders, which may be others on another machine.
        size: In bytes.
        modified: Time of its last change, in ns.
    """

    name: str
    size: int
    modified: int


@dataclass(frozen=True)  # no slots: the hash of many items is taken once
class Document:
    """What there is to do.

    Attributes:
        operation: extract, merge, bake, requantise, ...
        version: Of lorakit.
        options: What was asked for, by name; strings, numbers, lists.
        output: Name of the result, without folders.
        inputs: The files that are read.
        items: All of the work, in its order.
        request: How it was asked for, for whoever finishes it; it is not in the hash.
    """

    operation: str
    version: str
    options: Mapping[str, Any]
    output: str
    inputs: tuple[InputFile, ...]
    items: tuple[Item, ...]
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all but the request, lower-case hex."""
        text = json.dumps(self._hashed(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def cost(self) -> int:
        """Of all items together."""
        return sum(item.cost for item in self.items)

    def to_json(self) -> str:
        """The document as a file has it."""
        return json.dumps({**self._hashed(), "request": self.request, "hash": self.hash}, indent=1)

    def _hashed(self) -> dict[str, Any]:
        told = asdict(self)
        del told["request"]
        return {"lorakit_plan": FORMAT, **told}

    def difference(self, other: Document) -> str:
        """Say in what another document first differs from this one; empty where it does not."""
        return next(self._differences(other), "")

    def _differences(self, other: Document) -> Iterator[str]:
        for what in ("version", "operation", "output"):
            here, there = getattr(self, what), getattr(other, what)
            if here != there:
                yield f"{what} `{here}`, now `{there}`"
        for name in dict.fromkeys([*self.options, *other.options]):
            here, there = self.options.get(name), other.options.get(name)
            if here != there and name != RECORD:
                yield f"{name} {_told(here)}, now {_told(there)}"
        for here, there in zip(self.inputs, other.inputs, strict=False):
            if here.name != there.name:
                yield f"input `{here.name}`, now `{there.name}`"
            elif here != there:
                yield f"input `{here.name}` changed since"
        if [one.name for one in self.inputs] != [one.name for one in other.inputs]:
            yield "other inputs"
        if self.options.get(RECORD) != other.options.get(RECORD):
            yield "another recipe, or another record of it"
        if self.hash != other.hash:
            yield "other weights"


def read_document(path: Path) -> Document:
    """Read a document.

    Args:
        path: As `Document.to_json` was written to it.

    Raises:
        FormatError: It is none, or of another format.
    """
    with read_errors(path):
        text = path.read_bytes()
    try:
        told = cast("dict[str, Any]", json.loads(text))
        if told["lorakit_plan"] != FORMAT:
            raise FormatError("was made by another version of lorakit", path=path)
        found = Document(
            told["operation"],
            told["version"],
            told["options"],
            told["output"],
            tuple(InputFile(**one) for one in told["inputs"]),
            tuple(Item(one["name"], one["cost"], tuple(one["shape"])) for one in told["items"]),
            told["request"],
        )
        if not all(isinstance(one, dict) for one in (found.options, found.request)):
            raise TypeError
        is_it = found.hash == told["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("is no plan of lorakit", path=path) from error
    if not is_it:
        raise FormatError("was changed since it was made: its hash is another", path=path)
    return found


def input_files(paths: Sequence[Path]) -> tuple[InputFile, ...]:
    """What tells whether files are still the same, on any machine that sees them.

    Args:
        paths: Of files that are open.

    Raises:
        FormatError: One is gone.
    """
    found: list[InputFile] = []
    for path in dict.fromkeys(paths):
        with read_errors(path):
            state = path.stat()
        found.append(InputFile(path.name, state.st_size, state.st_mtime_ns))
    return tuple(found)


def _told(value: object) -> str:
    return "not given" if value is None else f"`{value}`"
