"""How several adapters are in each other's way, as tables."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from ..lora_ops.report import counted
from .layout import fill, new_table, open_console, tail

if TYPE_CHECKING:
    from ..lora_ops import Conflict, LayerConflict, SeveralComparison

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Columns of pairs that a line has room for.
_PAIRS = 10


def show_conflict(found: SeveralComparison, *, verbose: bool = False) -> None:
    """Print cosines of all pairs, what they share, cosines by block, and what their sum is."""
    console = open_console()
    total = found.total
    marks = [_mark(at) for at in range(len(found.names))]
    cosines = new_table("", "LoRA", "norm", *(f"cosine with {mark}" for mark in marks))
    for mark, name, norm, row in zip(marks, found.names, total.norms, total.cosines, strict=True):
        cosines.add_row(mark, tail(name, 36), f"{norm:.4g}", *(f"{one:.4f}" for one in row))
    console.print(cosines)
    shared = new_table(
        *("of", "in", "directions, out", "by chance", "directions, in", "by chance"),
        *("large elements", "signs apart"),
    )
    for one, other in _pairs(len(marks), both=True):
        shared.add_row(marks[one], marks[other], *_shared(total, one, other))
    shared.caption = (
        "energy of the one in the other's singular directions, and its largest elements that are among "
        f"the other's ({found.share:.0%} are, by chance); of those, signs that disagree (50 % by chance)"
    )
    console.print(shared)
    pairs = list(_pairs(len(marks)))[:_PAIRS]
    heads = [f"{marks[one]}·{marks[other]}" for one, other in pairs]
    blocks = new_table("block", "cosines", *heads)
    for label, block in found.blocks().items():
        blocks.add_row(label, "", *_cosines(block, pairs))
    console.print(blocks)
    if verbose:
        layers = new_table("layer", "kind", "ranks", *heads)

        def cells(layer: LayerConflict) -> tuple[str, ...]:
            ranks = " ".join(map(str, layer.ranks))
            return tail(layer.target, 40), layer.kind, ranks, *_cosines(layer.conflict, pairs)

        console.print(fill(layers, found.layers, cells, weigh=_weight, verbose=True))
    console.print(
        f"[bold]{counted(found.shared, 'layer')} in all, {len(found.layers) - found.shared} not: the sum has "
        f"norm {total.sum_norm:.4g}[/], {total.of_unrelated:.3f} times what unrelated changes would give, "
        f"{total.of_parallel:.3f} times what parallel ones would",
        highlight=False,
        soft_wrap=True,
    )


def _mark(at: int) -> str:
    return _LETTERS[at] if at < len(_LETTERS) else str(at + 1)


def _pairs(count: int, *, both: bool = False) -> list[tuple[int, int]]:
    """Pairs of inputs; with `both` each in both orders, which shares differ in."""
    pairs = list(combinations(range(count), 2))
    return sorted(pairs + [(other, one) for one, other in pairs]) if both else pairs


def _shared(total: Conflict, one: int, other: int) -> tuple[str, ...]:
    numbers = (
        *(total.shared_outputs, total.chance_outputs, total.shared_inputs, total.chance_inputs),
        *(total.overlap, total.disagreement),
    )
    return tuple(f"{matrix[one][other]:.1%}" for matrix in numbers)


def _cosines(conflict: Conflict, pairs: list[tuple[int, int]]) -> tuple[str, ...]:
    cosines = conflict.cosines
    return tuple(f"{cosines[one][other]:.3f}" for one, other in pairs)


def _weight(layer: LayerConflict) -> float:
    return max(layer.conflict.norms)
