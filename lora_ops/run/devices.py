"""Where to compute: which device, how many jobs side by side, how many layers in one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError

# Share of a GPU's free memory that is used unless a cap is given.
_SHARE = 0.7
# Layers in a batch, whatever the memory: more no longer fill a GPU better.
_MOST = 32


class Batchable(Protocol):
    """What can be computed together with its like: a `Job`."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def alike(self) -> Hashable:
        """What those of one batch have in common."""
        ...

    @property
    def need(self) -> int:
        """Bytes on the device while it is worked on."""
        ...


Item = TypeVar("Item", bound=Batchable)


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and how it is used.

    Attributes:
        device: Where the arithmetic is done.
        workers: Jobs side by side: one uploads or reads while another computes.
        memory: Bytes that all jobs together may take on the device; None: one layer at a time.
    """

    device: torch.device
    workers: int
    memory: int | None = None

    @contextlib.contextmanager
    def scope(self) -> Generator[None, None, None]:
        """A stream of its own for the calling job, so that copies overlap with computation."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.stream(torch.cuda.Stream(self.device)):
            yield

    def batches(self, items: Iterable[Item]) -> list[list[Item]]:
        """Group what is alike, as much as the memory holds, in the order of the first of each.

        Raises:
            ArgumentError: The memory does not hold even one of them.
        """
        if self.memory is None:
            return [[item] for item in items]
        groups: dict[Hashable, list[list[Item]]] = {}
        order: list[list[Item]] = []
        for item in items:
            size = self.workers * item.need
            if size > self.memory:
                raise ArgumentError(
                    f"`{item.name}` needs {size / 1e6:.3g} MB on {self.device}, the cap is "
                    f'{self.memory / 1e6:.3g} MB; raise `memory=` or use `place("cpu")`',
                    target=item.name,
                )
            most = min(_MOST, self.memory // size)
            batches = groups.setdefault(item.alike, [])
            if not batches or len(batches[-1]) >= most:
                batches.append([])
                order.append(batches[-1])
            batches[-1].append(item)
        return order


def place(name: str = "auto", *, memory: int | None = None) -> Placement:
    """Return how to use a device.

    Args:
        name: `auto` (a CUDA device if there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Cap in bytes on what is used there; None: 70 % of what is free on a GPU. On the CPU
            a cap turns batching on.

    Raises:
        ArgumentError: No such device here, or the cap is not positive.
    """
    if memory is not None and memory <= 0:
        raise ArgumentError(f"a memory cap of {memory} bytes: give a positive number")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(_no_device(name)) from None
    if device.type == "cpu":
        return Placement(device, min(4, torch.get_num_threads()), memory)
    if device.type == "cuda" and torch.cuda.is_available():
        if (device.index or 0) >= torch.cuda.device_count():
            raise ArgumentError(_no_device(name))
        free = memory or int(_SHARE * torch.cuda.mem_get_info(device)[0])
        return Placement(device, 2, free)
    if device.type == "mps" and torch.backends.mps.is_available():
        free = memory or int(_SHARE * torch.mps.recommended_max_memory())
        return Placement(device, 2, free)
    raise ArgumentError(_no_device(name))


def upload(tensor: Tensor, placement: Placement) -> Tensor:
    """The tensor on the device; from pinned memory, so that the copy needs no one to wait for it."""
    if placement.device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(placement.device, non_blocking=True)


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, contiguous, by one copy for all: the CPU waits for each.

    Args:
        tensors: One or more, of one dtype, on one device.
    """
    if tensors[0].device.type == "cpu":
        return [tensor.contiguous() for tensor in tensors]
    joined = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _no_device(name: str) -> str:
    here = ["cpu"]
    here += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    return f"device `{name}` is not available; here are: auto, {', '.join(here)}"
