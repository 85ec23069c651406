"""Strengths by component, block and pattern: one ordered list of rules over module names.

Block lists, presets, labels, depth gradients, shell patterns and regular expressions all become
rules; the last rule that matches a name decides. docs/blocks.md has every form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from ...errors import ArgumentError
from ...models.pairing import nearest
from .blocks import flat
from .by_block import block_rules
from .rule import Rule
from .values import number

_LARGEST = 3.4028234663852886e38  # of float32
COMPONENTS = {
    "te": r"te\d?:",
    **{f"te{number}": f"te{number}:" for number in (1, 2, 3)},
    "unet": r"(?!te\d?:|vae_)",
    "vae": "vae_",
}


def strengths(
    names: Collection[str],
    *,
    strength: float = 1.0,
    blocks: str | None = None,
    where: Sequence[str] = (),
) -> dict[str, float]:
    """Return the strength of every module of a file: the last rule's that matches it, or 1.

    Args:
        names: All module names of one adapter, as its file writes them, or targets.
        strength: Factor on all of them, any finite number.
        blocks: As in ``parse_rules``.
        where: As in ``parse_rules``; these come after the blocks.

    Raises:
        ArgumentError: As ``parse_rules`` does, or a strength is not finite, or out of float32's range.
    """
    if not math.isfinite(strength):
        raise ArgumentError(f"strength {strength} is not a finite number")
    found = dict.fromkeys(names, float(strength))
    for rule in parse_rules(names, blocks=blocks, where=where):
        found.update(dict.fromkeys(rule.names, strength * rule.strength))
    check_strengths(found)
    return found


def check_strengths(found: Mapping[str, float]) -> None:
    """Raise an `ArgumentError` for a strength that float32, in which all is computed, cannot hold.

    Args:
        found: Strengths, by the name of what they are for.
    """
    name = max(found, key=lambda one: abs(found[one]), default="")
    if found and not abs(found[name]) <= _LARGEST:
        raise ArgumentError(
            f"a strength of {found[name]:g} for `{name}` is out of the range of float32, which ends at "
            f"{_LARGEST:.5g}; give a smaller one"
        )


def parse_rules(
    names: Collection[str], *, blocks: str | None = None, where: Sequence[str] = ()
) -> tuple[Rule, ...]:
    """Return the rules that these texts mean for a file with these module names, in order.

    Args:
        names: All module names of one adapter, as its file writes them, or targets. Which blocks
            its model has is read off them.
        blocks: Numbers (`1,0,0.5,...`), a preset (`OUTALL`), labels (`IN04=0.5,OUT=0`), a gradient
            over the model's depth (`depth=0,1,0.5`) or the Inspire Pack's `%in=0,out3-5=0.5`; with
            letters for numbers, and what they are behind a semicolon (`1,A,R; A=0.5, seed=3`).
        where: `PATTERN=S` each; a pattern is a component (`te`, `te1` to `te3`, `unet`, `vae`), a
            `/regular expression/`, a shell pattern for the whole name, or, without wildcards, words
            of the name, which end at dots and underscores.

    Raises:
        ArgumentError: A text that means nothing, does not fit the model, or matches no name.
    """
    rules = [] if blocks is None else block_rules(blocks, names)
    return (*rules, *(_where_rule(entry, names) for entry in where))


def _where_rule(entry: str, names: Collection[str]) -> Rule:
    pattern, equals, text = entry.rpartition("=")
    if not equals or not pattern:
        raise ArgumentError(f"`{entry}` has no strength; write `PATTERN=S`, as in `te=0`")
    strength = number(text, entry)
    if pattern in COMPONENTS:
        found = [name for name in names if re.match(COMPONENTS[pattern], flat(name))]
    elif len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        try:
            expression = re.compile(pattern[1:-1])
        except re.error as error:
            raise ArgumentError(f"`{pattern}` is no regular expression: {error}") from error
        found = [name for name in names if expression.search(name)]
    elif any(wildcard in pattern for wildcard in "*?["):
        found = [name for name in names if fnmatchcase(name, pattern)]
    else:
        words = re.compile(rf"(?<![^._]){re.escape(pattern)}(?![^._])")
        found = [name for name in names if words.search(name)]
    if not found:
        raise ArgumentError(
            f"`{pattern}` fits none of {len(names)} layers; {_hint(pattern, names)}"
        )
    return Rule(pattern, strength, frozenset(found))


def _hint(pattern: str, names: Collection[str]) -> str:
    """The file's components, or the most similar run of as many words as the pattern has."""
    if pattern in COMPONENTS:
        flats = [flat(name) for name in names]
        held = (word for word, at in COMPONENTS.items() if any(re.match(at, one) for one in flats))
        return f"the file has {', '.join(held)}"
    wanted = pattern.strip("/*?^$._")
    count = len(re.split(r"[._]", wanted))
    runs: set[str] = set()
    for name in names:
        words = re.findall(r"[^._]+[._]*", name)
        runs.update("".join(words[i : i + count]).rstrip("._") for i in range(len(words)))
    return f"nearest: {nearest(wanted, runs)}"
