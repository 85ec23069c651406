"""Reports and descriptions as tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..lora_ops.report import counted
from .text import human_error, human_size, plain

if TYPE_CHECKING:
    from ..examples.digits.demo import DemoRow
    from ..lora_ops import LayerReport, Plan, Report
    from ..lora_ops.info import Info, Part

# Rows shown of a long list of layers: the worst ones, which are those one wants to know about.
_WORST = 12


def show_report(report: Report, *, verbose: bool = False) -> None:
    """Print the layers (the worst, or all), what was left out, notes and totals."""
    console = _console()
    layers = report.layers if verbose else _worst(report.layers)
    table = _table("layer", "kind", "shape", "rank", "error", "energy kept")
    for layer in layers:
        table.add_row(
            _safe(_tail(layer.target)),
            layer.kind,
            "x".join(map(str, layer.shape)),
            str(layer.rank),
            human_error(layer.error),
            f"{layer.energy:.2%}",
        )
    hidden = len(report.layers) - len(layers)
    table.caption = (
        f"the {len(layers)} worst of {len(report.layers)}; -v shows all" if hidden else None
    )
    console.print(table)
    if report.skips:
        console.print(_skip_table(report))
    for note in report.notes:
        console.print(f"[yellow]note[/] {_safe(note)}", soft_wrap=True)
    for line in _totals(report):
        console.print(line, highlight=False, soft_wrap=True)


def show_plan(plan: Plan, output: Path, size: int) -> None:
    """Print what an extraction would do."""
    console = _console()
    pairing = plan.pairing
    table = _table("kind", "layers", "weights", "rank at most")
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
    name = _safe(str(output))
    console.print(
        f"{name} would take at most {human_size(size)}; nothing was written",
        highlight=False,
        soft_wrap=True,
    )


def show_info(info: Info) -> None:
    """Print what a file is."""
    console = _console()
    table = Table.grid("", "", padding=(0, 3, 0, 0))
    rows = [
        ("kind", info.kind),
        ("format", info.format or ""),
        ("architecture", info.architecture or "unknown"),
        ("naming", info.naming or ""),
        ("components", _listed({name: _part(part) for name, part in info.components.items()})),
        ("targets", _listed(info.targets)),
        ("ranks", _layers(info.ranks)),
        ("alphas", _layers(info.alphas)),
        ("dtypes", _listed(info.dtypes)),
        ("size", human_size(info.bytes)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, _safe(value))
    if info.metadata:
        table.add_row()
    for key, value in sorted(info.metadata.items()):
        shown = value if len(value) <= 100 else f"{value[:60]}… ({len(value)} characters)"
        table.add_row(f"[dim]{_safe(key)}[/]", _safe(shown))
    console.print(table)


def show_demo(rows: Sequence[DemoRow]) -> None:
    """Print what each LoRA of the demo is and does."""
    table = _table("LoRA", "file", "ranks", "size", "error", "verified", "distance of pictures")
    for row in rows:
        low, high = row.ranks
        table.add_row(
            row.title,
            _safe(row.path.name),
            str(high) if low == high else f"{low} - {high}",
            human_size(row.size),
            human_error(row.error),
            human_error(row.verified),
            f"{row.distance:.2f}",
        )
    _console().print(table)


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=112)


def _safe(text: str) -> str:
    """Text that is shown as it is, whatever it holds."""
    return escape(plain(text))


def _tail(target: str, length: int = 50) -> str:
    """The end of a long name: what tells layers apart stands there."""
    return target if len(target) <= length else f"…{target[1 - length :]}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    return table


def _worst(layers: Sequence[LayerReport]) -> Sequence[LayerReport]:
    if len(layers) <= _WORST:
        return layers
    return sorted(layers, key=lambda layer: layer.error * layer.norm, reverse=True)[:_WORST]


def _skip_table(report: Report) -> Table:
    table = _table("left out", "because", "tensors", "share of the change")
    for (reason, kind), (tensors, share) in report.reasons().items():
        table.add_row(kind, reason, str(tensors), f"{share:.2%}")
    return table


def _totals(report: Report) -> list[str]:
    parts = ", ".join(f"{name} {human_error(error)}" for name, error in report.components().items())
    lines = [
        f"[bold]{counted(len(report.layers), 'layer')}, relative error {human_error(report.error)}[/] "
        f"({parts}), energy kept {report.energy:.2%}; "
        f"outside the LoRA: {report.left_out:.2%} of the change"
    ]
    ending = [human_size(report.size)] if report.size else []
    ending += [f"{report.seconds:.1f} s"] if report.seconds else []
    return [*lines, ", ".join(ending)] if ending else lines


def _listed(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _layers(counts: Mapping[int, int] | Mapping[str, int]) -> str:
    return _listed({str(value): counted(number, "layer") for value, number in counts.items()})


def _part(part: Part) -> str:
    values = part.parameters
    shown = f"{values / 1e6:.1f} M values" if values >= 1e6 else counted(values, "value")
    return f"{counted(part.tensors, 'tensor')}, {shown}"
