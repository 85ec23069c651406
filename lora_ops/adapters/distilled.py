"""LoRAs that distil a model into few steps, known by their names: they are no styles.

Trimmed, or without some of their directions, LCM, Lightning, DMD, Turbo and Hyper LoRAs no longer do what
they are for, and the pictures blur.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath

from ..errors import ArgumentError

# Words that stand for distillation alone.
_SURE = re.compile(r"(?:lcm|dmd\d?|hypersd(?:xl)?|tcd|lightx2v|causvid|distill(?:ed|ation)?)$")
# Words that styles have, too: they count beside a number of steps or the name of a model.
_LIKELY = ("lightning", "turbo", "hyper")
_STEPS = re.compile(r"\d*steps?$")
_MODEL = re.compile(r"(?:sd|sd\d+|sdxl|xl|flux\d?|dev|qwen|image|wan\d*)$")
_TITLES = ("modelspec.title", "ss_output_name")


def is_distilled(name: str, metadata: Mapping[str, str]) -> bool:
    """Whether the name of a LoRA's file, or a title in its metadata, says that it distils a model into few steps."""
    titles = [PurePath(name).stem, *(metadata.get(key, "") for key in _TITLES)]
    return any(map(_says_so, titles))


def check_places(asked: Collection[int], count: int) -> frozenset[int]:
    """Return the places of what is to be kept whole.

    Args:
        asked: The user's.
        count: How many there are.

    Raises:
        ArgumentError: A place is of none.
    """
    if any(not 0 <= at < count for at in asked):
        raise ArgumentError(f"what is kept whole is a place from 0 to {count - 1}")
    return frozenset(asked)


def _says_so(title: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", title.lower()) if word and not word.isdigit()]
    if any(map(_SURE.match, words)):
        return True
    counted = any(map(_STEPS.match, words))
    return any(
        word in _LIKELY
        and (counted or any(map(_MODEL.match, words[max(0, at - 1) : at] + words[at + 1 : at + 2])))
        for at, word in enumerate(words)
    )
