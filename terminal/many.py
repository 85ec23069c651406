"""What became of several files that one command worked on, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..lora_ops import LoraOpsError, Report
from ..lora_ops.report import counted
from ..lora_ops.text import human_error, human_size
from .layout import new_table, open_console, print_notes, safe
from .tables import show_report
from .wording import worded

if TYPE_CHECKING:
    from ..lora_ops import Preview


def show_extractions(
    results: Mapping[Path, Report | Preview | LoraOpsError], *, verbose: bool = False
) -> None:
    """Print a row for each tuned checkpoint: its LoRA, or what it would be, or why there is none.

    Args:
        results: By the tuned checkpoint.
        verbose: Whether to print all layers of each first.
    """
    console = open_console()
    for path, result in results.items():
        if verbose and isinstance(result, Report):
            console.print(f"[bold]{safe(path.name)}[/]", highlight=False, soft_wrap=True)
            show_report(result, verbose=True)
    table = new_table("tuned", "LoRA", "rank", "error", "left out", "size")
    for path, result in results.items():
        table.add_row(safe(path.name), *_cells(result))
    console.print(table)
    notes: dict[str, list[str]] = {}
    for path, result in results.items():
        for note in () if isinstance(result, LoraOpsError) else result.notes:
            notes.setdefault(note, []).append(path.name)
    made = sum(not isinstance(result, LoraOpsError) for result in results.values())
    print_notes(
        console,
        (note if len(of) == made else f"{', '.join(of)}: {note}" for note, of in notes.items()),
    )


def _cells(result: Report | Preview | LoraOpsError) -> tuple[str, ...]:
    if isinstance(result, LoraOpsError):
        return (f"[red]none[/]: {safe(worded(str(result)))}",)
    if isinstance(result, Report):
        ranks = sorted({one.rank for one in result.layers})
        figures = (human_error(result.error), f"{result.left_out:.2%}", human_size(result.size))
    else:
        ranks = sorted({one.rank_at_most or 0 for one in result.layers})
        figures = ("", "", f"at most {human_size(result.size_at_most)}")
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} - {ranks[-1]}"
    return (counted(len(result.layers), "layer"), span, *figures)
