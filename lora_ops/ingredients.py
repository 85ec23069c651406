"""An adapter file and how strongly it is wanted: what add and bake are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .formats import modules
from .rules import strengths
from .source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Ingredient:
    """An adapter and how strongly it is applied.

    Attributes:
        source: The adapter, opened.
        strength: The user's factor, of every layer that `strengths` does not name.
        strengths: The whole factor by module name, as it stands in the file.
        blocks: What the user asked for by block, as text, for the record.
    """

    source: TensorSource
    strength: float = 1.0
    strengths: Mapping[str, float] | None = None
    blocks: str = ""

    def strength_of(self, module: str) -> float:
        """The factor of one module."""
        return (self.strengths or {}).get(module, self.strength)


def ingredient(
    source: TensorSource,
    strength: float = 1.0,
    blocks: str | None = None,
    where: Sequence[str] = (),
) -> Ingredient:
    """Return an adapter with the strength that rules give each of its modules.

    Args:
        source: The adapter, opened; only its header is read.
        strength: Factor on all of it.
        blocks: Block weights or a preset; see `rules`.
        where: `PATTERN=S`, in order; see `rules`.

    Raises:
        ArgumentError: A rule that fits nothing.
    """
    names = modules(source.keys()).modules
    found = strengths(names, strength=strength, blocks=blocks, where=where)
    record = " ".join([*([blocks] if blocks else []), *where])
    return Ingredient(source, strength, found, record)
