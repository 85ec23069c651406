"""Makers of parts that other processes take up, and in which they die, fail, or say where they are."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit.lora_ops.errors import NonFiniteError
from lorakit.lora_ops.parts.engine import Share
from lorakit.lora_ops.run.devices import Placement
from lorakit.lora_ops.run.workers import Progress


class OddError(Exception):
    """One that cannot be taken up elsewhere."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Doomed:
    """Makes a file for each part; what some of them do besides goes by their names."""

    folder: Path

    def __call__(
        self, share: Share, placement: Placement, progress: Progress | None = None
    ) -> None:
        (name,) = share.names
        begun = self.folder / f"{name}.begun"
        before = begun.read_text().split() if begun.exists() else []
        begun.write_text(" ".join([*before, str(os.getpid())]))
        if progress is not None:
            progress(1, share.cost, name)
        if name.startswith("killed") and len(before) < int(name[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "ends":
            os._exit(7)
        if name == "bad":
            raise NonFiniteError("`bad` holds NaN", target="bad", path="b.safetensors")
        if name == "bug":
            raise OddError(1, 2)
        if name == "prints":
            print("a word")  # noqa: T201
            os.write(1, b"bare words\n")
        told = (os.getpid(), placement.workers, torch.get_num_threads(), os.fspath(Path.cwd()))
        (self.folder / name).write_text(json.dumps(told))
