"""What belongs to no layer, of several adapters together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.matching.group import Term


@dataclass(frozen=True, slots=True, eq=False)
class Extras(Mapping[str, Tensor]):
    """Tensors of several adapters, each read when it is asked for; of two under one key the first.

    Attributes:
        terms: The inputs.
        taken: Keys that layers of the result may have: no extra gets one.
        holders: By key, the first input that has it.
    """

    terms: Sequence[Term]
    taken: Collection[str]
    holders: Mapping[str, Term]

    def __getitem__(self, key: str) -> Tensor:
        return self.holders[key].adapter.extras[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.holders)

    def __len__(self) -> int:
        return len(self.holders)

    def notes(self) -> Iterator[str]:
        """Say what is left out; those that several inputs have are read and compared."""
        for term in self.terms:
            for key in term.adapter.extras:
                if key in self.taken:
                    yield f"`{key}` of {term.name} is left out: a layer has that key"
                elif self.holders[key] is not term and not torch.equal(
                    self[key], term.adapter.extras[key]
                ):
                    yield f"`{key}` of {term.name} is left out: an earlier input has another"


def extras_of(terms: Sequence[Term], taken: Collection[str]) -> Extras:
    """Return what belongs to no layer, of all inputs.

    Args:
        terms: The inputs.
        taken: Keys that layers of the result may have.
    """
    holders: dict[str, Term] = {}
    for term in terms:
        for key in term.adapter.extras:
            if key not in taken:
                holders.setdefault(key, term)
    return Extras(terms, taken, holders)
