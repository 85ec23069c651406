"""Metadata of an adapter made from several: what they agree on, and the tables of their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any, cast

from .common import Operation, Result, Source, as_json, carried, from_json, record, sources_entry
from .edited import completed
from .kohya import model_entries, modelspec_entries

_MOST = 2**53  # a count beyond it is no count: JSON's numbers are not exact there
# The sum was not trained, so it has no date.
_DROPPED = ("modelspec.date", "modelspec.merged_from")


def joined_metadata(
    sources: Sequence[Source], operation: Operation, result: Result
) -> dict[str, str]:
    """Return the string map of a sum of adapters; `HASH_KEYS` are left to the writer.

    An entry stays if all inputs that have it say the same. Tables of tags are added up, lists of
    data sets and of tags are joined; one that cannot be read is left out. The inputs, each with its
    strength, hash and history, are in `lorakit.sources`, their names in `modelspec.merged_from`.

    Args:
        sources: The inputs.
        operation: What was done.
        result: What was written; see `edited_metadata`.
    """
    found = _agreed(sources)
    for key, join in _JOINS.items():
        texts = [source.metadata[key] for source in sources if key in source.metadata]
        joined = join(texts)
        found.pop(key, None)
        if joined:
            found[key] = joined
    if result.format == "kohya":
        found = model_entries(result.architecture) | found
    found = modelspec_entries(result.architecture, result.title) | found
    found["modelspec.title"] = result.title
    # kohya's scripts join the names with commas, too.
    found["modelspec.merged_from"] = ", ".join(PurePath(s.file.name).stem for s in sources)
    found = completed(found, sources, operation, result)
    return found | record(operation) | sources_entry(sources, with_history=True)


def _agreed(sources: Sequence[Source]) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for source in sources:
        for key, value in carried(source.metadata).items():
            values.setdefault(key, set()).add(value)
    return {
        key: next(iter(known))
        for key, known in values.items()
        if len(known) == 1 and key not in _DROPPED
    }


def _tag_counts(texts: Iterable[str]) -> str:
    """{dataset: {tag: count}}: counts of one tag in data sets of one name are added."""
    total: dict[str, dict[str, int]] = {}
    for text in texts:
        for name, tags in _members(from_json(text)):
            counts = total.setdefault(name, {})
            for tag, count in _members(tags):
                if type(count) is int and abs(count) < _MOST:
                    counts[tag] = counts.get(tag, 0) + count
    return as_json(total) if total else ""


def _members(value: object) -> Iterable[tuple[str, Any]]:
    return cast("dict[str, Any]", value).items() if isinstance(value, dict) else ()


def _lists(texts: Iterable[str]) -> str:
    """One list with every member once."""
    members: dict[str, None] = {}
    for text in texts:
        read = from_json(text)
        if isinstance(read, list):
            members |= dict.fromkeys(as_json(member) for member in cast("list[object]", read))
    return f"[{','.join(members)}]" if members else ""


def _words(texts: Iterable[str]) -> str:
    words = [word.strip() for text in texts for word in text.split(",")]
    return ", ".join(dict.fromkeys(word for word in words if word))


_JOINS: dict[str, Callable[[Iterable[str]], str]] = {
    "ss_tag_frequency": _tag_counts,
    "ss_datasets": _lists,
    "modelspec.tags": _words,
}
