"""The plan of an extraction: what will be done to which layer, known from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch

from ...adapters.checkpoint import check_checkpoint
from ...errors import ArgumentError
from ...linalg.ranks.rules import RankRule, parse_rank
from ...linalg.storage import loadable
from ...models.differences import Sides
from ...models.pairing import Pair, Pairing, pair
from ...source import TensorSource

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PlanOptions(TypedDict, total=False):
    """Options of an extraction, besides its rank rule.

    Attributes:
        dtype: Dtype of the factors: float16, bfloat16 or float32. None: the tuned checkpoint's, if
            it is one of these; else float32 for float64, float16 for float8, bfloat16 for what is stored
            with scales.
        components: Of `unet`, `te`, `vae`; None: the unet and the text encoders.
        include: Shell patterns; only targets that fit one are extracted.
        exclude: Shell patterns; targets that fit one are not extracted.
        full_differences: Keep biases, norms, embeddings and tables whole, too.
        allow_partial: Go on where fewer than 95 % of the weights are found on both sides.
    """

    dtype: torch.dtype | None
    components: Sequence[str] | None
    include: Sequence[str]
    exclude: Sequence[str]
    full_differences: bool
    allow_partial: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction will do, known from headers alone.

    Attributes:
        sides: The two checkpoints.
        pairing: What they have in common.
        rule: How many directions a layer gets.
        dtype: Of the factors.
        full_differences: Whether parameters without a low-rank form are kept whole.
    """

    sides: Sides
    pairing: Pairing
    rule: RankRule
    dtype: torch.dtype
    full_differences: bool = False

    def rule_for(self, pair: Pair) -> RankRule:
        """The rule for one layer: kernels may have their own."""
        return self.rule.for_kernel(pair.shape[2:])

    def is_left_out(self, pair: Pair) -> bool:
        """Whether the rule gives this layer no rank at all."""
        return self.rule_for(pair).leaves_out

    def most_ranks(self, pair: Pair) -> int:
        """The largest rank that a layer can get."""
        rule, full = self.rule_for(pair), min(pair.matrix)
        return rule.first_guess(full) if rule.kind == "rank" else min(full, rule.most or full)

    def working_set(self, pair: Pair) -> int:
        """Bytes on the device while a layer is worked on; an upper estimate.

        Two stored sides, the difference and two float32 copies of it, and the Krylov spaces.
        """
        out, width = pair.matrix
        spaces = min(out, width, 8 * self.most_ranks(pair) + 256)
        return out * width * (2 * 4 + 3 * 4) + 4 * (out + width) * spaces


def plan_extraction(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Pair two checkpoints and settle what is to be done, from headers alone.

    Args:
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        rule: How many directions a layer gets; see `ranks`.
        **options: See `PlanOptions`.

    Raises:
        ArgumentError: The rule is wrong, or a pattern or a component does not exist.
        MismatchError: The checkpoints do not belong together.
    """
    for source in (base, tuned):
        check_checkpoint(source)
    pairing = pair(
        base,
        tuned,
        components=options.get("components"),
        include=options.get("include", ()),
        exclude=options.get("exclude", ()),
        allow_partial=options.get("allow_partial", False),
    )
    dtype = options.get("dtype") or _usual_dtype(tuned, pairing.candidates)
    whole = options.get("full_differences", False)
    plan = Plan(Sides(base, tuned), pairing, parse_rank(rule), dtype, whole)
    if pairing.candidates and all(map(plan.is_left_out, pairing.candidates)):
        raise ArgumentError(f"rank rule `{plan.rule}` gives rank 0 to every layer; give 1 or more")
    return plan


def _usual_dtype(tuned: TensorSource, pairs: Sequence[Pair]) -> torch.dtype:
    """The factors' dtype when none is asked for: that of most weights, made one that loaders read."""
    counts = Counter(tuned.result_dtype(both.tuned.key) for both in pairs)
    return loadable(counts.most_common(1)[0][0]) if counts else torch.float16
