"""What became of adapters and checkpoints that were edited, as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..lora_ops import EditReport, LoraOpsError, Preview
from ..lora_ops.report import counted
from ..lora_ops.text import human_error, human_size, plain
from .layout import (
    fill,
    new_table,
    open_console,
    output_error,
    print_notes,
    print_rest,
    print_skips,
    print_stored,
    shape_text,
    tail,
)

if TYPE_CHECKING:
    from ..lora_ops import BakedLayer, Comparison, LayerComparison, LayerReport, Report

_OUTSIDE = "left out"


def show_edit(report: Report, *, verbose: bool = False) -> None:
    """Print the ranks of a resized adapter, before and after, and its errors."""
    console = open_console()
    by_output = report.weighted_error is not None
    outputs = ["error of output"] if by_output else []
    table = new_table("layer", "kind", "shape", "rank", "error", "energy kept", *outputs)

    def cells(layer: EditReport) -> tuple[str, ...]:
        return (
            tail(layer.target),
            layer.kind,
            shape_text(layer.shape),
            f"{layer.was[0]} → {layer.rank}",
            human_error(layer.error),
            f"{layer.energy:.2%}",
            *output_error(layer, by_output),
        )

    rows = _layers(report)
    console.print(fill(table, rows, cells, weigh=lambda one: one.residual, verbose=verbose))
    print_rest(console, report, outside=_OUTSIDE)


def show_strengths(report: Report, *, verbose: bool = False) -> None:
    """Print the strengths of a scaled adapter: how many layers have each, or all."""
    console = open_console()
    if verbose:
        table = new_table("layer", "kind", "rank", "strength")
        for layer in _layers(report):
            strength = f"{layer.coefficients[0]:g}"
            table.add_row(tail(layer.target), layer.kind, str(layer.rank), strength)
    else:
        table = new_table("strength", "layers")
        counts = Counter(layer.coefficients[0] for layer in _layers(report))
        for strength, number in sorted(counts.items(), reverse=True):
            table.add_row(f"{strength:g}", str(number))
    console.print(table)
    print_rest(console, report, outside=_OUTSIDE)


def show_converted(report: Report, *, verbose: bool = False) -> None:
    """Print what a converted adapter holds: how many layers of each kind and rank, or all."""
    console = open_console()
    layers = _layers(report)
    if verbose:
        table = new_table("layer", "kind", "shape", "rank", "error")
        for layer in layers:
            table.add_row(
                tail(layer.target),
                layer.kind,
                shape_text(layer.shape),
                str(layer.rank),
                human_error(layer.error),
            )
    else:
        table = new_table("kind", "rank", "layers")
        for (kind, rank), number in sorted(Counter((x.kind, x.rank) for x in layers).items()):
            table.add_row(kind, str(rank), str(number))
    console.print(table)
    print_rest(console, report, outside=_OUTSIDE)


def show_sum(report: Report, *, verbose: bool = False) -> None:
    """Print what each input was multiplied by in each layer of a sum, ranks and errors."""
    console = open_console()
    rows = _layers(report)
    made = any(layer.cosine is not None for layer in rows)
    columns = ("layer", "kind", "rank", "times", "norm", "error")
    table = new_table(*columns, *(["with the sum"] if made else []))

    def cells(layer: EditReport) -> tuple[str, ...]:
        ranks = " + ".join(str(rank) for rank in layer.was if rank)
        cosine = "" if layer.cosine is None else f"{layer.cosine:.3f}"
        return (
            tail(layer.target),
            layer.kind,
            f"{ranks} → {layer.rank}",
            " ".join(f"{number:.4g}" for number in layer.coefficients),
            f"{layer.norm:.4g}",
            human_error(layer.error),
            *([cosine] if made else []),
        )

    filled = fill(
        table, rows, cells, weigh=lambda one: one.norm, verbose=verbose, which="strongest"
    )
    console.print(filled)
    print_rest(console, report, outside=_OUTSIDE)


def show_baked(report: Report, *, verbose: bool = False) -> None:
    """Print how much of each change survived the rounding of the checkpoint."""
    console = open_console()
    table = new_table("weight", "kind", "shape", "error", "kept", "cosine")

    def cells(layer: BakedLayer) -> tuple[str, ...]:
        return (
            tail(layer.target),
            layer.kind,
            shape_text(layer.shape),
            human_error(layer.error),
            f"{layer.gain:.4f}",
            f"{layer.cosine:.6f}",
        )

    rows = [cast("BakedLayer", layer) for layer in report.layers]
    console.print(fill(table, rows, cells, weigh=lambda one: one.residual, verbose=verbose))
    if verbose:
        print_stored(console, report)
    print_rest(console, report, outside=_OUTSIDE)


def show_requantised(report: Report, *, verbose: bool = False) -> None:
    """Print how far each weight that was written with scales is from what it was."""
    console = open_console()
    table = new_table("weight", "kind", "shape", "error")

    def cells(layer: LayerReport) -> tuple[str, ...]:
        return tail(layer.target), layer.kind, shape_text(layer.shape), human_error(layer.error)

    rows = report.layers
    if rows:
        console.print(fill(table, rows, cells, weigh=lambda one: one.error, verbose=verbose))
    print_skips(console, report)
    print_notes(console, report.notes)
    told = f"{counted(len(rows), 'weight')} written with scales" if rows else "no weight has scales"
    error = f", relative error {human_error(report.error)}" if rows else ""
    console.print(
        f"[bold]{told}{error}[/]; {human_size(report.size)}, {report.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def show_comparison(found: Comparison, *, verbose: bool = False) -> None:
    """Print how alike two adapters are."""
    console = open_console()
    table = new_table("layer", "kind", "ranks", "norms", "cosine", "distance")

    def cells(layer: LayerComparison) -> tuple[str, ...]:
        return (
            tail(layer.target),
            layer.kind,
            " ".join(map(str, layer.ranks)),
            " ".join(f"{norm:.4g}" for norm in layer.norms),
            f"{layer.cosine:.4f}",
            human_error(layer.distance),
        )

    filled = fill(
        table,
        found.layers,
        cells,
        weigh=lambda one: max(one.norms),
        verbose=verbose,
        which="strongest",
    )
    console.print(filled)
    first, second = found.norms
    alone = len(found.layers) - found.shared
    console.print(
        f"[bold]{counted(found.shared, 'layer')} in both, {alone} in one alone: "
        f"cosine {found.cosine:.4f}, distance {human_error(found.distance)}[/] "
        f"(norms {first:.4g} and {second:.4g})",
        highlight=False,
        soft_wrap=True,
    )


def file_line(name: Path, result: Report | Preview | LoraOpsError) -> str:
    """One line for one file of a folder: what became of it, or would."""
    if isinstance(result, LoraOpsError):
        return f"{plain(name)}: {plain(str(result))}"
    if isinstance(result, Preview):
        ranks = sorted({one.rank_at_most or 0 for one in result.layers})
        size = human_size(result.size_at_most)
        return f"{plain(name)}: rank at most {ranks[-1]}, at most {size}; nothing was written"
    before = sorted({layer.was[0] for layer in _layers(result)})
    after = sorted({layer.rank for layer in _layers(result)})
    return (
        f"{plain(name)}: rank {_span(before)} → {_span(after)}, error {human_error(result.error)}, "
        f"{human_size(result.size)}"
    )


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _layers(report: Report) -> list[EditReport]:
    return [layer for layer in report.layers if isinstance(layer, EditReport)]
