"""Compare checkpoints: how far apart two models are, parameter by parameter, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters.checkpoint import check_checkpoint
from ..adapters.strengths.blocks import locate
from ..models.architectures import Parameter, parameters
from ..models.differences import Sides, are_floats, read_parameter
from ..models.pairing import COMPONENTS, Pair, pair
from ..run.devices import Placement
from ..run.job import Job, Work
from ..run.stream import stream
from ..run.workers import Progress
from ..source import TensorSource

_RUN = 1 << 18  # numbers at a time: what stays in cache
# Parameters of a model that lie in no block: of its autoencoder, and the others.
_VAE, _REST = "VAE", "rest"


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike some numbers of two checkpoints are.

    Attributes:
        norms: Frobenius norms of the first's and of the second's.
        difference: Frobenius norm of the second's less the first's.
    """

    norms: tuple[float, float]
    difference: float

    @property
    def size(self) -> float:
        """The difference as a share of the first's norm: 0 for equal ones; NaN beside what is not finite."""
        if self.norms[0] == 0:
            return math.inf if self.difference else 0.0
        return self.difference / self.norms[0]

    @property
    def cosine(self) -> float:
        """Cosine of the two, from -1 to 1; 0 where one is zero, 1 where both are."""
        first, second = self.norms
        if not first or not second:
            return 0.0 if self.difference else 1.0
        # From the difference: an inner product of two that are nearly one has lost what parts them.
        apart = (self.difference**2 - (first - second) ** 2) / (2 * first * second)
        return max(-1.0, 1.0 - max(0.0, apart))


@dataclass(frozen=True, slots=True)
class ParameterComparison(Likeness):
    """One parameter that both checkpoints have, in one shape.

    Attributes:
        name: Canonical name, whatever the files call it.
        component: unet, te, vae or other.
        kind: linear, conv 3x3, embedding, bias, norm, ...
        shape: Of the parameter, (out, in, *kernel) for a weight.
        storages: How the first and the second store it: `fp16`, `bf16`, ...
        is_equal: Whether all numbers are equal, however they are stored.
        is_weight: Whether it counts in sums: floating point numbers, finite, of a model.
    """

    name: str
    component: str
    kind: str
    shape: tuple[int, ...]
    storages: tuple[str, str]
    is_equal: bool
    is_weight: bool

    @property
    def is_finite(self) -> bool:
        """Whether neither holds NaN or infinity."""
        return math.isfinite(self.difference)


@dataclass(frozen=True, slots=True)
class GroupComparison(Likeness):
    """Several parameters together.

    Attributes:
        count: How many.
        equal: How many of them are equal.
    """

    count: int
    equal: int


