"""Reports and descriptions as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..lora_ops.report import counted
from ..lora_ops.text import either, human_error, human_size
from .layout import fill, new_table, open_console, print_rest, safe, shape_text, tail

if TYPE_CHECKING:
    from ..examples.digits.demo import DemoRow
    from ..lora_ops import Info, LayerReport, Part, Plan, Report


def show_report(report: Report, *, verbose: bool = False) -> None:
    """Print the layers (the worst, or all), what was left out, notes and totals."""
    console = open_console()
    table = new_table("layer", "kind", "shape", "rank", "error", "energy kept")

    def cells(layer: LayerReport) -> tuple[str, ...]:
        return (
            tail(layer.target),
            layer.kind,
            shape_text(layer.shape),
            str(layer.rank),
            human_error(layer.error),
            f"{layer.energy:.2%}",
        )

    console.print(
        fill(table, report.layers, cells, weigh=lambda layer: layer.residual, verbose=verbose)
    )
    print_rest(console, report, outside="outside the LoRA")


def show_plan(plan: Plan, output: Path, size: int) -> None:
    """Print what an extraction would do."""
    console = open_console()
    pairing = plan.pairing
    table = new_table("kind", "layers", "weights", "rank at most")
    groups: dict[str, list[tuple[int, int]]] = {}
    for both in pairing.candidates:
        out, width = both.matrix
        groups.setdefault(both.kind, []).append((out * width, plan.most_ranks(both)))
    for kind, members in groups.items():
        ranks = sorted({rank for _, rank in members})
        table.add_row(
            kind,
            str(len(members)),
            f"{sum(weights for weights, _ in members) / 1e6:.1f} M",
            f"{ranks[0]} - {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]),
        )
    console.print(table)
    architecture = pairing.architecture.title if pairing.architecture else "unknown architecture"
    dtype = str(plan.dtype).removeprefix("torch.")
    console.print(f"{architecture}, rank rule {plan.rule}, {dtype}", highlight=False)
    name = safe(str(output))
    console.print(
        f"{name} would take at most {human_size(size)}; nothing was written",
        highlight=False,
        soft_wrap=True,
    )


def show_info(info: Info) -> None:
    """Print what a file is."""
    console = open_console()
    table = Table.grid("", "", padding=(0, 3, 0, 0))
    rows = [
        ("kind", info.kind),
        ("format", info.format or ""),
        ("names", f"those of {info.spelling}; read under today's" if info.spelling else ""),
        ("architecture", info.architecture or either(info.possible)),
        ("naming", info.naming or ""),
        ("components", _listed({name: _part(part) for name, part in info.components.items()})),
        ("targets", _listed(info.targets)),
        ("ranks", _layers(info.ranks)),
        ("alphas", _layers(info.alphas)),
        ("embeddings", _listed({k: shape_text(v) for k, v in info.embeddings.items()})),
        ("dtypes", _listed(info.dtypes)),
        ("size", human_size(info.bytes)),
    ]
    for name, value in rows:
        if value:
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
