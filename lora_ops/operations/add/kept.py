"""Which inputs of an addition stay out of its method: LoRAs that distil a model into few steps are no styles.

They are added to what a method makes of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ...adapters.distilled import check_places, is_distilled
from ...adapters.matching.group import Term
from ...errors import ArgumentError
from ..methods.factored.table import FACTORED


def is_distillation(term: Term) -> bool:
    """Whether the name of a LoRA, or a title in its metadata, says that it distils a model into few steps."""
    return is_distilled(term.name, term.adapter.metadata)


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
        known = (at for at, term in enumerate(terms) if is_distillation(term))
        return frozenset(known if method in FACTORED else ())
    found = check_places(asked, len(terms))
    if found and method not in FACTORED:
        raise ArgumentError(
            f"method `{method}` keeps every input whole: it only finds their factors"
        )
    return found


def kept_notes(terms: Sequence[Term], method: str, kept: Collection[int]) -> Iterator[str]:
    """Yield a note for each input that is added as it is."""
    for at in sorted(kept):
        why = ": it says that it distils a model" if is_distillation(terms[at]) else ""
        yield f"{terms[at].name} is added as it is, to what `{method}` makes of the others{why}"
