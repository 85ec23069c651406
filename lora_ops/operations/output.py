"""An adapter file written while it is made: layers as they come, the record of them at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.edited import Edited, all_keys, converted, summarise
from ..adapters.formats import as_stored
from ..adapters.layers import Scaled, innermost
from ..adapters.metadata import HASH_KEYS, Input, Result, room_for
from ..adapters.model import recognised
from ..files import Output, writer_of
from ..files.header import render_header
from ..models.architectures import Architecture
from ..report import Report
from ..run.inputs import hashed
from ..run.output import finished
from ..source import TensorSource

# Gives the string map of the file, from its inputs with their hashes and what was written.
Describe = Callable[[Sequence[Input], Result], Mapping[str, str]]
# A number of more digits than any offset in a file, or axis of a layer, has.
_ANY_OFFSET = 10**11
_ANY_SHAPE = (10**5,) * 3


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A file that is to be written, as far as it is known before.

    Attributes:
        output: The file to write, or to fill in memory.
        format: How its tensors are named.
        sources: The files that it is made from.
        keys: Keys by role, by target, of all layers that it may get.
        extras: Tensors of no layer, which are carried.
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
        rows = [
            (key, "BF16", shapes.get(key, _ANY_SHAPE), _ANY_OFFSET)
            for key in (*listed, *self.extras)
        ]
        maps = [source.metadata for source in self.sources]
        return len(render_header(rows, {})) + sum(
            room_for(one, layers=len(self.keys), longest=longest) for one in maps
        )

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no layer's, at most."""
        return 8 + self.room + sum(t.numel() * t.element_size() for t in self.extras.values())


def _likely(keys: Mapping[str, str], held: Collection[str]) -> list[str]:
    """The keys that a layer will probably have: those of its file, or of a LoRA."""
    found = [key for key in keys.values() if key in held]
    roles = ("alpha",) if found else ("up", "down", "alpha")
    return list(dict.fromkeys([*found, *(keys[role] for role in roles if role in keys)]))


def write_adapter(
    draft: Draft,
    results: Iterable[Edited],
    describe: Describe,
    *,
    started: float,
    notes: Callable[[Report], Iterable[str]] = lambda _: (),
) -> Report:
    """Write layers as they come, and return the report of what was written.

    Args:
        draft: The file.
        results: What became of each layer.
        describe: Gives the metadata.
        started: When the work began, by `time.perf_counter`, reading included.
        notes: What else is worth saying, from the report.

    Raises:
        MismatchError: No layer is left; no file is written.
        FormatError: An input changed while it was read; no file is written.
        WriteError: The disk is full, or the like.
    """
    known: list[Edited] = []
    alphas: dict[str, float | None] = {}
    sizes: dict[str, int] = {}
    dtypes: Counter[torch.dtype] = Counter()
    with (
        hashed(draft.sources, draft.others) as inputs,
        writer_of(draft.output, header_room=draft.room, replace=draft.force) as writer,
    ):
        for result in results:
            known.append(replace(result, layer=None))
            if result.layer is None:
                continue
            for role, tensor in result.layer.tensors().items():
                key = draft.keys[result.target][role]
                writer.write(key, as_stored(key, tensor))
            dtypes[result.layer.dtype] += 1
            plain = innermost(result.layer)
            if isinstance(plain, Scaled):
                alphas[result.target] = plain.alpha
                sizes[result.target] = plain.factor_rank or plain.rank
        report = summarise(one.report for one in known)
        report = replace(report, notes=tuple(notes(report)))
        for key, tensor in draft.extras.items():
            writer.write(key, tensor)
        result = Result(
            title=draft.output.stem,
            report=report,
            dtype=dtypes.most_common(1)[0][0],
            format=draft.format,
            alphas=alphas,
            sizes=sizes,
            converted=any(converted(report)),
            architecture=draft.architecture,
        )
        read = inputs()
        written = writer.finish(describe(read, result), hash_keys=HASH_KEYS)
    return finished(report, read, started, written.size)


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
