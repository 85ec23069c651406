"""How alike two checkpoints are, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..lora_ops.report import counted
from ..lora_ops.text import human_error
from .layout import fill, new_table, open_console, safe, shape_text, tail

if TYPE_CHECKING:
    from ..lora_ops import CheckpointComparison, ParameterComparison


def show_checkpoints(
    found: CheckpointComparison, *, names: tuple[str, str], verbose: bool = False
) -> None:
    """Print how far apart two checkpoints are: parameters, blocks, totals, and what one alone has.

    Args:
        found: How the two compare.
        names: What the checkpoints are called.
        verbose: Whether to show every parameter.
    """
    console = open_console()
    table = new_table("parameter", "kind", "shape", "difference", "cosine")

    def cells(one: ParameterComparison) -> tuple[str, ...]:
        return (
            tail(one.name.removesuffix(".weight")),
            one.kind,
            shape_text(one.shape),
            *(_likeness(one.size, one.cosine) if one.is_finite else ("not finite", "")),
        )

    rows = found.parameters
    filled = fill(
        table,
        rows if verbose else [one for one in rows if one.is_weight],
        cells,
        weigh=lambda one: one.difference,
        verbose=verbose,
        which="furthest apart",
    )
    console.print(filled)
    groups = new_table("block", "equal", "difference", "cosine")
    for label, one in found.blocks().items():
        equal = f"{one.equal} of {one.count}"
        groups.add_row(label, equal, *_likeness(one.size, one.cosine))
    console.print(groups)
    for note in _notes(found, names):
        console.print(f"[yellow]note[/] {safe(note)}", highlight=False, soft_wrap=True)
    parts = ", ".join(f"{name} {human_error(one.size)}" for name, one in found.components().items())
    difference, cosine = _likeness(found.total.size, found.total.cosine)
    console.print(
        f"[bold]{counted(len(rows), 'parameter')} in both, {found.equal} equal: difference "
        f"{difference} of {safe(names[0])}[/] ({parts}), cosine {cosine}",
        highlight=False,
        soft_wrap=True,
    )


def _likeness(size: float, cosine: float) -> tuple[str, str]:
    return human_error(size), f"{cosine:.6f}"


def _notes(found: CheckpointComparison, names: tuple[str, str]) -> Iterator[str]:
    for name, alone in zip(names, found.only, strict=True):
        if alone:
            yield f"{counted(len(alone), 'parameter')} only in {name}, the first `{alone[0]}`"
    if found.reshaped:
        name, *shapes = found.reshaped[0]
        first, second = map(shape_text, shapes)
        what = counted(len(found.reshaped), "parameter")
        yield f"{what} of another shape, the first `{name}`: {first} and {second}"
    if found.not_finite:
        what = counted(len(found.not_finite), "parameter")
        yield f"{what} with NaN or infinity, in no sum, the first `{found.not_finite[0]}`"
    dtypes = Counter(one.storages for one in found.parameters if one.is_weight)
    for (first, second), count in dtypes.items():
        if first != second:
            yield f"{counted(count, 'parameter')} stored as {first} and as {second}"
