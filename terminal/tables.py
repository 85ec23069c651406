"""Reports and descriptions as tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..lora_ops import LayerReport, Plan, Report
    from ..lora_ops.info import Info

# Rows shown of a long list of layers: the worst ones, which are those one wants to know about.
_WORST = 12


def show_report(report: Report, *, verbose: bool = False) -> None:
    """Print the layers (the worst, or all), what was left out, notes and totals."""
    console = _console()
    layers = report.layers if verbose else _worst(report.layers)
    table = _table("layer", "kind", "shape", "rank", "error", "energy kept")
    for layer in layers:
        table.add_row(
            escape(_tail(layer.target)),
            layer.kind,
            "x".join(map(str, layer.shape)),
            str(layer.rank),
            f"{layer.error:.4f}",
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
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for line in _totals(report):
        console.print(line, highlight=False, soft_wrap=True)


def show_plan(plan: Plan, output: str, size: int) -> None:
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
    console.print(
        f"{architecture}, rank rule {plan.rule}, {str(plan.dtype).removeprefix('torch.')}"
    )
    console.print(
        f"{output} would take at most {human_size(size)}; nothing was written", soft_wrap=True
    )


def show_info(info: Info) -> None:
    """Print what a file is."""
    console = _console()
    table = _table("", "")
    table.show_header = False
    rows = [
        ("kind", info.kind),
        ("format", info.format or ""),
        ("architecture", info.architecture or "unknown"),
        ("naming", info.naming or ""),
        (
            "components",
            _listed(
                {
                    n: f"{p.tensors} tensors, {_count(p.parameters)}"
                    for n, p in info.components.items()
                }
            ),
        ),
        ("targets", _listed(info.targets)),
        ("ranks", _listed({f"{rank}": f"{count} layers" for rank, count in info.ranks.items()})),
        ("alphas", _listed({alpha: f"{count} layers" for alpha, count in info.alphas.items()})),
        ("dtypes", _listed(info.dtypes)),
        ("size", human_size(info.bytes)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, escape(value))
    for key, value in sorted(info.metadata.items()):
        shown = value if len(value) <= 100 else f"{value[:90]}… ({len(value)} characters)"
        table.add_row(f"[dim]{escape(key)}", escape(shown))
    console.print(table)


def human_size(size: float) -> str:
    """Bytes for people: 1.4 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=112)


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
    for (reason, kind), (count, share) in report.reasons().items():
        table.add_row(kind, reason, str(count), f"{share:.2%}")
    return table


def _totals(report: Report) -> list[str]:
    parts = ", ".join(f"{name} {error:.4f}" for name, error in report.components().items())
    lines = [
        f"[bold]{len(report.layers)} layers, relative error {report.error:.4f}[/] "
        f"({parts}), energy kept {report.energy:.2%}; "
        f"outside the LoRA: {report.left_out:.2%} of the change"
    ]
    ending = [human_size(report.size)] if report.size else []
    ending += [f"{report.seconds:.1f} s"] if report.seconds else []
    return [*lines, ", ".join(ending)] if ending else lines


def _listed(values: Mapping[str, object] | Mapping[int, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M values" if number >= 1e6 else f"{number} values"
