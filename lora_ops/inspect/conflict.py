"""Conflict: how far several changes of one weight are in each other's way, from their factors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..operations.add.combine import Stack
from ..operations.methods.factored.directions import triplets

Matrix = tuple[tuple[float, ...], ...]

# Elements of a product that are looked at: of 200 000 largest ones the share that disagrees is known to 0.1 %.
_LOOKED = 1 << 20


@dataclass(frozen=True, slots=True)
class Conflict:
    """How T adapters are in each other's way: in one weight, in a block, or in all weights.

    All attributes are sums over weights, (T, T). One that an adapter does not change counts with 0 there. Of
    weights where a LoKr has no factors that are smaller than the weight, inner products alone are known.

    Attributes:
        inner: Inner products of the changes.
        outputs: Energy (squared norm) of the first in the left singular directions of the second, which are
            directions of the weight's outputs; all of it with itself.
        inputs: The same of the right singular directions, which are of its inputs.
        outputs_by_chance: What the first would have there if its directions were drawn at random.
        inputs_by_chance: The same of the right singular directions.
        largest: Elements that are among the largest of both; with itself, all that are.
        opposite: Those of them that have opposite signs.
    """

    inner: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    inputs: tuple[tuple[float, ...], ...]
    outputs_by_chance: tuple[tuple[float, ...], ...]
    inputs_by_chance: tuple[tuple[float, ...], ...]
    largest: tuple[tuple[float, ...], ...]
    opposite: tuple[tuple[float, ...], ...]

    @property
    def norms(self) -> tuple[float, ...]:
        """Frobenius norm of each adapter's changes."""
        return tuple(math.sqrt(max(row[at], 0.0)) for at, row in enumerate(self.inner))

    @property
    def cosines(self) -> tuple[tuple[float, ...], ...]:
        """Cosines of the changes, -1 to 1; 0 where one is zero."""
        norms = self.norms
        return tuple(
            tuple(
                max(-1.0, min(1.0, inner / (one * other))) if one and other else 0.0
                for inner, other in zip(row, norms, strict=True)
            )
            for row, one in zip(self.inner, norms, strict=True)
        )

    @property
    def shared_outputs(self) -> tuple[tuple[float, ...], ...]:
        """The share of the first's energy in the second's left singular directions, 0 to 1."""
        return _shares(self.outputs, self.outputs)

    @property
    def shared_inputs(self) -> tuple[tuple[float, ...], ...]:
        """The share of the first's energy in the second's right singular directions, 0 to 1."""
        return _shares(self.inputs, self.inputs)

    @property
    def chance_outputs(self) -> tuple[tuple[float, ...], ...]:
        """What `shared_outputs` would be if directions were drawn at random."""
        return _shares(self.outputs_by_chance, self.outputs)

    @property
    def chance_inputs(self) -> tuple[tuple[float, ...], ...]:
        """What `shared_inputs` would be if directions were drawn at random."""
        return _shares(self.inputs_by_chance, self.inputs)

    @property
    def overlap(self) -> tuple[tuple[float, ...], ...]:
        """The share of the first's largest elements that are among the second's; by chance, what counts as large."""
        return _shares(self.largest, self.largest)

    @property
    def disagreement(self) -> tuple[tuple[float, ...], ...]:
        """Of elements that are among the largest of both, the share with opposite signs; by chance 0.5."""
        return tuple(
            tuple(
                against / both if both else 0.0 for against, both in zip(row, counts, strict=True)
            )
            for row, counts in zip(self.opposite, self.largest, strict=True)
        )

    @property
    def sum_norm(self) -> float:
        """Frobenius norm of the plain sum."""
        return math.sqrt(max(math.fsum(one for row in self.inner for one in row), 0.0))

    @property
    def of_unrelated(self) -> float:
        """That norm as a share of what it would be if all changes were orthogonal; 0 if all are zero."""
        return self.sum_norm / (math.hypot(*self.norms) or 1.0)

    @property
    def of_parallel(self) -> float:
        """That norm as a share of what it would be if all changes were parallel, 0 to 1."""
        return self.sum_norm / (math.fsum(self.norms) or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = (
            *("norms", "cosines", "shared_outputs", "shared_inputs", "chance_outputs"),
            *(
                "chance_inputs",
                "overlap",
                "disagreement",
                "sum_norm",
                "of_unrelated",
                "of_parallel",
            ),
        )
        return {name: getattr(self, name) for name in names}


def together(conflicts: Iterable[Conflict]) -> Conflict:
    """Return the conflict over several weights; one at least, all of as many adapters."""
    found = list(conflicts)
    sums = {
        one.name: torch.tensor(
            [getattr(conflict, one.name) for conflict in found], dtype=torch.float64
        ).sum(0)
        for one in fields(Conflict)
    }
    return Conflict(**{name: _matrix(total) for name, total in sums.items()})


def conflict_of(
    gram: Tensor, stack: Stack | None, members: tuple[int, ...], count: int, share: float
) -> Conflict:
    """Return the conflict in one weight.

    Args:
        gram: (M, M) inner products of the changes that there are, float64.
        stack: Their factors; None where there are none smaller than the weight.
        members: Whose they are, by index.
        count: How many adapters there are, T.
        share: Of the elements of a change, how many count as large; above 0, up to 1.
    """
    found = {one.name: torch.zeros(gram.shape, dtype=torch.float64) for one in fields(Conflict)}
    found["inner"] = gram
    if stack is not None and float(gram.diagonal().max()) > 0:
        found |= _directions(stack) | _signs(stack, share)
    at = torch.tensor(members)
    wide = {name: torch.zeros(count, count, dtype=torch.float64) for name in found}
    for name, small in found.items():
        wide[name][at.unsqueeze(1), at] = small
    return Conflict(**{name: _matrix(one) for name, one in wide.items()})


def _directions(stack: Stack) -> dict[str, Tensor]:
    """Energies (M, M) in each other's singular directions, and what chance would give."""
    cores = stack.frame().cores()
    energies = cores.square().sum((1, 2))
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("outputs", "inputs", "outputs_by_chance", "inputs_by_chance")
    }
    for core in cores:
        left, values, right = triplets(core, min(core.shape))
        columns["outputs"].append((left.mT @ cores).square().sum((1, 2)))
        columns["inputs"].append((cores @ right).square().sum((1, 2)))
        columns["outputs_by_chance"].append(energies * len(values) / stack.up.shape[0])
        columns["inputs_by_chance"].append(energies * len(values) / stack.down.shape[1])
    return {name: torch.stack(found, 1) for name, found in columns.items()}


def _signs(stack: Stack, share: float) -> dict[str, Tensor]:
    """Elements (M, M) that are large in both, and those of opposite signs; of large weights, rows at equal steps."""
    rows, width = stack.up.shape[0], stack.down.shape[1]
    step = math.ceil(rows * width / _LOOKED)
    products = stack.tiles(slice(0, rows, step)).flatten(1)
    kept = max(1, int(share * products.shape[1]))
    sizes = products.abs()
    bounds = sizes.kthvalue(products.shape[1] + 1 - kept, dim=1, keepdim=True).values
    signs = torch.where(sizes >= bounds, products.sign(), 0)
    agreeing = (signs @ signs.mT).double()  # those that agree less those that do not: whole numbers
    there = signs.abs()
    both = (there @ there.mT).double()
    weight = rows * width / products.shape[1]
    return {"largest": both * weight, "opposite": (both - agreeing) / 2 * weight}


def _shares(energies: Matrix, of: Matrix) -> Matrix:
    return tuple(
        tuple(min(1.0, one / of[at][at]) if of[at][at] else 0.0 for one in row)
        for at, row in enumerate(energies)
    )


def _matrix(values: Tensor) -> Matrix:
    return tuple(map(tuple, values.tolist()))
