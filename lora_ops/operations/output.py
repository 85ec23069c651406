"""An adapter file written while it is made: layers as they come, the record of them at the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.edited import all_keys, converted, summarise
from ..adapters.formats import as_stored
from ..adapters.layers import Layer, Scaled, innermost
from ..adapters.metadata import HASH_KEYS, Input, Result, room_for
from ..adapters.model import recognised
from ..files import Output, writer_of
from ..files.header import header_room
from ..models.architectures import Architecture
from ..report import LayerReport, Report, Skip
from ..run.job import Outcome
from ..run.output import Sink, Writer
from ..source import TensorSource

# Gives the string map of the file, from its inputs with their hashes and what was written.
Describe = Callable[[Sequence[Input], Result], Mapping[str, str]]
# What is worth saying, from the report.
Notes = Callable[[Report], Iterable[str]]
# A number of more digits than any axis of a layer has.
_ANY_SHAPE = (10**5,) * 3


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A file that is to be written, as far as it is known before.

    Attributes:
        output: The file to write, or to fill in memory.
        format: How its tensors are named.
        sources: The files that it is made from.
        keys: Keys by role, by target, of all layers that it may get.
        extras: Tensors of no layer, which are carried; read when they are asked for.
        architecture: Of the model it is for; None if unknown.
        others: Files that are read, but not recorded: checkpoints that it is measured by.
        force: Whether the output may replace a file.
    """

    output: Output
    format: str
    sources: Sequence[TensorSource]
    keys: Mapping[str, Mapping[str, str]]
    extras: Mapping[str, Tensor]
    architecture: Architecture | None = None
    others: Sequence[TensorSource | None] = ()
    force: bool = False

    @property
    def room(self) -> int:
        """Bytes that the header may take at most."""
        longest = max((len(target.encode()) for target in self.keys), default=0)
        shapes = {key: source.shape(key) for source in self.sources for key in source.keys()}  # noqa: SIM118
        listed = [key for keys in self.keys.values() for key in _likely(keys, shapes)]
        rows = [(key, "BF16", shapes.get(key, _ANY_SHAPE)) for key in (*listed, *self.extras)]
        maps = [source.metadata for source in self.sources]
        told = sum(room_for(one, layers=len(self.keys), longest=longest) for one in maps)
        return header_room(rows, spare=told)

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no layer's, at most."""
        return 8 + self.room + sum(map(self._size, self.extras))

    def _size(self, key: str) -> int:
        """Bytes of an extra, in the first source that has it."""
        held = (source for source in self.sources if key in source.keys())  # noqa: SIM118
        source = next(held)
        return math.prod(source.shape(key)) * source.element(key).bits // 8


def _likely(keys: Mapping[str, str], held: Collection[str]) -> list[str]:
    """The keys that a layer will probably have: those of its file, or of a LoRA."""
    found = [key for key in keys.values() if key in held]
    roles = ("alpha",) if found else ("up", "down", "alpha")
    return list(dict.fromkeys([*found, *(keys[role] for role in roles if role in keys)]))


class AdapterFile(Sink[Layer]):
    """The file of an edited adapter.

    Args:
        draft: What is known of it before.
        describe: Gives the metadata.
        notes: What else is worth saying, from the report.
    """

    hash_keys = HASH_KEYS

    def __init__(self, draft: Draft, describe: Describe, notes: Notes) -> None:
        self.sources, self.others = draft.sources, draft.others
        self.draft = draft
        self._describe, self._notes = describe, notes
        self._reports: list[LayerReport | Skip] = []
        self._alphas: dict[str, float | None] = {}
        self._sizes: dict[str, int] = {}
        self._dtypes: Counter[torch.dtype] = Counter()

    def writer(self) -> AbstractContextManager[Writer]:
        """The file."""
        draft = self.draft
        return writer_of(draft.output, header_room=draft.room, replace=draft.force)

    def tensors(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        """The tensors of a layer; none for a skip."""
        self._reports.append(outcome.report)
        target, layer = outcome.name, outcome.value
        if layer is None:
            return {}
        self._dtypes[layer.dtype] += 1
        plain = innermost(layer)
        if isinstance(plain, Scaled):
            self._alphas[target] = plain.alpha
            self._sizes[target] = plain.factor_rank or plain.rank
        keys = self.draft.keys[target]
        named = ((keys[role], tensor) for role, tensor in layer.tensors().items())
        return {key: as_stored(key, tensor) for key, tensor in named}

    def rest(self) -> Mapping[str, Tensor]:
        """What belongs to no layer."""
        return self.draft.extras

    def report(self) -> Report:
        """The report."""
        report = summarise(self._reports)
        return replace(report, notes=tuple(self._notes(report)))

    def metadata(self, inputs: Sequence[Input], report: Report) -> Mapping[str, str]:
        """The record of the operation, beside what the inputs say of themselves."""
        result = Result(
            title=self.draft.output.stem,
            report=report,
            dtype=self._dtypes.most_common(1)[0][0],
            format=self.draft.format,
            alphas=self._alphas,
            sizes=self._sizes,
            converted=any(converted(report)),
            architecture=self.draft.architecture,
        )
        return self._describe(inputs, result)


def draft_of(
    source: TensorSource,
    adapter: Adapter,
    output: Output,
    force: bool,
    others: Sequence[TensorSource | None] = (),
) -> Draft:
    """Return the draft of a file that holds an edited adapter under the names it has.

    Args:
        source: The adapter file.
        adapter: What is in it.
        output: Where to.
        force: Whether the output may replace a file.
        others: What else is read, and not recorded.
    """
    return Draft(
        output,
        adapter.format,
        [source],
        all_keys(adapter),
        adapter.extras,
        recognised(adapter).certain,
        others,
        force,
    )
