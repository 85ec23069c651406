"""The engine of a cluster: parts as tasks of Ray, which gives each the cores, the memory and the GPU that it takes.

All hosts see the files under the same names, and have the same lorakit. The work itself is sent once, a task
says which part it is. What a lost worker or host was at is begun again, elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, LoraOpsError
from .engine import ATTEMPTS, Make, Share, Tell, pickled
from .processes import ROOT, Hands, hands_for

# Bytes that a task takes beside its weights, and for each number of these.
_MEMORY, _EACH = 1_500_000_000, 4
# Seconds in which an address has to answer; and in which tasks end that are to end.
_AT_MOST = 3
# What a client of HTTP/2 begins with, which Ray speaks: its greeting, and settings without any.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class RayTasks:
    """Makes parts in the tasks of a Ray cluster; lorakit[ray] installs it.

    Where Ray has been begun in this process, that is used.

    Attributes:
        address: Of the cluster, as `ray.init` takes it: HOST:PORT, ray://HOST:PORT; empty: that of this
            machine, which is begun for the while if there is none.
        device: auto (GPUs, if the cluster has any), cpu, cuda (each task has a GPU of its own) or mps.
        memory: Cap in bytes on what a task uses of its device; None: see `place`.
    """

    address: str = ""
    device: str = "auto"
    memory: int | None = None

    def __call__(self, shares: Sequence[Share], make: Make, tell: Tell) -> None:
        """Make all of them; see `Engine`.

        Raises:
            ArgumentError: Ray is not installed, or not there; a host has another lorakit; or the
                cluster has no such device.
        """
        if not shares:
            return
        ray = _imported()
        work = pickled(make)
        with _joined(ray, self.address) as is_ours:
            nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
            device = self._device(nodes)
            _make_all(ray, device, self.memory, nodes, shares, work, tell, cancels=not is_ours)

    def _device(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """Which kind it is to be, of those that there are."""
        has_gpus = any(one.get("GPU") for one in nodes)
        if self.device == "auto":
            return "cuda" if has_gpus else "cpu"
        if self.device == "cuda" and not has_gpus:
            raise ArgumentError("no host of the Ray cluster has a GPU; compute on `cpu`")
        return self.device


def _make_all(
    ray: Any,
    device: str,
    memory: int | None,
    nodes: Sequence[Mapping[str, float]],
    shares: Sequence[Share],
    work: bytes,
    tell: Tell,
    *,
    cancels: bool,
) -> None:
    """Have tasks make all parts; those of workers that are lost once more."""
    # On the CPU a task is one job, with as many threads as each has without Ray; see `Processes`.
    threads = hands_for("cpu", None, workers=1).threads
    cores = _at_most(nodes, "CPU", threads)
    hands = Hands(device, memory, workers=1, threads=int(cores))
    sent, home, software = ray.put(work), os.fspath(Path.cwd()), _software()
    task = ray.remote(_make)
    running: dict[Any, Share] = {}
    lost: Counter[Share] = Counter()

    def begin(share: Share) -> None:
        options = {
            "num_cpus": cores,
            "num_gpus": 1 if device == "cuda" else 0,
            "memory": _at_most(nodes, "memory", _MEMORY + _EACH * share.cost),
            "name": f"lorakit {share.title}",
            "max_retries": 0,  # they are counted here: Ray's own do not end where memory runs out
        }
        running[task.options(**options).remote(sent, share, hands, home, software)] = share

    try:
        for share in shares:
            begin(share)
        while running:
            (ready, *_), _ = ray.wait(list(running))
            share = running.pop(ready)
            try:
                error = ray.get(ready)
            except ray.exceptions.RayTaskError as failed:
                if isinstance(failed.cause, ImportError):
                    raise ArgumentError(
                        f"a host of the Ray cluster lacks something: {failed.cause}; install the same lorakit on all"
                    ) from failed
                raise
            except ray.exceptions.RayError as failed:
                lost[share] += 1
                if lost[share] == ATTEMPTS:
                    why = str(failed).strip().partition("\n")[0].rstrip(".")
                    raise share.given_up(f"Ray says: {why}") from failed
                begin(share)
                continue
            if error is not None:
                raise error
            tell(share, share.cost, share.names[-1])
    finally:
        # A connection of our own takes its tasks along. Where Ray 2.60 is told to cancel one that is just
        # ending, it may abort this process instead.
        if cancels:
            _end(ray, list(running))


def _end(ray: Any, tasks: Sequence[Any]) -> None:
    """Cancel tasks, and wait a little until nobody works on them."""
    if not tasks:
        return
    with contextlib.suppress(ray.exceptions.RayError):
        for one in tasks:
            ray.cancel(one, force=True)
        ray.wait(list(tasks), num_returns=len(tasks), timeout=_AT_MOST)


def _make(
    work: bytes, share: Share, hands: Hands, home: str, software: Mapping[str, str]
) -> LoraOpsError | None:
    """Make a part, in a task; the error, where it cannot be made."""
    try:
        _go_to(home)
        here = _software()
        for name in software:
            if here[name] != software[name]:
                raise ArgumentError(
                    f"{platform.node()} has {name} {here[name]}, not {software[name]}; install the same on all hosts"
                )
        make: Make = pickle.loads(work)  # noqa: S301  from the process whose task this is
        make(share, hands.placement())
    except LoraOpsError as error:
        return error
    return None


def _go_to(home: str) -> None:
    """Names of files are as they were given, from the folder in which they were."""
    try:
        os.chdir(home)
    except OSError as error:
        raise ArgumentError(
            f"{platform.node()} has no folder `{home}`; all hosts have to see the files under the same names"
        ) from error


def _software() -> dict[str, str]:
    """What decides of the bytes that come out, beside the machine."""
    version: str = importlib.import_module(f"{ROOT}.version").__version__
    return {"lorakit": version, "torch": torch.__version__.partition("+")[0]}


def _at_most(nodes: Sequence[Mapping[str, float]], what: str, wanted: float) -> float:
    """Of what is wanted as much as one host has: a task that wants more would wait for ever."""
    return min(wanted, max((one.get(what, 0.0) for one in nodes), default=0.0) or wanted)


def _imported() -> Any:
    """Ray."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ArgumentError("Ray is not installed; `pip install lorakit[ray]`") from error


@contextlib.contextmanager
def _joined(ray: Any, address: str) -> Generator[bool, None, None]:
    """Be part of the cluster until the end of the `with` statement; yield whether that is what began it."""
    if ray.is_initialized():
        yield False
        return
    if address not in ("", "auto", "local"):
        _check(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _same_signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise ArgumentError(f"the Ray cluster {address} cannot be joined: {why}") from error
    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of workers that were lost
        try:
            yield True
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _same_signals() -> Generator[None, None, None]:
    """What SIGTERM does is not for Ray to say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(address: str) -> None:
    """See whether Ray answers; it would look itself for two minutes.

    Raises:
        ArgumentError: It does not.
    """
    host, _, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ArgumentError(f"`{address}` is no address of Ray; give HOST:PORT, as 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _AT_MOST) as connection:
            connection.sendall(_HELLO)
            # Settings are the answer; where all is encrypted there is none to this.
            is_ray = os.environ.get("RAY_USE_TLS") == "1" or connection.recv(4)[3:] == b"\x04"
    except OSError as error:
        why = error.strerror or f"no answer within {_AT_MOST} s"
        raise ArgumentError(f"no Ray answers at {address}: {why}; is it running?") from error
    if not is_ray:
        raise ArgumentError(f"no Ray answers at {address}, but something else")
