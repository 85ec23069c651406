"""A strength for some of a file's modules: what every text of strengths becomes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A strength for some of a file's modules.

    Attributes:
        pattern: What was asked for: a pattern, a component or a block's label.
        strength: Factor on the change, any finite number; 0 is none of it.
        names: The module names that it fits.
    """

    pattern: str
    strength: float
    names: frozenset[str]

    def matches(self, name: str) -> bool:
        """Whether the rule is about this module."""
        return name in self.names
