"""A device without a device: it computes on the CPU, and refuses what a GPU refuses.

Its tensors say that they lie on `meta` and hold a tensor of the CPU. While `Double.mode()` is active, an
operation with a tensor of each side fails as it does on CUDA (single numbers of the CPU excepted), data
comes across by `.to()` and `copy_` alone, and what makes the CPU wait for the device is counted.

`LORAKIT_TEST_DEVICE=cuda` puts a real device in its place; nothing is counted there.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from lorakit.lora_ops.run.devices import Placement, place

DEVICE = torch.device("meta")
#: A real device to test on; empty for the double.
REAL = os.environ.get("LORAKIT_TEST_DEVICE", "")

_ATEN = torch.ops.aten
# Results whose size or value the CPU has to know: it waits for all that was asked of the device.
_WAITS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.nonzero.default,
    _ATEN.equal.default,
    _ATEN.masked_select.default,
    _ATEN.is_nonzero.default,
}
_EIGEN = {_ATEN._linalg_eigh.default, _ATEN._linalg_svd.default, _ATEN._linalg_eigvals.default}


class OnDevice(Tensor):
    """A tensor of the double; `held` has its numbers."""

    held: Tensor
    owner: Double

    @staticmethod
    def __new__(cls, held: Tensor, double: Double) -> OnDevice:
        """A wrapper of the same shape, strides and dtype, with another device."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        return cast("OnDevice", made)

    def __init__(self, held: Tensor, double: Double) -> None:
        self.held, self.owner = held, double
        double.allocated(self)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse what is done outside of the mode: nothing would be counted."""
        raise RuntimeError(f"{func} on a tensor of the double, in a thread where it is not active")

    @property
    def is_meta(self) -> bool:
        """It has numbers, whatever its device is called."""
        return False

    def tolist(self) -> Any:
        """All numbers, for which the CPU waits."""
        self.owner.wait("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as a GPU's tensor does."""
        raise TypeError("can't convert a tensor of the double to numpy; copy it to the CPU first")

    def pin_memory(self, device: Any = None) -> Tensor:
        """Refuse, as a GPU's tensor does."""
        raise RuntimeError("cannot pin a tensor of the double: only those of the CPU can be pinned")


