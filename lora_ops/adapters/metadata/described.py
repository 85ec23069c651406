"""What an adapter says of itself, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from .common import from_json

# So many of the most frequent tags stand for trigger words.
_TAGS = 5


def trigger_words(
    metadata: Mapping[str, str], sidecar: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the words that an adapter was trained to answer to, the most certain source first.

    Args:
        metadata: The file's string map: `modelspec.trigger_phrase`, else the most frequent tags of
            `ss_tag_frequency`.
        sidecar: The JSON object beside the file, whose `activation text` is taken where the metadata
            has neither.

    Returns:
        Words or phrases, without repeats; empty where nothing is said.
    """
    told = metadata.get("modelspec.trigger_phrase", "")
    if not told.strip():
        if tags := _frequent(from_json(metadata.get("ss_tag_frequency", ""))):
            return tags
        told = str((sidecar or {}).get("activation text") or "")
    return tuple(dict.fromkeys(word.strip() for word in told.split(",") if word.strip()))


def _frequent(told: Any) -> tuple[str, ...]:
    """The most frequent tags over all data sets, of `{set: {tag: count}}`."""
    counts: Counter[str] = Counter()
    if isinstance(told, dict):
        for tags in cast("dict[str, Any]", told).values():
            if isinstance(tags, dict):
                for tag, count in cast("dict[str, Any]", tags).items():
                    counts[tag.strip()] += count if isinstance(count, int) else 0
    return tuple(tag for tag, _ in counts.most_common(_TAGS) if tag)
