"""What the nodes say: reports as plain text, short enough to stand on a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..apply.patch_places import key_of
from ..apply.patching import Matched, summary
from .wording import worded

if TYPE_CHECKING:
    from ...lora_ops import Comparison, Info, Report, Verdict

# Names shown of a list of layers that something is wrong with.
_SOME = 3
_WORST = 5
# The most strengths that are listed.
_STRENGTHS = 6
WARNS = "! "
_DONE, _WARNING = "done · ", "warning · "


def headed(headline: str, *lines: str) -> str:
    """A report as it stands on a node: how it went, then what is wrong, then the rest.

    Args:
        headline: What was done, in a line; or the headline of another report that this one goes on.
        lines: All others; one that begins with `WARNS` says what is wrong.
    """
    headline = headline.removeprefix(_DONE).removeprefix(_WARNING)
    wrong = [line for line in lines if line.startswith(WARNS)]
    rest = [line for line in lines if not line.startswith(WARNS)]
    return "\n".join([(_WARNING if wrong else _DONE) + headline, *wrong, *rest])


def info_text(info: Info, *more: str) -> str:
    """What a file is, as `lorakit info` says it, in a few lines; others follow the first of them."""
    from ...lora_ops.text import human_size, plain

    model = info.architecture or info.encoder
    about = [info.kind, *([model] if model else [])]
    parts = [f"{name} {part.parameters:,} numbers" for name, part in info.components.items()]
    lines = [
        f"{plain(info.name)}: {', '.join(about)}, {human_size(info.bytes)}",
        *([f"format {info.format}, {_counts(info.targets)}"] if info.format else []),
        *([f"rank {_counts(info.ranks)}"] if info.ranks else []),
        *([f"alpha {_counts(info.alphas)}"] if info.alphas else []),
        f"{_counts(info.dtypes)}; {', '.join(parts)}",
        *([f"weights {_counts(info.storage)}: {info.bits:.2f} bits each"] if info.bits else []),
    ]
    return headed(lines[0], *more, *lines[1:])


def applied_lines(
    name: str, matched: Matched, encoders: Iterable[str], strengths: tuple[float | str, float]
) -> list[str]:
    """How many layers of an adapter were applied, to what, how strongly, and which were not, and why."""
    from ...lora_ops.report import counted
    from ...lora_ops.text import plain

    held = set(encoders)
    layers = set(matched.names.values())
    total = len(layers | set(matched.missing) | set(matched.replaced))
    counts = Counter(key_of(place) in held for place in matched.patches)
    parts = [
        f"{counted(counts[of_clip], 'weight')} of {what} at {_number(strength)}"
        for of_clip, what, strength in (
            (False, "the model", strengths[0]),
            (True, "CLIP", strengths[1]),
        )
        if counts[of_clip]
    ]
    lines = [f"{plain(name)}: {len(layers)} of {counted(total, 'layer')} applied"]
    lines[0] += f" ({', '.join(parts)})" if parts else ""
    for reason, names in summary(matched):
        lines.append(f"{WARNS}{counted(len(names), 'layer')} not applied: {reason}: {_some(names)}")
    if matched.extras:
        lines.append(
            f"{WARNS}{counted(len(matched.extras), 'tensor')} of no known layer not applied: "
            f"{_some(matched.extras)}"
        )
    if matched.replaced:
        pairs = [f"{one} by {other}" for one, other in matched.replaced.items()]
        lines.append(
            f"{WARNS}{counted(len(pairs), 'layer')} replaced, as two change one weight: {_some(pairs)}"
        )
    if any(strength != 1.0 for _, strength in matched.patches.values()):
        found = {matched.names[place]: strength for place, (_, strength) in matched.patches.items()}
        lines.append(f"strengths by block: {_by_strength(found)}")
    return lines


def _number(strength: float | str) -> str:
    return strength if isinstance(strength, str) else f"{strength:g}"


def all_applied_text(applied: Sequence[tuple[str, Sequence[str]]], more: Sequence[str] = ()) -> str:
    """What became of several adapters, applied one after another.

    Args:
        applied: The name of each, and its lines; see `applied_lines`.
        more: Lines besides.
    """
    from ...lora_ops.report import counted

    if len(applied) == 1:
        return headed(*applied[0][1], *more)
    lines: list[str] = []
    for name, (headline, *rest) in applied:
        lines.append(headline)
        for line in rest:
            wrong = line.startswith(WARNS)
            lines.append(f"{WARNS}{name}: {line.removeprefix(WARNS)}" if wrong else f"  {line}")
    return headed(f"{counted(len(applied), 'LoRA')} applied", *lines, *more)


def merged_text(
    what: str,
    shares: Sequence[float],
    factors: Mapping[str, float],
    count: int,
    more: Iterable[str] = (),
) -> str:
    """What loaded models are merged to: which shares of which models, in how many weights.

    Args:
        what: The method, and of how many models.
        shares: Of B, C, ….
        factors: On the shares, by the weight's name.
        count: How many weights are merged.
        more: Lines besides.
    """
    from ...lora_ops.report import counted

    told = ", ".join(
        f"{letter} {share:g}" for letter, share in zip("BCDEFGH", shares, strict=False)
    )
    lines = [
        f"{what}, in {counted(count, 'weight')}",
        f"share of {told}; computed in fp32 when they are used",
    ]
    if any(factor != 1.0 for factor in factors.values()):
        lines.append(f"times, by block: {_by_strength(factors, 'weight')}")
    if not count:
        lines.append(f"{WARNS}changes nothing: the shares are 0 in all weights")
    return headed(lines[0], *more, *lines[1:])


def _by_strength(strengths: Mapping[str, float], word: str = "layer") -> str:
    """Each strength with the blocks that have it, and how many layers of them."""
    from ...lora_ops.adapters.formats import component
    from ...lora_ops.adapters.strengths.blocks import Blocks, locate
    from ...lora_ops.report import counted

    found = locate(strengths)
    groups: dict[float, set[str]] = {}
    for name, strength in strengths.items():
        groups.setdefault(strength, set()).add(name)
    told: list[str] = []
    for strength in sorted(groups, reverse=True):
        names, places = groups[strength], list[str]()
        number = counted(len(names), word)
        if found is not None:
            within = {block: held & names for block, held in found.modules.items() if held & names}
            places += [str(Blocks(found.layout, within))] if within else []
            names = names.difference(*within.values())
        clip = {component(name) == "te" for name in names}
        places += (
            ["the model" if found is None else "the rest of the model"] if False in clip else []
        )
        places += ["CLIP"] if True in clip else []
        told.append(f"{strength:g} in {', '.join(places)} ({number})")
    more = [f"{len(told) - _STRENGTHS} more"] if len(told) > _STRENGTHS else []
    return "; ".join(told[:_STRENGTHS] + more)


def edit_text(name: str, report: Report) -> str:
    """What an operation did to an adapter: ranks, error, size, the worst layers, what is left out."""
    from ...lora_ops import EditReport
    from ...lora_ops.operations.extract.layer import BELOW, UNCHANGED
    from ...lora_ops.operations.reasons import STRENGTH_ZERO
    from ...lora_ops.report import counted
    from ...lora_ops.text import estimate_text, human_error, human_size, plain

    layers = [one for one in report.layers if not (isinstance(one, EditReport) and one.is_full)]
    before = sorted(
        {rank for one in layers if isinstance(one, EditReport) for rank in one.was if rank}
    )
    after = sorted({one.rank for one in layers})
    ranks = " → ".join(_span(found) for found in (before, after) if found)
    lines = [
        f"{plain(name)}: {counted(len(report.layers), 'layer')}, rank {ranks or 0}, "
        f"relative error {human_error(report.error)}, {human_size(report.size)}",
        f"energy kept {report.energy:.2%}"
        + (f", left out {report.left_out:.2%} of the change" if report.left_out else ""),
    ]
    rounding, error = report.rounding, report.estimated_error
    if rounding is not None and error is not None:
        lines.append(estimate_text(rounding, error))
    if report.weighted_error is not None:
        lines.append(
            f"of the layers' output, by the activations: relative error {human_error(report.weighted_error)}"
        )
    for (reason, kind), (count, share) in report.reasons().items():
        if reason != UNCHANGED:
            mark = "" if reason in (STRENGTH_ZERO, BELOW) else WARNS
            told = worded(reason)
            lines.append(f"{mark}{counted(count, 'layer')} left out ({kind}): {told}, {share:.2%}")
    lines += _notes(report)
    worst = sorted(report.layers, key=lambda one: one.residual, reverse=True)[:_WORST]
    lines += [f"  {human_error(one.error)}  {one.target}" for one in worst if one.residual > 0]
    return headed(*lines)


def comparison_text(names: Sequence[str], found: Comparison) -> str:
    """How alike two adapters are, and where they differ most."""
    from ...lora_ops.report import counted
    from ...lora_ops.text import human_error, plain

    alone = len(found.layers) - found.shared
    first, second = found.norms
    lines = [
        f"{plain(names[0])} and {plain(names[1])}: cosine {found.cosine:.4f}, "
        f"distance {human_error(found.distance)}",
        f"{counted(found.shared, 'layer')} in both, {alone} in one alone; norms {first:.4g} and "
        f"{second:.4g}",
    ]
    strongest = sorted(found.layers, key=lambda one: max(one.norms), reverse=True)[:_WORST]
    lines += [f"  {one.cosine:7.4f}  {one.target}" for one in strongest]
    return headed(*lines)


def baked_text(name: str, report: Report) -> str:
    """How much of the adapters' changes is in a checkpoint after rounding."""
    from ...lora_ops.report import counted
    from ...lora_ops.text import human_error, human_size, plain

    lines = [
        f"{plain(name)}: {counted(len(report.layers), 'weight')} changed, {human_size(report.size)}, "
        f"lost to rounding: {human_error(report.error)} of the change",
    ]
    for (reason, kind), (count, share) in report.reasons().items():
        lines.append(
            f"{WARNS}{counted(count, 'weight')} left out ({kind}): {worded(reason)}, {share:.2%}"
        )
    lines += _notes(report)
    return headed(*lines)


def loading_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Which programs load a file, in lint's words; a warning where ComfyUI leaves a part of it."""
    told: dict[str, list[str]] = {}
    for one in verdicts:
        told.setdefault(one.summary, []).append(one.title)
    line = "; ".join(f"{', '.join(programs)}: {summary}" for summary, programs in told.items())
    lost = any(one.program == "comfy" and one.count("left") for one in verdicts)
    return [f"{WARNS if lost else ''}{line}"]


def _notes(report: Report) -> list[str]:
    from ...lora_ops.text import plain

    return [f"note: {worded(plain(note))}" for note in report.notes]


def _counts(found: Mapping[Any, int]) -> str:
    """Values with how often each occurs, unless there is one."""
    if len(found) == 1:
        return str(next(iter(found)))
    return ", ".join(_times(found))


def _times(found: Mapping[Any, int]) -> Iterator[str]:
    shown = sorted(found.items(), key=lambda item: -item[1])
    yield from (f"{value} ({count})" for value, count in shown[:4])
    if len(shown) > 4:
        yield f"{len(shown) - 4} more"


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _some(names: Sequence[str]) -> str:
    from ...lora_ops.text import plain

    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(f"`{plain(name)}`" for name in names[:_SOME]) + more
