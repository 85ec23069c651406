"""What flows between the nodes: the host's `LORA_MODEL`, a dict of tensors, with its metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from torch import Tensor

from . import host

if TYPE_CHECKING:
    from ...lora_ops import Described, MemoryFile, Sidecar


class LoraModel(dict[str, Tensor]):
    """An adapter file's content by key, with what the file says of itself.

    The host's own nodes see the dict that they expect; metadata and provenance travel with it.

    Attributes:
        name: Its name in reports: that of the file it came from, or would get.
        metadata: The file's string map.
        sha256: Of the file it was read from; empty once it was edited.
        sidecar: What lies beside that file; None once it was edited.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str = "LoRA",
        metadata: Mapping[str, str] | None = None,
        sha256: str = "",
        sidecar: Sidecar | None = None,
    ) -> None:
        super().__init__(tensors)
        self.name = name
        self.metadata: dict[str, str] = dict(metadata or {})
        self.sha256 = sha256
        self.sidecar = sidecar


class LaterLora(LoraModel):
    """An adapter that is computed when something first asks what is in it.

    For an output that nothing is connected to when the node runs. `values` alone computes nothing:
    the host looks through them, outside of any node, for models that it has to keep.
    """

    def __init__(self, name: str, make: Callable[[], LoraModel]) -> None:
        super().__init__({}, name)
        self._make: Callable[[], LoraModel] | None = make

    def _filled(self) -> LoraModel:
        if self._make is not None:
            made = self._make()
            self._make = None
            dict[str, Tensor].update(self, made)
            self.name, self.metadata, self.sha256 = made.name, made.metadata, made.sha256
        return self

    def __iter__(self) -> Iterator[str]:
        return dict[str, Tensor].__iter__(self._filled())

    def __len__(self) -> int:
        return dict[str, Tensor].__len__(self._filled())

    def __getitem__(self, key: str) -> Tensor:
        return dict[str, Tensor].__getitem__(self._filled(), key)

    def __contains__(self, key: object) -> bool:
        return dict[str, Tensor].__contains__(self._filled(), key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of any dict."""
        return dict[str, Tensor].get(self._filled(), key, default)

    def keys(self) -> Any:
        """As of any dict."""
        return dict[str, Tensor].keys(self._filled())

    def items(self) -> Any:
        """As of any dict."""
        return dict[str, Tensor].items(self._filled())


def as_file(lora: Mapping[str, Tensor]) -> MemoryFile:
    """Return what a socket holds as an opened file, under names of today.

    Args:
        lora: Ours, or the bare dict of another pack's node, on any device.
    """
    from ...lora_ops import MemoryFile
    from ...lora_ops.files import modernised

    tensors = {key: tensor.detach().cpu() for key, tensor in lora.items()}
    if isinstance(lora, LoraModel):
        return MemoryFile(lora.name, tensors, lora.metadata, lora.sha256)
    file = MemoryFile("LoRA", tensors)
    names = modernised(file)
    if names is file:
        return file
    return MemoryFile(file.name, {key: names.tensor(key) for key in names.keys()}, names.metadata)  # noqa: SIM118 - not a mapping


def from_file(file: MemoryFile) -> LoraModel:
    """Return a file in memory as what a socket holds."""
    return LoraModel(file.tensors, file.name, file.metadata, file.sha256)


_HELD: WeakValueDictionary[tuple[str, int, int], LoraModel] = WeakValueDictionary()


def read_once(path: Path) -> LoraModel:
    """Read an adapter file as `read`, unless its content is still in use somewhere.

    A node with many files, of which one strength changed, does not read all of them again.
    """
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    found = _HELD.get(key)
    if found is None:
        found = _HELD[key] = read(path)
    return found


def about(path: Path) -> Mapping[str, str]:
    """What an adapter file says of itself, without reading its numbers.

    Raises:
        LoraOpsError: It is damaged.
    """
    from ...lora_ops import open_source

    with open_source(path) as source:
        return source.metadata


def said_of(lora: Mapping[str, Tensor]) -> Described:
    """Return what an adapter, and what lay beside its file, says of it."""
    from ...lora_ops import described

    if isinstance(lora, LoraModel):
        return described(lora.metadata, lora.sidecar)
    return described({})


def fingerprint(name: str | None) -> str:
    """Return a value that changes with a file of the host's LoRAs, or with what lies beside it.

    Args:
        name: See `host.fingerprint`.
    """
    from ...lora_ops.adapters.metadata.sidecar import sidecar_paths
    from ...lora_ops.files import stamp

    told = host.fingerprint(name, host.LORAS)
    with contextlib.suppress(FileNotFoundError):  # it will be said when the node runs
        if name is not None:
            stamps = map(stamp, sidecar_paths(host.file_path(name, host.LORAS)))
            return f"{told} {[one for one in stamps if one is not None]}"
    return told


def read(path: Path) -> LoraModel:
    """Read an adapter file whole.

    Raises:
        UnknownFormatError: It is no adapter; says what it is.
        NonFiniteError: It holds NaN or infinity: what it is applied to would draw black.
        LoraOpsError: It is damaged.
    """
    from ...lora_ops import UnknownFormatError, describe, open_source, read_sidecar
    from ...lora_ops.run.inputs import hashed

    with open_source(path) as source, hashed([source]) as inputs:
        found, keys = describe(source), source.keys()
        if found.format is None:
            what = "of no kind that is known here" if found.kind == "unknown" else f"a {found.kind}"
            raise UnknownFormatError(f"it is no adapter: it is {what}", path=path)
        tensors = {key: source.tensor(key) for key in keys}
        _check_finite(path, tensors)
        return LoraModel(
            tensors, path.name, source.metadata, inputs()[0].sha256, read_sidecar(path)
        )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from ...lora_ops import NonFiniteError

    # NaN and infinity survive `max`, which is faster than asking every number.
    bad = [
        key
        for key, one in tensors.items()
        if one.is_floating_point() and one.numel() and not isfinite(float(one.abs().max()))
    ]
    if bad:
        raise NonFiniteError(
            f"NaN or infinity in {len(bad)} of {len(tensors)} tensors, the first `{bad[0]}`: the file "
            "is damaged, or its training diverged; use another",
            path=path,
        )
