"""An adapter and how much of it is wanted: what scale, add and bake are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...source import TensorSource
from ..metadata import Input, Source
from .rules import strengths


@dataclass(frozen=True, slots=True, eq=False)
class Ingredient:
    """An opened adapter and how much of it is wanted.

    Attributes:
        source: The adapter.
        strength: Factor on all of it, any finite number.
        blocks: Block weights or a preset; see `rules`.
        where: `PATTERN=S`, in order; see `rules`.
    """

    source: TensorSource
    strength: float = 1.0
    blocks: str | None = None
    where: Sequence[str] = ()

    def strengths(self, names: Collection[str]) -> dict[str, float]:
        """Return the factor of each of its modules.

        Args:
            names: All of them, as its file writes them, or targets.

        Raises:
            ArgumentError: A rule that fits nothing, or a strength that is no finite number.
        """
        return strengths(names, strength=self.strength, blocks=self.blocks, where=self.where)

    def record(self, file: Input) -> Source:
        """Return what the metadata of a result says of it.

        Args:
            file: Its name and hash.
        """
        rules = [*([self.blocks] if self.blocks else []), *self.where]
        return Source(file, self.source.metadata, self.strength, " ".join(rules))
