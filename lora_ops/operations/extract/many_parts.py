"""Many tuned checkpoints, shared among runs, or taken up again: which of their LoRAs are there, of this plan.

A LoRA gets its name when it is whole. So of one that was begun by this plan, it is enough to know what had its name
before: what has it since is the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...errors import LoraOpsError
from ...files import make_folder, open_source, read_errors, write_whole
from ...parts.document import input_files
from ...parts.joining import clear
from ...parts.manifest import parts_folder
from ...parts.whole import Division
from ...run.inputs import paths_of
from ...source import TensorSource
from ..peft_folder import CONFIG

#: So many are worked on together: what a run that is stopped has not finished of them is lost.
TOGETHER = 8


class Ledger:
    """What was begun, a small file for each in a folder beside that of the outputs.

    Args:
        folder: Of the outputs.
        outputs: That of each tuned checkpoint.
        read: What else they are made from.
        division: What was asked for.
    """

    def __init__(
        self,
        folder: Path,
        outputs: Mapping[Path, Path],
        read: Sequence[TensorSource | None],
        division: Division,
    ) -> None:
        self._folder, self._outputs = parts_folder(folder), outputs
        asked = {name: one for name, one in division.options.items() if name != "tuned"}
        self._asked = [asked, division.version, str(input_files(paths_of(*read)))]

    def is_done(self, tuned: Path) -> bool:
        """Whether the LoRA of a tuned checkpoint is there."""
        try:
            told = cast("dict[str, Any]", json.loads(self._entry(tuned).read_bytes()))
            was, plan = told["before"], told["plan"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        now = _state(self._outputs[tuned])
        return now not in (None, was) and plan == self._plan(tuned) != ""

    def begin(self, tuned: Path) -> None:
        """Remember what has the name of a LoRA before it is made.

        Raises:
            WriteError: The disk is full, or the like.
        """
        make_folder(self._folder)
        told = {"plan": self._plan(tuned), "before": _state(self._outputs[tuned])}
        write_whole(self._entry(tuned), json.dumps(told).encode(), replace=True)

    def close(self) -> None:
        """Remove the folder, where all are done."""
        if all(map(self.is_done, self._outputs)):
            clear(self._folder)

    def _entry(self, tuned: Path) -> Path:
        return self._folder / f"{self._outputs[tuned].name}.json"

    def _plan(self, tuned: Path) -> str:
        try:
            with open_source(tuned) as source:
                files = input_files(source.paths)
        except LoraOpsError:  # which will be told when it is to be made
            return ""
        text = json.dumps([*self._asked, str(files)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _state(output: Path) -> list[int] | None:
    """What tells one file from another of its name; None where there is none."""
    path = output / CONFIG if output.is_dir() else output
    if not path.exists():
        return None
    with read_errors(path):
        found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]
