"""Rules from a text of strengths by block: lists of numbers, presets, labels, gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from ...errors import ArgumentError
from ...models.pairing import nearest
from .blocks import (
    ALL_BLOCKS,
    BANDS,
    LABELLED,
    PRESETS,
    SCHEMES,
    Block,
    Blocks,
    Scheme,
    flat,
    locate,
    ordered,
)
from .rule import Rule
from .values import Values, split

ALL = "ALL"
DEPTH = "depth="
INSPIRE = "%"
# Names that the Inspire Pack has for presets begin with what they are for: each fits its model anyway.
_FOR = re.compile(r"(?:SD|SDXL)-(?:LYC-)?(?=\w)")
_SECTIONS = {"in": "IN", "mid": "M", "out": "OUT", "double": "D", "single": "S"}
_ENTRY = re.compile(r"(default|base|in|mid|out|double|single)(?:(\d+)(?:-(\d+))?)?")


def block_rules(text: str, names: Collection[str]) -> list[Rule]:
    """Return the rules that a text of strengths by block means for a file.

    Args:
        text: As `rules.parse_rules` takes it.
        names: All module names of the file.

    Raises:
        ArgumentError: It means nothing, or does not fit the model.
    """
    given, values = split(text)
    text = _FOR.sub("", given.upper()) if "=" not in given else given
    preset = PRESETS.get(text)
    if preset is not None and len(set(preset)) == 1:  # the same for any model
        return [Rule(given, preset[0], frozenset(names))]
    blocks = locate(names)
    if blocks is None:
        raise ArgumentError(
            f"blocks `{given}`: no numbered blocks are known in these {len(names)} layers, the first "
            f"of which is `{next(iter(names), '')}`; use patterns, as in "
            '`where="te=0"`'
        )
    if preset is not None:
        return _preset(given, preset, blocks)
    if text in BANDS:
        return _band(*BANDS[text], blocks)
    if text in LABELLED:
        return _labels(given, LABELLED[text], names, blocks, values)
    if given.startswith(INSPIRE):
        return _positions(given, names, blocks, values)
    if given.startswith(DEPTH):
        return _gradient(given, blocks, values)
    if "=" in given:
        parts = [part.strip() for part in given.split(",")]
        return [rule for part in parts for rule in _label_rules(part, names, blocks, values)]
    if "," in given or values.is_list(given):
        listed = by_label(given, values)
        return _of_scheme(f"{len(listed)} numbers", listed, _scheme(len(listed)), blocks)
    raise ArgumentError(
        f"unknown preset `{given}`; nearest: {nearest(text, [*PRESETS, *BANDS, *LABELLED])}; "
        "or give numbers, labels with strengths (`IN04=0.5,OUT=0`) or a gradient (`depth=0,1`)"
    )


def by_label(text: str, values: Values) -> dict[str, tuple[float, ...]]:
    """Return what a list of numbers says of each block, by the labels of its scheme.

    Args:
        text: Numbers or letters with commas between; several for a block with spaces between.
        values: What letters are.

    Raises:
        ArgumentError: No list has so many, or one is no number.
    """
    parts = text.split(",")
    found = [values.some(part, text) for part in parts]
    return dict(zip(_scheme(len(parts)).labels, found, strict=True))


def _scheme(count: int) -> Scheme:
    if count not in SCHEMES:
        known = "; ".join(f"{count}: {scheme.title}" for count, scheme in SCHEMES.items())
        raise ArgumentError(
            f"blocks: no list has {count} numbers ({known}); "
            "labels (`IN04=0.5`) and gradients (`depth=0,1`) need no count"
        )
    return SCHEMES[count]


def _preset(name: str, preset: Sequence[float], blocks: Blocks) -> list[Rule]:
    listed = {label: (value,) for label, value in zip(ALL_BLOCKS.labels, preset, strict=True)}
    rules = _of_scheme(f"the numbers of {name}", listed, ALL_BLOCKS, blocks)
    if not any(rule.pattern != "BASE" and rule.strength for rule in rules):
        raise ArgumentError(
            f"preset `{name}` leaves no block of this file, which has {blocks}; "
            "give labels, as in `IN=0,OUT=1`"
        )
    return rules


def _of_scheme(
    what: str, given: Mapping[str, tuple[float, ...]], scheme: Scheme, blocks: Blocks
) -> list[Rule]:
    missing = (
        []
        if scheme.rest
        else [
            label
            for label in blocks.labels
            if label not in scheme.spares and not any(_is_of(label, one) for one in given)
        ]
    )
    if missing:
        raise ArgumentError(
            f"blocks: {what} ({scheme.title}) say nothing of {_some(missing)}; the file is for "
            f"{blocks.layout.title} and has {blocks}; {_way_out(given, blocks.labels)}"
        )
    rules: list[Rule] = []
    for block, modules in blocks.modules.items():
        held = [one for one in given if _is_of(block.label, one)]
        held = held or ([scheme.rest] if scheme.rest else [])
        for label in held:
            rules += _spread(label, given[label], _part(label, modules))
    return rules


def _is_of(block: str, label: str) -> bool:
    """Whether the label of a number is that of a block, or of a part of it (`M00.1`)."""
    return label.partition(".")[0] == block


def _part(label: str, modules: frozenset[str]) -> frozenset[str]:
    """Of the middle block of a UNet, which some lists cut in three, the third that is meant."""
    _, dot, number = label.partition(".")
    if not dot:
        return modules
    return frozenset(one for one in modules if flat(one).startswith(f"middle_block_{number}_"))


def _spread(label: str, values: Sequence[float], modules: frozenset[str]) -> list[Rule]:
    """One strength for a block, or one for each of its layers, the last of them for all that follow."""
    if len(values) == 1:
        return [Rule(label, values[0], modules)]
    names: dict[str, list[str]] = {}
    for name in modules:
        names.setdefault(flat(name), []).append(name)
    return [
        Rule(label, values[min(at, len(values) - 1)], frozenset(names[one]))
        for at, one in enumerate(ordered(names))
    ]


def _way_out(given: Mapping[str, tuple[float, ...]], held: Collection[str]) -> str:
    """The lists that fit; with the given numbers filled in if the model is the same."""
    fitting = {
        count: one
        for count, one in SCHEMES.items()
        if not one.rest and {*held} <= {*one.labels, *one.spares}
    }
    if not fitting:
        return "use labels (`D00-D09=0.5`) or a gradient (`depth=0,1`), which fit any model"
    text = f"use {' or '.join(map(str, fitting))} numbers"
    if not {*given} & {*held}:
        return text
    longest = [*fitting.values()][-1]
    padded = ",".join(_written(given.get(label, (0,))) for label in longest.labels)
    return f"{text}; with 0 for those it is `{padded}`"


def _written(values: Sequence[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _labels(
    name: str, text: str, names: Collection[str], blocks: Blocks, values: Values
) -> list[Rule]:
    """The rules of a preset: what the file lacks of its blocks is passed over, but not all of them."""
    rules: list[Rule] = []
    for part in text.split(","):
        label, _, _ = part.partition("=")
        if label == ALL or not _missing(label, blocks):
            rules += _label_rules(part, names, blocks, values)
    if not rules:
        raise ArgumentError(
            f"preset `{name}` ({text}) is for none of this file's blocks, which are {blocks}"
        )
    return rules


def _label_rules(part: str, names: Collection[str], blocks: Blocks, values: Values) -> list[Rule]:
    label, _, number = part.rpartition("=")
    label = label.strip().upper()
    if label == ALL:
        return [Rule(label, values.one(number, part), frozenset(names))]
    if missing := _missing(label, blocks):
        raise _no_block(missing, blocks)
    chosen = _chosen(label, blocks)
    if number.strip() in ("R", "U", "r", "u") or len(number.split()) > 1:  # of each block its own
        return [
            rule
            for block in chosen
            for rule in _spread(block.label, values.some(number, part), blocks.modules[block])
        ]
    modules = frozenset[str]().union(*(blocks.modules[block] for block in chosen))
    return [Rule(label, values.one(number, part), modules)]


def _missing(label: str, blocks: Blocks) -> str:
    """Of a label or range the end, or all of it, that means no block of the file; empty: it means some."""
    ends = label.split("-")
    unknown = next((end for end in ends if not _places(end, blocks)), "")
    return unknown or ("" if _chosen(label, blocks) else label)


def _chosen(label: str, blocks: Blocks) -> list[Block]:
    """The file's blocks that a label or a range (`IN04-OUT02`) means."""
    places = [place for end in label.split("-") for place in _places(end, blocks)]
    low, high = min(places), max(places)
    return [block for block in blocks.modules if low <= (block.order, block.index) <= high]


