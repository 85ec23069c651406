"""Parts of some work on disk: a file of tensors and a manifest each, in a folder beside the output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import LoraOpsError
from ..files import file_sha256, write_whole
from .document import FORMAT
from .job import Job
from .packed import Json

Item = TypeVar("Item")

#: What is added to the name of the output.
SUFFIX = ".parts"
#: The plan, in that folder.
PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a part holds.

    Attributes:
        plan: Hash of the document.
        number: Which part, from 1.
        count: Of how many.
        file: Its name, in the same folder.
        size: Of the file, in bytes.
        sha256: Of the file, lower-case hex.
        items: What is to be said of each item, by its name, in the order of the work.
        hashes: SHA-256 of inputs that were taken beside the work, by the number of the input.
        seconds: Wall time.
    """

    plan: str
    number: int
    count: int
    file: str
    size: int
    sha256: str
    items: Mapping[str, Json]
    hashes: Mapping[str, str]
    seconds: float

    def write(self, folder: Path) -> None:
        """Write it: what was there of the part is replaced.

        Raises:
            WriteError: The disk is full, or the like.
        """
        text = json.dumps({"lorakit_part": FORMAT, **asdict(self)})
        path = folder / f"{Path(self.file).stem}.json"
        write_whole(path, text.encode(), replace=True)

    def is_sound(self, folder: Path, *, hashed: bool) -> bool:
        """Whether its file is there as it was written.

        Args:
            folder: Of the parts.
            hashed: Whether all of it is read; else its size counts.
        """
        path = folder / self.file
        try:
            if path.stat().st_size != self.size:
                return False
            return not hashed or file_sha256(path) == self.sha256
        except (OSError, LoraOpsError):
            return False


def parts_folder(output: Path) -> Path:
    """Where the parts of an output lie until it is finished: beside it."""
    return output.with_name(output.name + SUFFIX)


def part_name(number: int, count: int) -> str:
    """Name of the file of a part, without its suffix."""
    return f"{number:05}-of-{count:05}"


def manifests(folder: Path) -> Iterator[Manifest]:
    """Yield all that can be read, by the names of their files; one that cannot is as none."""
    for path in sorted(folder.glob("*-of-*.json")):
        try:
            told = cast("dict[str, Any]", json.loads(path.read_bytes()))
            if told.pop("lorakit_part") == FORMAT:
                yield Manifest(**told)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue


def shares(jobs: Sequence[Job[Item]], count: int) -> list[list[Job[Item]]]:
    """Sort jobs into parts of about equal cost, which lie beside each other: files are read forward.

    No part costs more than its share and the cost of one job.

    Args:
        jobs: All of them.
        count: How many parts.
    """
    total = max(1, sum(job.cost for job in jobs))
    found: list[list[Job[Item]]] = [[] for _ in range(count)]
    before = 0
    for job in jobs:
        middle = 2 * before + job.cost
        found[min(count - 1, middle * count // (2 * total))].append(job)
        before += job.cost
    return found
