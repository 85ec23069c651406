"""The checkpoint that an operation writes, each tensor to its place by the job that computes it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...files import FileSource, SafetensorsWriter, beside_weights
from ...files.header import header_room
from ...files.writing.pieces import aligned
from ...report import LayerReport, Rounding, Skip, Weighted
from ...run.inputs import Input, placeholders
from ...run.job import Outcome
from ...run.output import Sink
from ...run.packed import Json, by_name
from .change import BakedLayer
from .gguf_file_plan import GgufPlan
from .output import PlacedWriter, data_size, is_folder, is_index, rows_of, shards_of, writer_for
from .storing import StoredLayer
from .tiles import Planned


class CheckpointFile(Sink[Tensor]):
    """A checkpoint whose tensors are written to their places by the jobs that compute them.

    Args:
        output: Where to.
        checkpoint: What it is made like; it may have shards.
        tensors: What is written.
        shard_size: Most bytes of data in a shard, where the checkpoint is no index itself.
        force: Whether the output may replace files.
        gguf: How it lies in a GGUF file; None in any other.

    Attributes:
        file: Once it is entered.
        reports: What was said of all tensors so far.
    """

    file: PlacedWriter
    classes = by_name(LayerReport, Skip, Rounding, Weighted, BakedLayer, StoredLayer)

    def __init__(
        self,
        output: Path,
        checkpoint: FileSource,
        tensors: Iterable[Planned],
        *,
        shard_size: int,
        force: bool,
        gguf: GgufPlan | None = None,
    ) -> None:
        self._output, self._checkpoint, self._tensors = output, checkpoint, list(tensors)
        self._by_key = {one.key: one for one in self._tensors}
        self._shard_size, self._force = shard_size, force
        self._layout = gguf.layout if gguf else None
        self.reports: list[LayerReport | Skip] = []

    @abstractmethod
    def longest(self, inputs: Sequence[Input]) -> Mapping[str, str]:
        """Return the string map at the greatest length that it can become.

        Args:
            inputs: The record of `sources`, with hashes in place of theirs; see `placeholders`.
        """

    def asked(self) -> Mapping[str, str]:
        """The string map, at the greatest length that it can become."""
        return self.longest(placeholders(self.sources))

    def size_at_most(self) -> int:
        """Bytes of all that is written, at most: from headers alone."""
        longest = self.asked()
        if self._layout is not None:
            return self._layout.size(longest)
        rows = list(rows_of(self._tensors))
        data = data_size(rows)
        header = header_room([(key, one.name, shape) for key, one, shape in rows], longest)
        room = 8 + aligned(header)
        if is_folder(self._checkpoint):
            folder = Path(self._checkpoint.name)
            others = sum(
                (folder / one).stat().st_size for one in beside_weights(self._checkpoint)[0]
            )
            return data + room * len(self._checkpoint.paths) + others
        if not is_index(self._output):
            return data + room
        index = len(json.dumps({key: self._output.name for key, _, _ in rows}))
        shards = shards_of(self._checkpoint, self._tensors, self._shard_size)
        return data + room * len(shards) + 2 * index + 1024

    def writer(self) -> PlacedWriter:
        """The file, or the files."""
        self.file = writer_for(
            self._output,
            self._checkpoint,
            self._tensors,
            self.asked(),
            shard_size=self._shard_size,
            replace=self._force,
            layout=self._layout,
        )
        return self.file

    def tensors(self, outcome: Outcome[Tensor]) -> dict[str, Tensor]:
        """Nothing: each has been written when it is computed."""
        self.reports.extend(outcome.reports)
        return {}

    def part(self, path: Path, names: Sequence[str]) -> PlacedWriter:
        """The file of some tensors, with a place for each."""
        rows = list(rows_of(self._by_key[name] for name in names))
        room = header_room([(key, one.name, shape) for key, one, shape in rows])
        self.file = SafetensorsWriter(path, header_room=room, hashed=False)
        self.file.lay_out([(key, one.dtype, shape) for key, one, shape in rows])
        return self.file

    def recall(self, name: str, told: Json, part: FileSource) -> Outcome[Tensor]:
        """Copy a tensor from its part to its place, and return what is to be said of it."""
        for key, _, _ in rows_of([self._by_key[name]]):
            self.file.copy(key, part, key)
        return super().recall(name, told, part)
