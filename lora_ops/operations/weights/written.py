"""One tensor of a checkpoint into its places: of a file, or of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ...files import FileSource
from ...report import LayerReport, Skip
from ...run.job import Job, Outcome
from .output import rows_of
from .step import Put
from .tiles import Planned, compute


class Places(Protocol):
    """What has a place for every tensor that is written."""

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """Fill part of a place; see `SafetensorsWriter.write_at`."""
        ...

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """Fill a place with the bytes of a file's tensor."""
        ...


def tensor_jobs(tensors: Mapping[str, Planned]) -> list[Job[str]]:
    """Return the jobs of a checkpoint that is written: a tensor each, in its order.

    Args:
        tensors: Of the result, by key.
    """
    return [Job(key, key, prod(one.shape), shape=one.shape) for key, one in tensors.items()]


def write_tensor(
    planned: Planned,
    file: Places,
    calculate: Callable[[Planned, Put], tuple[LayerReport | Skip, ...]] = compute,
) -> Outcome[Tensor]:
    """Compute a tensor into its place in a file; or have the system copy it, where nothing changes.

    Args:
        planned: Which.
        file: Where it has a place.
        calculate: How it is computed.

    Returns:
        What is to be said of it; there is nothing left to write.
    """
    if planned.is_copy and isinstance(planned.source, FileSource):
        file.copy(planned.key, planned.source, planned.own)
        return Outcome(planned.key, None)

    # Codes may be called otherwise than the weight.
    place = planned.key if planned.storing is None else next(planned.storing.rows())[0]

    def put(start: int, piece: Tensor, /, beside: str = "") -> None:
        file.write_at(beside or place, start, piece)

    reports = _copy_stored(planned, file, put)
    return Outcome(
        planned.key, None, calculate(planned, put) if reports is None else tuple(reports)
    )


def _copy_stored(planned: Planned, file: Places, put: Put) -> Sequence[LayerReport] | None:
    """Copy a weight that is to be stored as it is already, byte for byte.

    Returns:
        What is to be said of it; None where it cannot be copied.
    """
    storing = planned.storing
    if storing is None or planned.steps:
        return None
    held = storing.held(planned.source, planned.own)
    if held is None:
        return None
    for key, place in held.items():
        if isinstance(place, Tensor):
            put(0, place, beside=key)
        else:
            file.copy(key, *place)
    return storing.of_copy(planned.source, planned.own)


def put_unchanged(planned: Planned, put: Put) -> None:
    """Hand on a tensor as its source has it, whatever its steps: byte for byte, where it is stored so.

    Args:
        planned: Which.
        put: Takes the pieces.

    Raises:
        NonFiniteError: See `compute`.
    """
    held = planned.storing and planned.storing.held(planned.source, planned.own)
    if not held:
        compute(replace(planned, steps=(), seed=None), put)
        return
    for key, place in held.items():
        put(0, place if isinstance(place, Tensor) else place[0].tensor(place[1]), beside=key)


class _Memory:
    """Places in memory, for everything that a tensor is written as."""

    def __init__(self, planned: Planned) -> None:
        self.tensors = {
            key: torch.empty(shape, dtype=one.dtype) for key, one, shape in rows_of([planned])
        }

    def write_at(self, key: str, start: int, piece: Tensor) -> None:
        """See `Places`."""
        self.tensors[key].view(-1)[start : start + piece.numel()] = piece.reshape(-1)

    def copy(self, key: str, source: FileSource, own: str) -> None:
        """See `Places`."""
        self.tensors[key].view(-1).copy_(source.tensor(own).reshape(-1))


def written(
    planned: Planned, calculate: Callable[[Planned, Put], tuple[LayerReport | Skip, ...]] = compute
) -> dict[str, Tensor]:
    """Compute what a file holds of a tensor, by key: of one stored with scales, all that it is.

    Args:
        planned: Which.
        calculate: How it is computed.
    """
    memory = _Memory(planned)
    write_tensor(planned, memory, calculate)
    return memory.tensors
