"""Which inputs of an addition stay out of its method: LoRAs that distil a model into few steps are no styles.

Trimmed, or without some of their directions, LCM, Lightning, DMD, Turbo and Hyper LoRAs no longer do what
they are for, and the pictures blur. They are added to what a method makes of the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePath

from ...adapters.matching.group import Term
from ...errors import ArgumentError
from ..methods.factored.table import FACTORED

# Words that stand for distillation alone.
_SURE = re.compile(r"(?:lcm|dmd\d?|hypersd(?:xl)?|tcd|lightx2v|causvid|distill(?:ed|ation)?)$")
# Words that styles have, too: they count beside a number of steps or the name of a model.
_LIKELY = ("lightning", "turbo", "hyper")
_STEPS = re.compile(r"\d*steps?$")
_MODEL = re.compile(r"(?:sd|sd\d+|sdxl|xl|flux\d?|dev|qwen|image|wan\d*)$")
_TITLES = ("modelspec.title", "ss_output_name")


def is_distillation(term: Term) -> bool:
    """Whether the name of a LoRA, or a title in its metadata, says that it distils a model into few steps."""
    titles = [PurePath(term.name).stem, *(term.adapter.metadata.get(key, "") for key in _TITLES)]
    return any(map(_says_so, titles))


def kept_whole(terms: Sequence[Term], method: str, asked: Collection[int] | None) -> frozenset[int]:
    """Return the places of the terms that a method is not to see.

    Args:
        terms: All of them.
        method: A name in `METHODS` or `FACTORED`.
        asked: The user's; None: those that are recognised, if the method makes factors.

    Raises:
        ArgumentError: A place is of no term, or the method makes no factors.
    """
    if asked is None:
        found = [at for at, term in enumerate(terms) if is_distillation(term)]
        return frozenset(found if method in FACTORED else ())
    if any(not 0 <= at < len(terms) for at in asked):
        raise ArgumentError(f"what is kept whole is a place from 0 to {len(terms) - 1}")
    if asked and method not in FACTORED:
        raise ArgumentError(
            f"method `{method}` keeps every input whole: it only finds their factors"
        )
    return frozenset(asked)


def kept_notes(terms: Sequence[Term], method: str, kept: Collection[int]) -> Iterator[str]:
    """Yield a note for each input that is added as it is."""
    for at in sorted(kept):
        why = ": it says that it distils a model" if is_distillation(terms[at]) else ""
        yield f"{terms[at].name} is added as it is, to what `{method}` makes of the others{why}"


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