@dataclass(frozen=True, slots=True)
class CheckpointComparison:
    """How alike two checkpoints are.

    Attributes:
        parameters: What both have, in the first's order.
        only: Canonical names of what the first alone has, and of what the second alone has.
        reshaped: What has two shapes: its canonical name, and both.
    """

    parameters: tuple[ParameterComparison, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def total(self) -> GroupComparison:
        """All weights of the models together."""
        return _together(self.parameters)

    @property
    def equal(self) -> int:
        """How many parameters are equal, of all that both have."""
        return sum(one.is_equal for one in self.parameters)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of parameters that hold NaN or infinity in one of the files."""
        return tuple(one.name for one in self.parameters if not one.is_finite)

    def components(self) -> dict[str, GroupComparison]:
        """Weights by component: unet, te, vae, as far as both have them."""
        groups = self._grouped(lambda one: one.component)
        return {name: groups[name] for name in COMPONENTS if name in groups}

    def kinds(self) -> dict[str, GroupComparison]:
        """Weights by kind: linear, conv 3x3, norm, bias, ..."""
        return self._grouped(lambda one: one.kind)

    def blocks(self) -> dict[str, GroupComparison]:
        """Weights by block, in order of execution: `IN04`, `M00`, `D12`; then `VAE` and `rest`.

        A model whose blocks are not known is `rest` as a whole.
        """
        weights = [one for one in self.parameters if one.is_weight]
        found = locate([one.name for one in weights if one.component != "vae"])
        of = {
            name: block.label
            for block, names in (found.modules.items() if found else ())
            for name in names
        }
        labels = [*dict.fromkeys(of.values()), _VAE, _REST]

        def label(one: ParameterComparison) -> str:
            return _VAE if one.component == "vae" else of.get(one.name, _REST)

        groups = self._grouped(label)
        return {name: groups[name] for name in labels if name in groups}

    def _grouped(self, label: Callable[[ParameterComparison], str]) -> dict[str, GroupComparison]:
        groups: dict[str, list[ParameterComparison]] = {}
        for one in self.parameters:
            if one.is_weight:
                groups.setdefault(label(one), []).append(one)
        return {name: _together(members) for name, members in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: totals first, then groups, then every parameter."""
        groups = {"components": self.components(), "kinds": self.kinds(), "blocks": self.blocks()}
        return {
            **_plain(self.total),
            "shared": len(self.parameters),
            "equal": self.equal,
            "only_first": list(self.only[0]),
            "only_second": list(self.only[1]),
            "reshaped": [
                {"name": name, "shapes": [list(first), list(second)]}
                for name, first, second in self.reshaped
            ],
            "not_finite": list(self.not_finite),
            **{
                title: {name: _plain(one) for name, one in group.items()}
                for title, group in groups.items()
            },
            "parameters": [_plain(one) for one in self.parameters],
        }


def compare_checkpoints(
    first: TensorSource, second: TensorSource, *, progress: Progress | None = None
) -> CheckpointComparison:
    """Compare two checkpoints, across naming schemes, layouts and dtypes; a piece of each in memory.

    Parameters are matched by canonical name: a diffusers folder and a native file too.

    Args:
        first: The checkpoint that differences are measured from.
        second: The other checkpoint.
        progress: Called after each parameter.

    Raises:
        MismatchError: One is no checkpoint, or no weight is in both.
        QuantisedError: One is stored with scales.
    """
    for source in (first, second):
        check_checkpoint(source)
    pair(first, second, usual=COMPONENTS, allow_partial=True)  # says why where nothing matches
    ours, theirs = parameters(first), parameters(second)
    shared = [Pair(one, theirs[name]) for name, one in ours.items() if name in theirs]
    sides = Sides(first, second)
    jobs = [
        Job(both.name, both, math.prod(both.shape) or 1)
        for both in shared
        if both.base.shape == both.tuned.shape
    ]
    return CheckpointComparison(
        tuple(stream(Work(jobs, partial(_compute, sides)), progress=progress)),
        (
            tuple(name for name in ours if name not in theirs),
            tuple(name for name in theirs if name not in ours),
        ),
        tuple(
            (both.name, both.base.shape, both.tuned.shape)
            for both in shared
            if both.base.shape != both.tuned.shape
        ),
    )


def _compute(sides: Sides, pairs: Sequence[Pair], _: Placement) -> list[ParameterComparison]:
    return [_compared(sides, both) for both in pairs]


def _compared(sides: Sides, both: Pair) -> ParameterComparison:
    dtypes = (sides.base.dtype(both.base.key), sides.tuned.dtype(both.tuned.key))
    is_plain = are_floats(sides, both) and torch.float64 not in dtypes
    measured = _measured(sides, both, torch.float32 if is_plain else torch.float64)
    if not math.isfinite(measured[2]) or not (measured[2] or measured[3]):
        measured = _measured(sides, both, torch.float64)  # squares may leave float32's range
    *norms, difference, is_equal = measured
    return ParameterComparison(
        norms=(norms[0], norms[1]),
        difference=difference,
        name=both.name,
        component=both.component,
        kind=both.kind,
        shape=both.shape,
        storages=(sides.base.storage(both.base.key), sides.tuned.storage(both.tuned.key)),
        is_equal=is_equal,
        is_weight=both.component in COMPONENTS
        and are_floats(sides, both)
        and math.isfinite(difference),
    )


def _measured(sides: Sides, both: Pair, dtype: torch.dtype) -> tuple[float, float, float, bool]:
    """The norms of both and of the difference, and whether there is none."""
    squares: list[tuple[float, float, float]] = []
    is_equal = True
    runs = zip(_runs(sides.base, both.base), _runs(sides.tuned, both.tuned), strict=True)
    for one, other in runs:
        a, b = one.to(dtype), other.to(dtype)
        change = b - a
        squares.append((_square(a), _square(b), _square(change)))
        is_equal = is_equal and squares[-1][2] == 0 and torch.equal(a, b)
    first, second, apart = (math.sqrt(math.fsum(column)) for column in zip(*squares, strict=True))
    return first, second, apart, is_equal


def _runs(source: TensorSource, parameter: Parameter) -> Iterator[Tensor]:
    """All numbers of a parameter in the model's order, some at a time, as stored; one run at least."""
    count = math.prod(parameter.shape)
    if parameter.pieces or parameter.transposed or not source.has_ranges(parameter.key):
        yield from read_parameter(source, parameter).reshape(-1).split(_RUN)
        return
    row = math.prod(parameter.shape[1:])
    before = parameter.rows[0] * row if parameter.rows else 0
    memory = torch.empty(min(count, _RUN), dtype=source.dtype(parameter.key))
    for start in range(0, max(count, 1), _RUN):
        run = memory[: count - start]
        source.read_into(parameter.key, before + start, run)
        yield run


def _square(numbers: Tensor) -> float:
    return float(torch.dot(numbers, numbers))


def _together(parameters: Iterable[ParameterComparison]) -> GroupComparison:
    weights = [one for one in parameters if one.is_weight]
    return GroupComparison(
        norms=(
            math.hypot(*(one.norms[0] for one in weights)),
            math.hypot(*(one.norms[1] for one in weights)),
        ),
        difference=math.hypot(*(one.difference for one in weights)),
        count=len(weights),
        equal=sum(one.is_equal for one in weights),
    )


def _plain(one: ParameterComparison | GroupComparison) -> dict[str, Any]:
    return {**asdict(one), "size": one.size, "cosine": one.cosine}
