"""How every table looks: one style, names made harmless, the worst layers of a long list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..lora_ops.report import counted
from ..lora_ops.text import estimate_text, human_error, human_size, plain
from .wording import worded

if TYPE_CHECKING:
    from ..lora_ops import LayerReport, Report

# Rows shown of a long list of layers: those one wants to know about.
_MOST = 12
Row = TypeVar("Row")


def open_console() -> Console:
    """A console as wide as the terminal; 112 columns, enough for any table, where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=112)


def safe(text: str) -> str:
    """Text that is shown as it is, whatever it holds."""
    return escape(plain(text))


def tail(target: str, length: int = 50) -> str:
    """The end of a long name: what tells layers apart stands there."""
    return safe(target if len(target) <= length else f"…{target[1 - length :]}")


def new_table(*columns: str) -> Table:
    """A table with these heads; numbers, from the third column on, to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    return table


def fill(
    table: Table,
    rows: Sequence[Row],
    cells: Callable[[Row], Iterable[str]],
    *,
    weigh: Callable[[Row], float],
    verbose: bool,
    which: str = "worst",
) -> Table:
    """Add rows: all, in their order, or the heaviest, in order of weight, and how many there are.

    Args:
        table: The table to fill.
        rows: All that could be shown.
        cells: Gives the texts of a row's cells.
        weigh: Gives how much a row matters.
        verbose: Whether to show all rows.
        which: What to call the heaviest rows, such as `worst`.
    """
    shown = rows
    if not verbose and len(rows) > _MOST:
        shown = sorted(rows, key=weigh, reverse=True)[:_MOST]
        table.caption = f"the {_MOST} {which} of {len(rows)}; -v shows all"
    for row in shown:
        table.add_row(*cells(row))
    return table


def shape_text(shape: Sequence[int]) -> str:
    """Sizes of the axes: 320x320x3x3."""
    return "x".join(map(str, shape))


def output_error(layer: LayerReport, by_output: bool) -> tuple[str, ...]:
    """The cell of the error by activations, where the table has that column."""
    error = layer.weighted_error
    return ("" if error is None else human_error(error),) if by_output else ()


def print_rest(console: Console, report: Report, *, outside: str) -> None:
    """Print what was left out, notes, and totals.

    Args:
        console: Where to print.
        report: The report.
        outside: What to call the part of the change that is in no layer.
    """
    print_skips(console, report)
    print_notes(console, report.notes)
    parts = ", ".join(f"{name} {human_error(error)}" for name, error in report.components().items())
    console.print(
        f"[bold]{counted(len(report.layers), 'layer')}, relative error {human_error(report.error)}[/] "
        f"({parts}), energy kept {report.energy:.2%}; "
        f"{outside}: {report.left_out:.2%} of the {_whole(report)}",
        highlight=False,
        soft_wrap=True,
    )
    if report.weighted_error is not None:
        told = f"of the layers' output, by the activations: relative error {human_error(report.weighted_error)}"
        console.print(told, highlight=False, soft_wrap=True)
    rounding, error = report.rounding, report.estimated_error
    if rounding is not None and error is not None:
        console.print(estimate_text(rounding, error), highlight=False, soft_wrap=True)
    ending = [human_size(report.size)] if report.size else []
    ending += [f"{report.seconds:.1f} s"] if report.seconds else []
    if ending:
        console.print(", ".join(ending), highlight=False, soft_wrap=True)


def _whole(report: Report) -> str:
    """What shares are of: where rounding is estimated, some of the difference is no change."""
    return "change" if report.rounding is None else "difference"


def print_stored(console: Console, report: Report) -> None:
    """Print how far each weight that is stored with scales is from what it was."""
    table = new_table("stored with scales", "kind", "shape", "error")
    for one in report.stored:
        table.add_row(tail(one.target), one.kind, shape_text(one.shape), human_error(one.error))
    if report.stored:
        console.print(table)


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what is worth knowing, a line each."""
    for note in notes:
        console.print(f"[yellow]note[/] {safe(worded(note))}", soft_wrap=True)


def print_skips(console: Console, report: Report) -> None:
    """Print what was left out, by the reason."""
    table = new_table("left out", "because", "tensors", f"share of the {_whole(report)}")
    for (reason, kind), (tensors, share) in report.reasons().items():
        table.add_row(kind, safe(worded(reason)), str(tensors), f"{share:.2%}")
    if report.skips:
        console.print(table)
