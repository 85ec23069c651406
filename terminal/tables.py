"""Reports and descriptions as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from ..lora_ops.report import counted
from ..lora_ops.text import either, human_error, human_size
from .layout import fill, new_table, open_console, output_error, print_rest, safe, shape_text, tail
from .metadata import described_rows
from .wording import worded

if TYPE_CHECKING:
    from ..examples.digits.demo import DemoRow
    from ..lora_ops import Described, Info, LayerReport, Part, PlannedLayer, Preview, Report


def show_report(report: Report, *, verbose: bool = False) -> None:
    """Print the layers (the worst, or all), what was left out, notes and totals."""
    console = open_console()
    by_output = report.weighted_error is not None
    outputs = ["error of output"] if by_output else []
    table = new_table("layer", "kind", "shape", *_FIGURES[_is_estimated(report)], *outputs)

    def cells(layer: LayerReport) -> tuple[str, ...]:
        about = (tail(layer.target), layer.kind, shape_text(layer.shape))
        figures = (str(layer.rank), human_error(layer.error))
        if _is_estimated(report):
            return (*about, *figures, *_estimates(layer), *output_error(layer, by_output))
        return (*about, *figures, f"{layer.energy:.2%}", *output_error(layer, by_output))

    console.print(
        fill(table, report.layers, cells, weigh=lambda layer: layer.residual, verbose=verbose)
    )
    print_rest(console, report, outside="outside the LoRA")


_FIGURES = {
    False: ("rank", "error", "energy kept"),
    True: ("rank", "error", "rounding", "above", "estimated"),
}
"""What is told of a layer; with estimates: the share of rounding, how many directions stand above it, the error
without it."""


def _is_estimated(report: Report) -> bool:
    return report.estimated_error is not None


def _estimates(layer: LayerReport) -> tuple[str, str, str]:
    known, error = layer.rounding, layer.estimated_error
    if known is None or error is None:
        return ("", "", "")
    return (f"{(known.noise / layer.norm) ** 2:.1%}", str(known.above), human_error(error))


def show_plan(plan: Preview) -> None:
    """Print what an operation would do."""
    console = open_console()
    has_ranks = any(one.rank_at_most is not None for one in plan.layers)
    groups: dict[tuple[str, str], list[PlannedLayer]] = {}
    for one in plan.layers:
        name = one.component if plan.by_component else one.kind
        groups.setdefault((name, one.done), []).append(one)
    has_words = any(done for _, done in groups)
    table = new_table(
        "component" if plan.by_component else "kind",
        *(["what"] if has_words else []),
        *("layers", "weights"),
        *(["rank at most"] if has_ranks else []),
    )
    for (name, done), members in groups.items():
        weights = sum(math.prod(one.shape) for one in members)
        table.add_row(
            safe(name),
            *([safe(done)] if has_words else []),
            *(str(len(members)), f"{weights / 1e6:.1f} M"),
            *([_ranks(members)] if has_ranks else []),
        )
    if groups:
        console.print(table)
    for reason, number in Counter(one.reason for one in plan.skips).items():
        text = f"left out: {counted(number, 'layer')}, {worded(reason)}"
        console.print(safe(text), highlight=False, soft_wrap=True)
    for note in plan.notes:
        console.print(f"[yellow]note[/] {safe(worded(note))}", soft_wrap=True)
    architecture = plan.architecture or "unknown architecture"
    told = f"{architecture}, {plan.told}" if plan.told else architecture
    console.print(safe(told), highlight=False)
    if plan.inputs:
        console.print(safe(f"from {', '.join(plan.inputs)}"), highlight=False, soft_wrap=True)
    console.print(
        f"{safe(plan.output)} would take at most {human_size(plan.size_at_most)}; nothing was written",
        highlight=False,
        soft_wrap=True,
    )


def _ranks(layers: Sequence[PlannedLayer]) -> str:
    ranks = sorted({one.rank_at_most for one in layers if one.rank_at_most is not None})
    if not ranks:
        return ""
    return f"{ranks[0]} - {ranks[-1]}" if len(ranks) > 1 else str(ranks[0])


def show_info(info: Info, told: Described) -> None:
    """Print what a file is, what it says of itself, and all its metadata."""
    console = open_console()
    table = Table.grid("", "", padding=(0, 3, 0, 0))
    rows = [
        ("kind", info.kind),
        ("format", info.format or ""),
        ("names", f"those of {info.spelling}; read under today's" if info.spelling else ""),
        ("architecture", info.architecture or info.encoder or either(info.possible)),
        ("naming", info.naming or ""),
        ("components", _listed({name: _part(part) for name, part in info.components.items()})),
        ("targets", _listed(info.targets)),
        ("ranks", _layers(info.ranks)),
        ("alphas", _layers(info.alphas)),
        ("embeddings", _listed({k: shape_text(v) for k, v in info.embeddings.items()})),
        ("dtypes", _listed(info.dtypes)),
        ("weights", _listed(info.storage)),
        ("bits", "" if info.bits is None else f"{info.bits:.2f} per weight, scales included"),
        ("size", human_size(info.bytes)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, safe(value))
    said = list(described_rows(told))
    if said:
        table.add_row()
    for name, value in said:
        table.add_row(name, safe(value))
    if info.metadata:
        table.add_row()
    for key, value in sorted(info.metadata.items()):
        shown = value if len(value) <= 100 else f"{value[:60]}… ({len(value)} characters)"
        table.add_row(f"[dim]{safe(key)}[/]", safe(shown))
    console.print(table)


def show_demo(rows: Sequence[DemoRow]) -> None:
    """Print what each LoRA of the demo is and does."""
    table = new_table(
        *("LoRA", "file", "ranks", "numbers", "size", "error", "verified", "distance of pictures")
    )
    for row in rows:
        low, high = row.ranks
        table.add_row(
            row.title,
            safe(row.path.name),
            str(high) if low == high else f"{low} - {high}",
            f"{row.numbers:,}",
            human_size(row.size),
            *("" if error is None else human_error(error) for error in (row.error, row.verified)),
            f"{row.distance:.2f}",
        )
    open_console().print(table)


def _listed(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _layers(counts: Mapping[int, int] | Mapping[str, int]) -> str:
    return _listed({str(value): counted(number, "layer") for value, number in counts.items()})


def _part(part: Part) -> str:
    values = part.parameters
    shown = f"{values / 1e6:.1f} M values" if values >= 1e6 else counted(values, "value")
    return f"{counted(part.tensors, 'tensor')}, {shown}"
