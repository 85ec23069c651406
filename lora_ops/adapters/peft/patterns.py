"""Regular expressions on module names, as PEFT's patterns are, matched in bounded time.

They come from a file, and one of ten characters can keep Python's own engine busy for ever. Here all
places that a match can have reached are followed at once, so nothing is tried twice, and the work is
counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|[*+?]\??|\{(?:\d+(?:,\d*)?|,\d*)\}\??|.", re.S
)
_QUANTIFIER = re.compile(r"[*+?]\??|\{(?!\})(\d*)(?:(,)(\d*))?\}\??")
_START, _END = ("^", r"\A"), ("$", r"\Z")
# Escapes that are not about one character: borders of words, and groups that matched before.
_UNKNOWN = re.compile(r"\\[bB0-9]")
_MOST = 100_000  # characters compared for one name
_DEEPEST = 50  # levels of groups within groups

# A step of matching: from the places in the name that are reached to those reached next.
_Places = frozenset[int]
_Step = Callable[["_Work", _Places], _Places]


class _Work:
    """A name, and how many characters have been compared for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._done = 0

    def count(self, places: _Places) -> None:
        self._done += len(places) + 1
        if self._done > _MOST:
            raise ValueError("takes too long")


def matches(pattern: str, name: str, *, whole: bool = False) -> bool:
    r"""Whether a pattern is a module's name, or its end after a dot.

    As PEFT 0.21 does: ``re.match(rf"(.*\.)?({pattern})$", name)``.

    Args:
        pattern: A regular expression of characters, classes, groups, alternatives and quantifiers.
        name: Of the module.
        whole: Whether the end of the name is not enough, as with ``re.fullmatch``.

    Raises:
        ValueError: It is no regular expression, has other parts, or takes too long; says which.
    """
    step = _parsed(pattern)
    ends = () if whole else (at + 1 for at, one in enumerate(name) if one == ".")
    starts = frozenset([0, *ends])
    return len(name) in step(_Work(name), starts)


@lru_cache(maxsize=1024)
def _parsed(pattern: str) -> _Step:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    tokens = [found[0] for found in _TOKEN.finditer(pattern)][::-1]
    return _alternatives(tokens, 0)


def _alternatives(tokens: list[str], depth: int) -> _Step:
    """Read up to the end of a group; tokens come from the end of the list."""
    if depth > _DEEPEST:
        raise ValueError("has too many groups in groups")
    branches: list[list[_Step]] = [[]]
    while tokens and tokens[-1] != ")":
        part = tokens.pop()
        if part == "|":
            branches.append([])
        elif part in ("(", "(?:"):
            if tokens and tokens[-1].startswith("?"):
                raise ValueError(f"has a group `({tokens[-1]}…`, which is not read")
            branches[-1].append(_alternatives(tokens, depth + 1))
            tokens.pop()  # its end: `re` has seen that it is there
        elif _QUANTIFIER.fullmatch(part):
            branches[-1][-1] = _repeated(branches[-1][-1], *_times(part))
            if tokens and _QUANTIFIER.fullmatch(tokens[-1]):
                raise ValueError("has two quantifiers in a row")
        else:
            branches[-1].append(_atom(part))
    return _any_of([_in_order(steps) for steps in branches])


def _atom(token: str) -> _Step:
    if token in _START:
        return lambda work, places: places & {0}
    if token in _END:
        return lambda work, places: places & {len(work.name)}
    if _UNKNOWN.fullmatch(token):
        raise ValueError(f"has `{token}`, which is not read")
    one = re.compile(token)

    def step(work: _Work, places: _Places) -> _Places:
        work.count(places)
        name = work.name
        return frozenset(at + 1 for at in places if at < len(name) and one.fullmatch(name[at]))

    return step


def _times(token: str) -> tuple[int, int | None]:
    """The least and the largest number of repetitions that a quantifier allows."""
    found = _QUANTIFIER.fullmatch(token)
    if found is None or token[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token[0]]
    low, comma, high = found.groups()
    least = int(low or 0)
    return least, int(high) if high else None if comma else least


def _repeated(step: _Step, low: int, high: int | None) -> _Step:
    def repeated(work: _Work, places: _Places) -> _Places:
        enough = len(work.name) + 1  # a match of that many has an empty one among them
        for _ in range(min(low, enough)):
            work.count(places)
            places = step(work, places)
        found = fresh = places
        for _ in range(enough if high is None else min(high - low, enough)):
            work.count(fresh)
            fresh = step(work, fresh) - found
            if not fresh:
                break
            found |= fresh
        return found

    return repeated


def _in_order(steps: list[_Step]) -> _Step:
    def in_order(work: _Work, places: _Places) -> _Places:
        for step in steps:
            places = step(work, places)
        return places

    return in_order


def _any_of(steps: list[_Step]) -> _Step:
    def reached(work: _Work, places: _Places) -> Iterator[int]:
        for step in steps:
            yield from step(work, places)

    return steps[0] if len(steps) == 1 else lambda work, places: frozenset(reached(work, places))
