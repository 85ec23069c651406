"""Strengths by component, block and pattern: one ordered list of rules over module names.

Block lists, presets, labels, depth gradients, shell patterns and regular expressions all become
rules; the last rule that matches a name decides. docs/blocks.md has every form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...errors import ArgumentError
from ...models.pairing import nearest
from .blocks import ALL_BLOCKS, PRESETS, SCHEMES, Blocks, Scheme, flat, locate

ALL = "ALL"
DEPTH = "depth="
_LARGEST = 3.4028234663852886e38  # of float32
COMPONENTS = {
    "te": r"te\d?:",
    **{f"te{number}": f"te{number}:" for number in (1, 2, 3)},
    "unet": r"(?!te\d?:|vae_)",
    "vae": "vae_",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A strength for some of a file's modules.

    Attributes:
        pattern: What was asked for: a pattern, a component or a block's label.
        strength: Factor on the change, any finite number; 0 is none of it.
        names: The module names that it fits.
    """

    pattern: str
    strength: float
    names: frozenset[str]

    def matches(self, name: str) -> bool:
        """Whether the rule is about this module."""
        return name in self.names


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
        blocks: Numbers (`1,0,0.5,...`), a preset (`OUTALL`), labels (`IN04=0.5,OUT=0`) or a gradient
            over the model's depth (`depth=0,1,0.5`).
        where: `PATTERN=S` each; a pattern is a component (`te`, `te1` to `te3`, `unet`, `vae`), a
            `/regular expression/`, a shell pattern for the whole name, or, without wildcards, words
            of the name, which end at dots and underscores.

    Raises:
        ArgumentError: A text that means nothing, does not fit the model, or matches no name.
    """
    rules = [] if blocks is None else _block_rules(blocks, names)
    return (*rules, *(_where_rule(entry, names) for entry in where))


def _where_rule(entry: str, names: Collection[str]) -> Rule:
    pattern, equals, number = entry.rpartition("=")
    if not equals or not pattern:
        raise ArgumentError(f"`{entry}` has no strength; write `PATTERN=S`, as in `te=0`")
    strength = _number(number, entry)
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


def _block_rules(text: str, names: Collection[str]) -> list[Rule]:
    text = text.strip()
    preset = PRESETS.get(text.upper())
    if preset is not None and len(set(preset)) == 1:  # the same for any model
        return [Rule(text, preset[0], frozenset(names))]
    blocks = locate(names)
    if blocks is None:
        raise ArgumentError(
            f"blocks `{text}`: no numbered blocks are known in these {len(names)} layers, the first "
            f"of which is `{next(iter(names), '')}`; use patterns, as in "
            '`where="te=0"`'
        )
    if preset is not None:
        rules = _of_scheme(f"the numbers of {text}", preset, ALL_BLOCKS, blocks)
        given = [rule for rule in rules if rule.pattern != "BASE" and rule.strength]
        if not given:
            raise ArgumentError(
                f"preset `{text}` leaves no block of this file, which has {blocks}; "
                "give labels, as in `IN=0,OUT=1`"
            )
        return rules
    if text.startswith(DEPTH):
        return _gradient(text, blocks)
    if "=" in text:
        return [_label_rule(part.strip(), names, blocks) for part in text.split(",")]
    if "," in text or _is_number(text):
        return _list(text, blocks)
    raise ArgumentError(
        f"unknown preset `{text}`; nearest: {nearest(text.upper(), PRESETS)}; "
        "or give numbers, labels with strengths (`IN04=0.5,OUT=0`) or a gradient (`depth=0,1`)"
    )


def _list(text: str, blocks: Blocks) -> list[Rule]:
    values = [_number(part, text) for part in text.split(",")]
    if len(values) not in SCHEMES:
        known = "; ".join(f"{count}: {scheme.title}" for count, scheme in SCHEMES.items())
        raise ArgumentError(
            f"blocks: no list has {len(values)} numbers ({known}); "
            "labels (`IN04=0.5`) and gradients (`depth=0,1`) need no count"
        )
    return _of_scheme(f"{len(values)} numbers", values, SCHEMES[len(values)], blocks)


def _of_scheme(what: str, values: Sequence[float], scheme: Scheme, blocks: Blocks) -> list[Rule]:
    given = dict(zip(scheme.labels, values, strict=True))
    missing = [label for label in blocks.labels if label not in (*given, *scheme.spares)]
    if missing:
        raise ArgumentError(
            f"blocks: {what} ({scheme.title}) say nothing of {_some(missing)}; the file is for "
            f"{blocks.layout.title} and has {blocks}; {_way_out(given, blocks.labels)}"
        )
    return [
        Rule(block.label, given[block.label], modules)
        for block, modules in blocks.modules.items()
        if block.label in given
    ]


def _way_out(given: Mapping[str, float], held: Collection[str]) -> str:
    """The lists that fit; with the given numbers filled in if the model is the same."""
    fitting = {n: one for n, one in SCHEMES.items() if {*held} <= {*one.labels, *one.spares}}
    if not fitting:
        return "use labels (`D00-D09=0.5`) or a gradient (`depth=0,1`), which fit any model"
    text = f"use {' or '.join(map(str, fitting))} numbers"
    if not {*given} & {*held}:
        return text
    longest = [*fitting.values()][-1]
    padded = ",".join(f"{given.get(label, 0):.12g}" for label in longest.labels)
    return f"{text}; with 0 for those it is `{padded}`"


def _label_rule(part: str, names: Collection[str], blocks: Blocks) -> Rule:
    label, _, number = part.rpartition("=")
    label = label.strip().upper()
    strength = _number(number, part)
    if label == ALL:
        return Rule(label, strength, frozenset(names))
    places = [place for end in label.split("-") for place in _places(end, blocks)]
    low, high = min(places), max(places)
    chosen = [
        modules
        for block, modules in blocks.modules.items()
        if low <= (block.order, block.index) <= high
    ]
    if not chosen:
        raise _no_block(label, blocks)
    return Rule(label, strength, frozenset[str]().union(*chosen))


def _places(label: str, blocks: Blocks) -> tuple[tuple[int, float], tuple[int, float]]:
    """Places of the first and the last block that a label (`IN04`, `IN4`) or a section means."""
    for order, section in enumerate(blocks.layout.sections):
        number = label.removeprefix(section.label)
        if label == section.label:
            return (order, 0), (order, math.inf)
        if number != label and number.isdecimal() and section.numbered:
            return (order, int(number)), (order, int(number))
    raise _no_block(label, blocks)


def _no_block(label: str, blocks: Blocks) -> ArgumentError:
    return ArgumentError(f"no block `{label}` in this file, which has {blocks}")


def _gradient(text: str, blocks: Blocks) -> list[Rule]:
    """Strengths at equal distances over the model's numbered blocks, linear in between."""
    values = [_number(part, text) for part in text.removeprefix(DEPTH).split(",")]
    numbered = [block for block in blocks.modules if block.section.numbered]
    starts: list[int] = [0]  # where each section begins, and where the last one ends
    for order, section in enumerate(blocks.layout.sections):
        shown = [block.index + 1 for block in numbered if block.order == order]
        starts.append(starts[-1] + max(section.count or 0, *shown, 0))
    rules: list[Rule] = []
    for block in numbered:
        place = (starts[block.order] + block.index) * (len(values) - 1) / max(starts[-1] - 1, 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        value = values[low] + (place - low) * (values[high] - values[low])
        rules.append(Rule(block.label, value, blocks.modules[block]))
    return rules


def _number(text: str, where: str) -> float:
    if not _is_number(text):
        raise ArgumentError(f"`{text.strip()}` in `{where}` is not a finite number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _some(labels: Sequence[str], count: int = 6) -> str:
    more = f" and {len(labels) - count} more" if len(labels) > count else ""
    return ", ".join(labels[:count]) + more
