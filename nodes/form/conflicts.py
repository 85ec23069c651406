"""What nodes say of several adapters that are compared: cosines of all pairs, and where they are in each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from .texts import headed

if TYPE_CHECKING:
    from ...lora_ops import Conflict, SeveralComparison

# The most pairs and blocks that a node has room for.
_PAIRS, _BLOCKS = 12, 30


def conflict_text(names: Sequence[str], found: SeveralComparison) -> str:
    """How alike several adapters are, what they share, and what their sum is.

    Args:
        names: What they are called.
        found: How they compare.
    """
    from ...lora_ops.report import counted
    from ...lora_ops.text import plain

    total = found.total
    marks = [chr(ord("A") + at) for at in range(len(names))]
    pairs = list(combinations(range(len(names)), 2))
    lines = [
        f"{len(names)} LoRAs, {counted(found.shared, 'layer')} in all, {len(found.layers) - found.shared} not",
        f"norm of the sum {total.sum_norm:.4g}: {total.of_unrelated:.3f} times what unrelated changes would "
        f"give, {total.of_parallel:.3f} times what parallel ones would",
        *(
            f"{mark}  norm {norm:.4g}  {plain(name)}"
            for mark, norm, name in zip(marks, total.norms, names, strict=True)
        ),
        "cosine; directions shared, out and in (by chance); large elements shared; of those, signs apart",
        *(_pair(marks, total, *pair) for pair in pairs[:_PAIRS]),
    ]
    if len(pairs) > _PAIRS:
        lines.append(f"{len(pairs) - _PAIRS} more pairs: in the picture, and in `json`")
    blocks = found.blocks()
    if len(blocks) > 1:
        shown = pairs[: _PAIRS // 2]
        lines.append("cosines by block " + " ".join(f"{marks[i]}·{marks[j]:<4}" for i, j in shown))
        for label, block in list(blocks.items())[:_BLOCKS]:
            cosines = block.cosines
            lines.append(f"{label:<6}" + " ".join(f"{cosines[i][j]:6.3f}" for i, j in shown))
    return headed(*lines)


def _pair(marks: Sequence[str], total: Conflict, one: int, other: int) -> str:
    """The numbers of two; of those that differ by who is asked, the mean."""

    def both(matrix: Sequence[Sequence[float]]) -> float:
        return (matrix[one][other] + matrix[other][one]) / 2

    return (
        f"{marks[one]}·{marks[other]}  {total.cosines[one][other]:.4f}; "
        f"{both(total.shared_outputs):.1%} ({both(total.chance_outputs):.1%}) and "
        f"{both(total.shared_inputs):.1%} ({both(total.chance_inputs):.1%}); "
        f"{both(total.overlap):.1%}; {total.disagreement[one][other]:.1%}"
    )
