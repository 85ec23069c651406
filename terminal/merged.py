"""What became of a merge, as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

from ..lora_ops import MergeCheck, MergeReport, Report
from ..lora_ops.operations.merge.step import MergedLayer
from ..lora_ops.operations.weights.gguf_file_plan import NOT_HELD
from ..lora_ops.report import counted
from ..lora_ops.text import human_error, human_size
from .layout import fill, new_table, open_console, print_notes, print_stored, safe, shape_text, tail

_MOST = 12  # tensors that differ, of those that are shown


def show_merged(report: Report, *, verbose: bool = False) -> None:
    """Print how far each component and block moved, and how much of that survived rounding."""
    found = cast("MergeReport", report)
    layers = [cast("MergedLayer", layer) for layer in found.layers]
    console = open_console()
    if verbose:
        table = new_table("weight", "kind", "shape", "change", "kept", "cosine")
        for layer in layers:
            table.add_row(
                tail(layer.target),
                layer.kind,
                shape_text(layer.shape),
                human_error(layer.size),
                f"{layer.gain:.4f}",
                f"{layer.cosine:.6f}",
            )
        console.print(table)
        print_stored(console, found)
    table = new_table("component", "weights", "change", "kept", "cosine")
    for component, size in found.sizes.items():
        members = [layer for layer in layers if layer.component == component]
        kept, cosine = _survived(members)
        table.add_row(
            safe(component), str(len(members)), human_error(size), f"{kept:.4f}", f"{cosine:.6f}"
        )
    if layers:
        console.print(table)
    if found.measured < 1:
        console.print(
            f"change, kept and cosine are measured on {found.measured:.0%} of the numbers",
            highlight=False,
        )
    if found.blocks:
        told = ", ".join(f"{name} {human_error(size)}" for name, size in found.blocks.items())
        console.print(f"change by block: {safe(told)}", highlight=False, soft_wrap=True)
    for reason, number in Counter(skip.reason for skip in found.skips).items():
        console.print(
            f"{'left out' if reason in NOT_HELD else 'as in the base'}: "
            f"{counted(number, 'weight')}, {safe(reason)}",
            highlight=False,
        )
    print_notes(console, found.notes)
    taken = f"{found.taken} taken from another, " if found.taken else ""
    others = sum(map(len, found.only_others.values()))
    console.print(
        f"[bold]{counted(found.merged, 'weight')} merged, {taken}"
        f"{counted(found.copied, 'tensor')} copied[/]; only in the base {len(found.only_base)}, "
        f"only in others {others}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"{human_size(found.size)}, {found.seconds:.1f} s", highlight=False)


def _survived(layers: Sequence[MergedLayer]) -> tuple[float, float]:
    """Gain and cosine of the change as stored with the change as meant, of several weights together."""
    meant = math.fsum(one.norm**2 for one in layers)
    along = math.fsum(one.gain * one.norm**2 for one in layers)
    # |stored - meant|² = |stored|² - 2 <stored, meant> + |meant|²
    lost = math.fsum(one.residual**2 for one in layers)
    stored = max(0.0, lost + 2 * along - meant)
    if not meant or not stored:
        return 0.0, 0.0
    return along / meant, min(1.0, along / math.sqrt(meant * stored))


def show_check(found: MergeCheck, *, verbose: bool = False) -> None:
    """Print whether a merged file is what its recipe gives."""
    console = open_console()
    if found.different:
        table = new_table("tensor that differs", "by")
        filled = fill(
            table,
            list(found.different.items()),
            lambda row: (tail(row[0], 80), human_error(row[1])),
            weigh=lambda row: row[1],
            verbose=verbose,
        )
        console.print(filled)
    for what, keys in (("only in the recipe", found.missing), ("only in the file", found.added)):
        for key in keys if verbose else keys[:_MOST]:
            console.print(f"{what}: {safe(key)}", highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{counted(found.equal, 'tensor')} the same as the recipe gives, "
        f"{len(found.different)} different[/]; only in the recipe {len(found.missing)}, only in the "
        f"file {len(found.added)}",
        highlight=False,
        soft_wrap=True,
    )