@dataclass(eq=False)
class Double:
    """The device, and what was asked of it.

    Attributes:
        counts: `upload`, `download` (copies), `wait` (the CPU waits), `eigen` (eigenproblems and SVDs, of
            a stack as many as it has, for a GPU solves them one after the other).
        operations: How often each operation was called there.
        peak: The most bytes that its tensors took at one time, from whatever threads.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    operations: Counter[str] = field(default_factory=Counter[str])
    peak: int = 0
    _uploads: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    _alive: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def allocated(self, tensor: OnDevice) -> None:
        """Count the memory of a tensor until none that lies in it is there any more."""
        storage = tensor.held.untyped_storage()
        block = (storage.data_ptr(), storage.nbytes())
        with self._lock:
            self._alive[block] += 1
            self.peak = max(self.peak, sum(size for _, size in self._alive))
        weakref.finalize(tensor, self._freed, block)

    def _freed(self, block: tuple[int, int]) -> None:
        with self._lock:
            self._alive[block] -= 1
            if not self._alive[block]:
                del self._alive[block]

    def wait(self, reason: str) -> None:
        """Count that the CPU waits; all uploads have then arrived.

        Raises:
            RuntimeError: The memory that an upload reads from has other numbers than it had then.
        """
        self.counts["wait"] += 1
        self.operations[f"wait: {reason}"] += 1
        uploads, self._uploads = self._uploads, []
        for source, sent in uploads:
            if not torch.equal(_bytes(source), sent):
                raise RuntimeError("memory was written to before its upload had ended")

    @contextlib.contextmanager
    def mode(self) -> Generator[None, None, None]:
        """Make the device work, in the calling thread."""
        with _Mode(self):
            yield

    def upload(self, tensor: Tensor, *, non_blocking: bool = False) -> OnDevice:
        """Copy to the device."""
        self.counts["upload"] += 1
        sent = tensor.clone(memory_format=torch.preserve_format)
        if non_blocking:
            self._uploads.append((tensor, _bytes(tensor).clone()))
        return OnDevice(sent, self)

    def download(self, tensor: OnDevice, *, non_blocking: bool = False) -> Tensor:
        """Copy to the CPU, which waits."""
        if non_blocking:
            raise RuntimeError(
                "a copy to the CPU that nothing waits for is read before it is there"
            )
        self.counts["download"] += 1
        self.wait("download")
        return tensor.held.clone(memory_format=torch.preserve_format)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do one operation, on either side."""
        values, spec = tree_flatten((args, dict(kwargs)))
        here = [one for one in values if isinstance(one, OnDevice)]
        if func is _ATEN._to_copy.default:
            return self._moved(args[0], dict(kwargs))
        if func is _ATEN.copy_.default and here:
            return self._copied(*args, **kwargs)
        makes = "device" in kwargs and _is_ours(kwargs["device"])
        if not here and not makes:
            return func(*args, **kwargs)
        if "device" in kwargs and not makes and kwargs["device"] is not None:
            return func(*tree_unflatten(self._held(values), spec)[0], **kwargs)  # `new_*` elsewhere
        others = [
            one for one in values if isinstance(one, Tensor) and not isinstance(one, OnDevice)
        ]
        if here and any(one.ndim for one in others) and not _may_differ(func):
            shapes = [tuple(one.shape) for one in others]
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} has those of the CPU {shapes}"
            )
        self._counted(func, args)
        plain, named = tree_unflatten(self._held(values), spec)
        if "device" in named:
            named["device"] = torch.device("cpu")
        named.pop("pin_memory", None)
        return self._wrapped(func(*plain, **named), values)

    def _counted(self, func: Any, args: Sequence[Any]) -> None:
        self.operations[str(func)] += 1
        indexed = func in (_ATEN.index.Tensor, _ATEN.index_put_.default) and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if func in _WAITS or indexed:
            self.wait(str(func))
        if func in _EIGEN:
            self.counts["eigen"] += args[0].shape[:-2].numel()

    def _moved(self, tensor: Tensor, options: dict[str, Any]) -> Tensor:
        device = options.pop("device", None)
        non_blocking = options.pop("non_blocking", False)
        options.pop("pin_memory", None)
        if isinstance(tensor, OnDevice):
            if device is None or _is_ours(device):
                self.operations["_to_copy"] += 1
                return OnDevice(_ATEN._to_copy.default(tensor.held, **options), self)
            moved = self.download(tensor, non_blocking=non_blocking)
            return moved.to(options["dtype"]) if options.get("dtype") else moved
        if device is not None and _is_ours(device):
            moved = self.upload(tensor, non_blocking=non_blocking)
            if options.get("dtype"):
                moved.held = moved.held.to(options["dtype"])
                return OnDevice(moved.held, self)
            return moved
        if device is not None:
            options["device"] = device
        return _ATEN._to_copy.default(tensor, **options)

    def _copied(self, into: Tensor, tensor: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(into, OnDevice):
            if not isinstance(tensor, OnDevice):
                self.counts["upload"] += 1
            into.held.copy_(tensor.held if isinstance(tensor, OnDevice) else tensor)
            return into
        return into.copy_(self.download(cast("OnDevice", tensor), non_blocking=non_blocking))

    @staticmethod
    def _held(values: Sequence[Any]) -> list[Any]:
        return [one.held if isinstance(one, OnDevice) else one for one in values]

    def _wrapped(self, made: Any, values: Sequence[Any]) -> Any:
        """Results on the device; what was written into is itself."""
        known = {id(one.held): one for one in values if isinstance(one, OnDevice)}

        def wrap(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return known[id(one)] if id(one) in known else OnDevice(one, self)

        flat, spec = tree_flatten(made)
        return tree_unflatten([wrap(one) for one in flat], spec)


class _Mode(TorchDispatchMode):
    def __init__(self, double: Double) -> None:
        super().__init__()
        self._double = double

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._double.call(func, args, kwargs or {})


@dataclass(frozen=True, slots=True)
class DoublePlacement(Placement):
    """Jobs on the double: what `place("cuda")` gives where there is one."""

    double: Double = field(default_factory=Double)

    @contextlib.contextmanager
    def scope(self) -> Generator[None, None, None]:
        """The double, active in the thread of the job."""
        with self.double.mode():
            yield


def placed(memory: int = 1 << 30) -> Placement:
    """Return the device to test on as a placement; batches as large as `memory` bytes hold."""
    return place(REAL, memory=memory) if REAL else DoublePlacement(DEVICE, 1, memory)


def counts(where: Placement) -> Counter[str]:
    """What was asked of a double; nothing is known of a real device."""
    return where.double.counts if isinstance(where, DoublePlacement) else Counter()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _may_differ(func: Any) -> bool:
    """Operations that CUDA lets have indices on the CPU."""
    return func in (_ATEN.index.Tensor, _ATEN.index_put_.default)
