"""Another process: work is pickled into it, computed there, and its results are pickled back."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorakit.lora_ops.files import FileSource
from lorakit.lora_ops.models.architectures import Parameter
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.run.job import Work
from lorakit.lora_ops.run.stream import stream
from lorakit.lora_ops.source import TensorSource


class ByPath(TensorSource):
    """A file that another process opens again: nothing but its path is pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._file = safe_open(path, "pt")
        self.metadata = self._file.metadata() or {}

    def __reduce__(self) -> tuple[type[ByPath], tuple[Path]]:
        return ByPath, (self.path,)

    def keys(self) -> Sequence[str]:
        return list(self._file.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype:
        return self._file.get_tensor(key).dtype

    def tensor(self, key: str) -> Tensor:
        return self._file.get_tensor(key)


class Elsewhere:
    """A process that shares nothing with this one.

    Attributes:
        done: How many jobs were done there.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self.done = 0

    def results(self, work: Work[Any, Any]) -> list[Any]:
        """All results of some work that is done there."""
        self.done += len(work.jobs)
        return pickle.loads(self._pool.submit(_computed, pickle.dumps(work)).result(timeout=120))

    def call(self, function: Callable[[Any], Any], thing: object) -> Any:
        """What a function of this module gives there for a thing that is pickled."""
        return self._pool.submit(_called, function, pickle.dumps(thing)).result(timeout=120)

    def stream(self, work: Work[Any, Any], *_: object, **__: object) -> Iterator[Any]:
        """What stands in for `stream` here."""
        yield from self.results(work)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Start a process, and end it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield Elsewhere(pool)


def read_all(sources: Mapping[str, FileSource]) -> dict[str, dict[str, Tensor]]:
    """Every tensor of every source, from another folder than that of relative paths."""
    os.chdir("/")
    return {
        name: {key: one.tensor(key) for key in list(one.keys())} for name, one in sources.items()
    }


def read_natively(
    given: tuple[TensorSource, Mapping[str, Parameter]],
) -> dict[str, Tensor]:
    """Every parameter by its native name."""
    source, found = given
    return {name: read_parameter(source, one) for name, one in found.items()}


def _called(function: Callable[[Any], Any], thing: bytes) -> Any:
    return function(pickle.loads(thing))


def _computed(pickled: bytes) -> bytes:
    return pickle.dumps(list(stream(pickle.loads(pickled))))
