"""The pass before the merge: what a method makes of all weights of a step, before it treats one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...models.architectures import Parameter
from ...models.differences import read_parameter
from ...run.devices import Placement, place
from ...run.job import Job, Work
from ...run.scratch import SCRATCH
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..methods.choosing import Chosen
from ..weights.terms import Stored, matrix
from .opening import Held, Node, Opening

if TYPE_CHECKING:
    from .combined import Combination


@dataclass(frozen=True, slots=True)
class _Entry:
    parameter: Parameter
    base: TensorSource
    node: Combination


class Survey:
    """What a step asks of all of its weights, once: in a pass of its own, or when it is first needed.

    Args:
        chosen: A method with a survey.
    """

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen
        self._entries: dict[str, _Entry] = {}
        self._found: Tensor | None = None
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    @property
    def nodes(self) -> list[Node]:
        """The step at each of its weights."""
        return [one.node for one in self._entries.values()]

    def add(self, parameter: Parameter, base: TensorSource, node: Combination) -> None:
        """Have a weight looked at.

        Args:
            parameter: Where it lies in the base.
            base: The checkpoint.
            node: The step there.
        """
        self._entries[parameter.name] = _Entry(parameter, base, node)

    def found(self, progress: Progress | None = None) -> Tensor:
        """What the method made of the whole model; read now, if it is not known.

        Args:
            progress: Called after each weight.
        """
        with self._lock:
            survey = self._chosen.survey
            if self._found is None and survey is not None:
                jobs = [Job(name, name, _size(one)) for name, one in self._entries.items()]
                values = stream(Work(jobs, self._seen), place("cpu"), ahead=3, progress=progress)
                self._found = survey(torch.cat(list(values) or [torch.zeros(0)]))
        if self._found is None:
            raise TypeError(f"`{self._chosen.name}` has no survey")
        return self._found

    def _seen(self, names: Sequence[str], _: Placement) -> list[Tensor]:
        return [_values(self._entries[name]) for name in names]


def _size(one: _Entry) -> int:
    return torch.Size(one.parameter.shape).numel()


def _values(one: _Entry) -> Tensor:
    parameter, dtype = one.parameter, torch.float32
    with SCRATCH.frame():
        if parameter.pieces or parameter.transposed:
            weight = Held(matrix(read_parameter(one.base, parameter)))
            at = Opening(parameter, weight, dtype, one.base, as_model=True)
        else:
            stored = Stored(one.base, parameter.key, dtype, parameter.rows)
            at = Opening(parameter, stored, dtype, one.base)
        return one.node.work(at).values()