def _places(label: str, blocks: Blocks) -> list[tuple[int, float]]:
    """Places of the first and the last block that a label (`IN04`, `IN4`) or a section means, or none."""
    for order, section in enumerate(blocks.layout.sections):
        number = label.removeprefix(section.label)
        if label == section.label:
            return [(order, 0), (order, math.inf)]
        if number != label and number.isdecimal() and section.numbered:
            return [(order, int(number))]
    return []


def _no_block(label: str, blocks: Blocks) -> ArgumentError:
    return ArgumentError(f"no block `{label}` in this file, which has {blocks}")


def _positions(text: str, names: Collection[str], blocks: Blocks, values: Values) -> list[Rule]:
    """The Inspire Pack's `%default=1,in2-4=0.5`: the file's own blocks, counted from 1 in each section."""
    listed = {
        word: [one for one in blocks.modules if one.section.label == label]
        for word, label in _SECTIONS.items()
    }
    counted = {block for held in listed.values() for block in held if block.section.numbered}
    rest = frozenset(names).difference(*(blocks.modules[block] for block in counted))
    first: list[Rule] = []
    rules: list[Rule] = []
    for part in text.removeprefix(INSPIRE).split(","):
        word, _, number = (one.strip() for one in part.partition("="))
        match = _ENTRY.fullmatch(word)
        if match is None:
            raise ArgumentError(
                f"`{part.strip()}` in `{text}` is not of the form `in2-4=0.5`; the words are default, "
                f"base, {', '.join(_SECTIONS)}"
            )
        if match[1] in ("default", "base"):
            of = frozenset(names) if match[1] == "default" else rest
            first.append(Rule(word, values.one(number, part), of))
            continue
        held = [block for block in listed[match[1]] if block in counted]
        if match[2]:
            held = held[max(int(match[2]) - 1, 0) : int(match[3] or match[2])]
        if not held:
            raise _no_block(word, blocks)
        for block in held:
            rules += _spread(block.label, values.some(number, part), blocks.modules[block])
    return [*sorted(first, key=lambda rule: rule.pattern == "base"), *rules]


