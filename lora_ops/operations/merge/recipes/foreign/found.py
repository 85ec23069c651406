"""What a reader of another program's recipe gives, and what all of those readers need."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from .....adapters.metadata.common import from_json
from .....errors import FormatError
from .....text import plain
from ..recipe import Output, Recipe, RecipeFile, Step, Term
from ..toml_text import number_text

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_SUFFIX = re.compile(r"\s*\[[0-9a-f]{6,64}\]$")  # as web UIs show a model: name [0123456789]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A recipe of another program, as ours.

    Attributes:
        program: Whose it is.
        recipe: The same as a document of ours.
        lost: What could not be carried, a sentence each; empty if it is all there.
    """

    program: str
    recipe: Recipe
    lost: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """A recipe while it is read.

    Attributes:
        program: Whose it is.
        models: Names by SHA-256, as far as they are known.
        files: By key.
        steps: In order.
        lost: What could not be carried.
        parts: As in a recipe.
    """

    program: str
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    files: dict[str, RecipeFile] = field(default_factory=dict[str, RecipeFile])
    steps: list[Step] = field(default_factory=list[Step])
    lost: list[str] = field(default_factory=list[str])
    parts: dict[str, str] = field(default_factory=dict[str, str])

    def file(self, name: str = "", sha256: str = "", *, kind: str = "", url: str = "") -> str:
        """The key of a file, which is A, B, C in the order of mention; the same file has one key.

        Raises:
            FormatError: Nothing names it.
        """
        sha256 = sha256.lower() if _SHA256.fullmatch(sha256.lower()) else ""
        name = bare(name or self.models.get(sha256, ""))
        if not name and sha256:
            name = f"{sha256[:10]}.safetensors"
            self.lost.append(f"the name of the file with SHA-256 {sha256[:10]}… is not recorded")
        if not name:
            raise FormatError(f"the recipe of {self.program} does not say what was merged")
        for key, file in self.files.items():
            if (file.sha256 == sha256 and sha256) or (file.name == name and file.sha256 == sha256):
                return key
        key = _letter(len(self.files))
        self.files[key] = RecipeFile(name, sha256, kind=kind, url=url)
        return key

    def step(self, terms: Sequence[Term] = (), **settings: object) -> str:
        """Add a step, and return its name."""
        name = f"step{len(self.steps) + 1}"
        step = Step(name, tuple(terms), **settings)  # pyright: ignore[reportArgumentType]
        for known in self.steps:
            if known == Step(known.name, tuple(terms), **settings):  # pyright: ignore[reportArgumentType]
                return known.name
        self.steps.append(step)
        return name

    def lose(self, what: str) -> None:
        """Note what could not be carried, once."""
        if what not in self.lost:
            self.lost.append(what)

    def finished(self, title: str = "", output: Output | None = None) -> Foreign:
        """The recipe, with what was lost."""
        recipe = Recipe(
            tuple(self.steps),
            dict(self.files),
            printable(title),
            dict(self.parts),
            output or Output(),
        )
        return Foreign(self.program, recipe, tuple(self.lost))


def bare(name: str) -> str:
    """The name of a file without folders, without the hash that web UIs put behind it."""
    name = re.split(r"[/\\]", _HASH_SUFFIX.sub("", name.strip()))[-1]
    return printable(name)[:255]


def printable(text: str) -> str:
    """Text without control characters, as it can stand in a recipe."""
    return plain(text).replace("$", "_").strip()


def mapping(value: object) -> dict[str, object]:
    """A JSON object, also where it was written as text; empty for what is none."""
    read = from_json(value) if isinstance(value, str) else value
    return cast("dict[str, object]", read) if isinstance(read, dict) else {}


def listing(value: object) -> list[object]:
    """A list; empty for what is none."""
    return cast("list[object]", value) if isinstance(value, list) else []


def text(value: object) -> str:
    """A text; empty for what is none."""
    return value if isinstance(value, str) else ""


def number(value: object, what: str, program: str) -> float:
    """A finite number, also where it was written as text.

    Raises:
        FormatError: It is none.
    """
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    raise FormatError(
        f"the recipe of {program} gives {what} as `{plain(str(value)[:60])}`, which is not a number"
    )


def numbers(value: object, what: str, program: str) -> list[float]:
    """A list of finite numbers, also where it was written as text with commas.

    Raises:
        FormatError: It is none.
    """
    rows: Iterable[object] = value.split(",") if isinstance(value, str) else listing(value)
    return [number(row, what, program) for row in rows]


def block_list(values: Iterable[float]) -> str:
    """Numbers by block as `blocks` of a term."""
    return ",".join(map(number_text, values))


def substring(elements: str, strength: float) -> str:
    """The rule for all names that contain a text."""
    return f"*{glob.escape(elements)}*={number_text(strength)}"


def names_by_hash(models: Mapping[str, object]) -> dict[str, str]:
    """The names in `sd_merge_models`, by SHA-256."""
    return {sha256.lower(): text(mapping(entry).get("name")) for sha256, entry in models.items()}


def _letter(count: int) -> str:
    """A, B, ... Z, AA, AB."""
    found = ""
    count += 1
    while count:
        count, rest = divmod(count - 1, 26)
        found = chr(ord("A") + rest) + found
    return found
