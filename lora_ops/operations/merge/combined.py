"""A method of merging at work on one parameter: coefficients, or a function of the tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...run.scratch import SCRATCH
from ..methods import coefficients
from ..methods.choosing import Chosen
from ..methods.elements.work import Task, Work
from ..methods.kinds import Element, Linear, Span
from ..methods.linear import Coefficients, weighed
from ..weights.terms import Between, Rows, Stored, tile_height, tiles_of
from .combine import Difference, Sum, Weighted
from .opening import Node, Opening, filled
from .survey import Survey

# A sum of coefficients that misses 1 by no more is 1.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Combination:
    """Terms under a method.

    Attributes:
        base: What the terms are changes of; without a base in the recipe, what the result begins as.
        terms: Weights or changes.
        weights: Of each.
        chosen: The method, with its parameters.
        has_base: Whether the recipe has a base.
        name: The parameter's canonical name, for random numbers.
        seed: For random numbers.
        survey: Of all weights of the step, for a method that asks for one.
    """

    base: Node
    terms: tuple[Node, ...]
    weights: tuple[float, ...]
    chosen: Chosen
    has_base: bool
    name: str = ""
    seed: int = 0
    survey: Survey | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it yields the weight itself, else its change against the base."""
        how = self.chosen.method.how
        if isinstance(how, Linear):
            return self._is_exact(self._solved(how))
        return isinstance(how, Element) and not self._of_changes

    @property
    def lone(self) -> Node | None:
        """The term that the result is, where it is one of them as it stands; else None."""
        how = self.chosen.method.how
        if not isinstance(how, Linear):
            return None
        solved = self._solved(how)
        there = [(c, t) for c, t in zip(solved.terms, self.terms, strict=True) if c]
        alone = len(there) == 1 and there[0][0] == 1 and abs(solved.base) <= _ROUNDING
        return there[0][1] if alone and there[0][1].is_whole else None

    def open(self, at: Opening) -> Rows:
        """See `Node`."""
        how = self.chosen.method.how
        if isinstance(how, Linear):
            return self._linear(self._solved(how), at)
        if not at.is_as_model:  # what is asked of a weight does not depend on how a file stores it
            return at.placed(at.read(self))
        if isinstance(how, Span):
            return self._spanned(how, [at.open(term) for term in self._seen], at)
        survey = self.survey.found() if self.survey is not None else None
        return self._worked(how, at, survey, combines=True)

    def work(self, at: Opening) -> Work:
        """The work on one weight as a survey asks for it: after its passes, before it combines."""
        how = self.chosen.method.how
        if not isinstance(how, Element):
            raise TypeError(f"`{self.chosen.name}` has no survey")
        return self._worked(how, at, None, combines=False).work

    @property
    def passes(self) -> int:
        """How often files are read before the first row can be given, without what is below."""
        how = self.chosen.method.how
        if isinstance(how, Element):
            return how.begin(self._task((1, 1), None)).passes
        return int(isinstance(how, Span))

    def _task(self, shape: tuple[int, ...], survey: Tensor | None) -> Task:
        return Task(shape, self.weights, self.chosen.parameters, self.name, self.seed, survey)

    def _worked(
        self, how: Element, at: Opening, survey: Tensor | None, *, combines: bool
    ) -> Worked:
        rows = [at.open(term) for term in self._seen]
        base = None if self._of_changes or not self.has_base else at.open(self.base)
        task = self._task(at.parameter.shape, survey)
        work = how.begin(task)
        return Worked.of(work, rows, base, at, whole=how.whole, combines=combines)

    @property
    def parts(self) -> tuple[Node, ...]:
        """See `Node`."""
        return self.base, *self.terms

    @property
    def _of_changes(self) -> bool:
        return self.chosen.method.of == "changes" and self.has_base

    @property
    def _seen(self) -> list[Node]:
        """The terms as the method sees them."""
        if self._of_changes:
            return [self._change(term) for term in self.terms]
        return [one if one.is_whole else Sum((self.base, one)) for one in self.terms]

    def _change(self, term: Node) -> Node:
        return Difference(term, self.base) if term.is_whole else term

    def _solved(self, how: Linear) -> Coefficients:
        return how.solve(self.weights, self.has_base, **self.chosen.parameters)

    def _is_exact(self, solved: Coefficients) -> bool:
        """Whether it is a mean of two weights at most, which leaves equal numbers as they are."""
        there = [term for c, term in zip(solved.terms, self.terms, strict=True) if c]
        count = len(there) + (abs(solved.base) > _ROUNDING)
        total = solved.base + math.fsum(solved.terms)
        return count <= 2 and abs(total - 1) <= _ROUNDING and all(one.is_whole for one in there)

    def _linear(self, solved: Coefficients, at: Opening) -> Rows:
        there = [(c, t) for c, t in zip(solved.terms, self.terms, strict=True) if c]
        if self._is_exact(solved):
            rows = [(c, at.open(term)) for c, term in there]
            if abs(solved.base) > _ROUNDING:
                last = rows[-1][0] if rows else 0.0
                rows.insert(0, (1 - last, at.open(self.base)))
            if len(rows) == 2 and rows[0][0] + rows[1][0] == 1:
                (_, one), (share, other) = rows
                if isinstance(one, Stored) and isinstance(other, Stored):
                    return Between(one, other, share)
            return Mean([c for c, _ in rows], [row for _, row in rows], at.weight.shape)
        rows = [(c, at.open(self._change(term))) for c, term in there]
        left = solved.base + math.fsum(solved.terms) - 1
        if not any(term.is_whole for term in self.terms) and not self.has_base:
            left = 0.0  # a sum of changes
        if abs(left) > _ROUNDING:
            rows.append((left, at.open(self.base)))
        return Weighted([row for _, row in rows], [c for c, _ in rows], at.weight.shape)

    def _spanned(self, how: Span, rows: Sequence[Rows], at: Opening) -> Rows:
        strengths = torch.tensor(self.weights, dtype=torch.float64)
        gram = _gram(rows, at.weight.shape, at.dtype)
        numbers = {name: float(value) for name, value in self.chosen.parameters.items()}  # type: ignore[arg-type]
        factors = coefficients(how.name, gram, strengths, **numbers).tolist()
        if self._of_changes:
            return Weighted(rows, factors, at.weight.shape)
        return Weighted([*rows, at.open(self.base)], [*factors, -1.0], at.weight.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """At most two terms, whose coefficients add up to 1."""

    factors: Sequence[float]
    terms: Sequence[Rows]
    shape: tuple[int, int]

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        memory = [SCRATCH.take(out.shape, out.dtype) for _ in self.terms]
        found = [one.rows(part, place) for one, place in zip(self.terms, memory, strict=True)]
        weighed(self.factors, found, out)
        for _ in memory:
            SCRATCH.give_back()
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Worked:
    """A function of the terms' tiles, once its passes are done."""

    work: Work
    terms: Sequence[Rows]
    base: Rows | None
    shape: tuple[int, int]
    done: Tensor | None = None

    @staticmethod
    def of(
        work: Work,
        terms: Sequence[Rows],
        base: Rows | None,
        at: Opening,
        *,
        whole: bool,
        combines: bool,
    ) -> Worked:
        """Go through the passes of a method; through all of the weight at once where it must.

        Args:
            work: The method's, on this weight.
            terms: As it sees them.
            base: The same.
            at: Where.
            whole: Whether a tile must be the whole weight.
            combines: Whether rows are asked for then, not the work alone.
        """
        shape = at.weight.shape
        whole = whole or len(at.parameter.shape) < 2
        parts = [slice(0, shape[0])] if whole else list(tiles_of(shape))
        found = Worked(work, terms, base, shape)
        with SCRATCH.frame():
            kept = found._tiles(parts[0]) if len(parts) == 1 and (work.passes or whole) else None
            while work.passes:
                total: Tensor | None = None
                for part in parts:
                    with SCRATCH.frame():
                        seen = work.observe(*(kept or found._tiles(part)), part.start)
                        total = seen.clone() if total is None else total.add_(seen)
                work = work.settle(total if total is not None else torch.zeros(0))
            done = work.combine(*kept, 0).clone() if whole and kept and combines else None
        return Worked(work, terms, base, shape, done)

    def rows(self, part: slice, out: Tensor) -> Tensor:
        """See `Rows`."""
        if self.done is not None:
            return out.copy_(self.done[part])
        with SCRATCH.frame():
            return out.copy_(self.work.combine(*self._tiles(part), part.start))

    def _tiles(self, part: slice) -> tuple[Tensor, Tensor | None]:
        size = (part.stop - part.start, self.shape[1])
        tiles = SCRATCH.take((len(self.terms), *size), torch.float32)
        for tile, term in zip(tiles, self.terms, strict=True):
            self._fill(tile, term, part)
        if self.base is None:
            return tiles, None
        base = SCRATCH.take(size, torch.float32)
        self._fill(base, self.base, part)
        return tiles, base

    def _fill(self, tile: Tensor, term: Rows, part: slice) -> None:
        """Read rows of a term, in tiles where they are all rows."""
        parts = [part]
        if part.stop - part.start > tile_height(self.shape):
            parts = list(tiles_of(self.shape))
        for one in parts:
            place = tile[one.start - part.start : one.stop - part.start]
            filled(term, one, place)


def _gram(terms: Sequence[Rows], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Inner products of matrices, summed in float64."""
    gram = torch.zeros(len(terms), len(terms), dtype=torch.float64)
    for part in tiles_of(shape):
        with SCRATCH.frame():
            size = (part.stop - part.start, shape[1])
            stack = SCRATCH.take((len(terms), size[0] * size[1]), torch.float64)
            memory = SCRATCH.take(size, dtype)
            for row, term in zip(stack, terms, strict=True):
                row.copy_(term.rows(part, memory).reshape(-1))
            gram += stack @ stack.mT
    return gram
