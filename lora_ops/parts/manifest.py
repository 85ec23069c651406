"""Parts of some work on disk: a file of tensors and a manifest each, in a folder beside the output."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import FormatError, LoraOpsError
from ..files import file_sha256, write_whole
from ..run.job import Job
from ..run.packed import Json
from .document import FORMAT

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
        told = {"lorakit_part": FORMAT, **asdict(self)}
        path = folder / f"{Path(self.file).stem}.json"
        write_whole(path, json.dumps({**told, "hash": _hash(told)}).encode(), replace=True)

    @contextmanager
    def understood(self, folder: Path) -> Generator[None, None, None]:
        """What is done with its items: where they are none of this work, an error says so.

        Args:
            folder: Of the parts.

        Raises:
            FormatError: They are none.
        """
        try:
            yield
        except LoraOpsError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                "is not as lorakit makes it; remove it with its manifest, and make that part again",
                path=folder / self.file,
            ) from error

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
    """Where the parts of an output lie until it is finished: beside it; not beside a link to it."""
    return Path(f"{os.path.realpath(output) if output.is_symlink() else output}{SUFFIX}")


def part_name(number: int, count: int) -> str:
    """Name of the file of a part, without its suffix."""
    return f"{number:05}-of-{count:05}"


def has_parts(folder: Path) -> bool:
    """Whether anything lies there that a part may be made of."""
    return any(folder.glob("[0-9]*-of-*"))


def manifests(folder: Path) -> Iterator[Manifest]:
    """Yield all that can be read, by the names of their files; one that cannot is as none."""
    for path in sorted(folder.glob("*-of-*.json")):
        one = read_manifest(path)
        if one is not None:
            yield one


def read_manifest(path: Path) -> Manifest | None:
    """Return a manifest; None where there is none that can be read."""
    try:
        told = cast("dict[str, Any]", json.loads(path.read_bytes()))
        if told.pop("hash") != _hash(told) or told.pop("lorakit_part") != FORMAT:
            return None
        one = Manifest(**told)
        name = part_name(one.number, one.count)
        is_its_own = path.stem == name and one.file == f"{name}.safetensors"
        return one if is_its_own and _plausible(told) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _plausible(told: Mapping[str, Any]) -> bool:
    """Whether fields are of their types: anybody may have written the file that they come from."""
    items, hashes = told["items"], told["hashes"]
    if not (isinstance(items, dict) and isinstance(hashes, dict)):
        return False
    texts = [told["plan"], told["sha256"], *cast("dict[str, Any]", hashes).values()]
    numbers = [told["number"], told["count"], told["size"]]
    return all(isinstance(one, str) for one in texts) and all(isinstance(x, int) for x in numbers)


def _hash(told: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def shares(jobs: Sequence[Job[Item]], count: int) -> dict[int, list[Job[Item]]]:
    """Sort jobs into parts of about equal cost, which lie beside each other: files are read forward.

    No part costs more than its share and the cost of one job.

    Args:
        jobs: All of them.
        count: How many parts.

    Returns:
        By number, from 1, those that have any.
    """
    total = max(1, sum(job.cost for job in jobs))
    found: dict[int, list[Job[Item]]] = {}
    before = 0
    for job in jobs:
        middle = 2 * before + job.cost
        number = 1 + min(count - 1, middle * count // (2 * total))
        found.setdefault(number, []).append(job)
        before += job.cost
    return found
