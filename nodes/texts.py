"""What the nodes say: reports as plain text, short enough to stand on a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .patch_places import key_of
from .patching import Matched, summary
from .wording import worded

if TYPE_CHECKING:
    from ..lora_ops import Report
    from ..lora_ops.compare import Comparison
    from ..lora_ops.info import Info

# Names shown of a list of layers that something is wrong with.
_SOME = 3
_WORST = 5


def info_text(info: Info) -> str:
    """What a file is, as `lorakit info` says it, in a few lines."""
    from ..lora_ops.text import human_size, plain

    about = [info.kind, *([info.architecture] if info.architecture else [])]
    parts = [f"{name} {part.parameters:,} numbers" for name, part in info.components.items()]
    lines = [
        f"{plain(info.name)}: {', '.join(about)}, {human_size(info.bytes)}",
        *([f"format {info.format}, {_counts(info.targets)}"] if info.format else []),
        *([f"rank {_counts(info.ranks)}"] if info.ranks else []),
        *([f"alpha {_counts(info.alphas)}"] if info.alphas else []),
        f"{_counts(info.dtypes)}; {', '.join(parts)}",
    ]
    return "\n".join(lines)


def applied_text(
    name: str, matched: Matched, encoders: Iterable[str], strengths: tuple[float, float]
) -> str:
    """How many layers of an adapter were applied, to what, and which were not, and why."""
    from ..lora_ops.report import counted
    from ..lora_ops.text import plain

    held = set(encoders)
    layers = set(matched.names.values())
    total = len(layers | set(matched.missing) | set(matched.replaced))
    counts = Counter(key_of(place) in held for place in matched.patches)
    parts = [
        f"{counted(counts[of_clip], 'weight')} of {what} at {strength:g}"
        for of_clip, what, strength in (
            (False, "the model", strengths[0]),
            (True, "CLIP", strengths[1]),
        )
        if counts[of_clip]
    ]
    lines = [f"{plain(name)}: {len(layers)} of {counted(total, 'layer')} applied"]
    lines[0] += f" ({', '.join(parts)})" if parts else ""
    own = Counter(strength for _, strength in matched.patches.values())
    if set(own) != {1.0}:
        lines.append(
            "strengths by block: "
            + ", ".join(f"{value:g} for {own[value]}" for value in sorted(own, reverse=True))
        )
    for reason, names in summary(matched):
        lines.append(f"! {counted(len(names), 'layer')} not applied: {reason}: {_some(names)}")
    if matched.extras:
        lines.append(
            f"! {counted(len(matched.extras), 'tensor')} of no known layer not applied: "
            f"{_some(matched.extras)}"
        )
    if matched.replaced:
        pairs = [f"{one} by {other}" for one, other in matched.replaced.items()]
        lines.append(
            f"! {counted(len(pairs), 'layer')} replaced, as two change one weight: {_some(pairs)}"
        )
    return "\n".join(lines)


def edit_text(name: str, report: Report) -> str:
    """What an operation did to an adapter: ranks, error, size, the worst layers, what is left out."""
    from ..lora_ops.edit import EditReport
    from ..lora_ops.extract import UNCHANGED
    from ..lora_ops.report import counted
    from ..lora_ops.scale import STRENGTH_ZERO
    from ..lora_ops.text import human_error, human_size, plain

    layers = [one for one in report.layers if not (isinstance(one, EditReport) and one.is_full)]
    before = sorted(
        {rank for one in layers if isinstance(one, EditReport) for rank in one.was if rank}
    )
    after = sorted({one.rank for one in layers})
    ranks = " → ".join(_span(found) for found in (before, after) if found)
    lines = [
        f"{plain(name)}: {counted(len(report.layers), 'layer')}, rank {ranks or 0}, "
        f"{human_size(report.size)}",
        f"relative error {human_error(report.error)}, energy kept {report.energy:.2%}"
        + (f", left out {report.left_out:.2%} of the change" if report.left_out else ""),
    ]
    worst = sorted(report.layers, key=lambda one: one.residual, reverse=True)[:_WORST]
    lines += [f"  {human_error(one.error)}  {one.target}" for one in worst if one.residual > 0]
    for (reason, kind), (count, share) in report.reasons().items():
        if reason != UNCHANGED:
            mark = "" if reason == STRENGTH_ZERO else "! "
            told = worded(reason)
            lines.append(f"{mark}{counted(count, 'layer')} left out ({kind}): {told}, {share:.2%}")
    lines += _notes(report)
    return "\n".join(lines)


def comparison_text(names: Sequence[str], found: Comparison) -> str:
    """How alike two adapters are, and where they differ most."""
    from ..lora_ops.report import counted
    from ..lora_ops.text import human_error, plain

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
    return "\n".join(lines)


def baked_text(name: str, report: Report) -> str:
    """How much of the adapters' changes is in a checkpoint after rounding."""
    from ..lora_ops.report import counted
    from ..lora_ops.text import human_error, human_size, plain

    lines = [
        f"{plain(name)}: {counted(len(report.layers), 'weight')} changed, {human_size(report.size)}",
        f"lost to rounding: {human_error(report.error)} of the change",
    ]
    for (reason, kind), (count, share) in report.reasons().items():
        lines.append(f"! {counted(count, 'weight')} left out ({kind}): {reason}, {share:.2%}")
    lines += _notes(report)
    return "\n".join(lines)


def _notes(report: Report) -> list[str]:
    from ..lora_ops.text import plain

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
    from ..lora_ops.text import plain

    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(f"`{plain(name)}`" for name in names[:_SOME]) + more