def _gradient(text: str, blocks: Blocks, given: Values) -> list[Rule]:
    """Strengths at equal distances over the model's numbered blocks, linear in between."""
    values = [given.one(part, text) for part in text.removeprefix(DEPTH).split(",")]
    rules: list[Rule] = []
    depths, count = _depths(blocks)
    for block, depth in depths.items():
        place = depth * (len(values) - 1) / max(count - 1, 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        value = values[low] + (place - low) * (values[high] - values[low])
        rules.append(Rule(block.label, value, blocks.modules[block]))
    return rules


def _band(low: float, high: float, blocks: Blocks) -> list[Rule]:
    """1 for the numbered blocks between two shares of the depth, 0 for the others."""
    depths, count = _depths(blocks)
    return [
        Rule(
            block.label,
            float(low <= (depth + 0.5) / count < high),
            blocks.modules[block],
        )
        for block, depth in depths.items()
    ]


def _depths(blocks: Blocks) -> tuple[dict[Block, int], int]:
    """How many numbered blocks are before each of the model, and how many the model has."""
    numbered = [block for block in blocks.modules if block.section.numbered]
    starts: list[int] = [0]  # where each section begins, and where the last one ends
    for order, section in enumerate(blocks.layout.sections):
        shown = [block.index + 1 for block in numbered if block.order == order]
        starts.append(starts[-1] + max(section.count or 0, *shown, 0))
    return {block: starts[block.order] + block.index for block in numbered}, starts[-1]


def _some(labels: Sequence[str], count: int = 6) -> str:
    more = f" and {len(labels) - count} more" if len(labels) > count else ""
    return ", ".join(labels[:count]) + more
