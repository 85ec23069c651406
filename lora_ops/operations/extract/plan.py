"""The plan of an extraction: what will be done to which layer, known from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch

from ...adapters.checkpoint import check_checkpoint, is_controlnet
from ...adapters.layers import Convention
from ...elements import ELEMENTS, Element, element_of, loadable
from ...errors import ArgumentError, MismatchError
from ...linalg.moments import Moment, check_weighs
from ...linalg.ranks.budgets import Budget, parse_rule
from ...linalg.ranks.comparing import compared_by
from ...linalg.ranks.rules import RankRule
from ...models.activations import Activations, read_activations
from ...models.architectures import Parameter, parameters
from ...models.differences import Sides
from ...models.pairing import Pair, Pairing, pair
from ...report import counted
from ...source import TensorSource
from .kinds.table import LORA, Form, form_named

if TYPE_CHECKING:
    from typing_extensions import Unpack


NO_FACTORS = "no low-rank form (`full_differences=True` keeps it)"

#: The rank where none is given; and the most that `noise` gives a layer then: the largest in common use.
USUAL_RANK, USUAL_MOST = 32, 128


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
        relative: Under a budget, compare changes as shares of the base's weights.
        norm: Of those weights: spectral, or frobenius. None: spectral.
        kind: The form of the change: lora, dora, lokr, loha or locon-tucker.
        factor: Of a LoKr: the size that one of its two matrices is to have, on both sides of the weight, as
            LyCORIS means it; -1: as even as can be.
        convention: Whose reading a DoRA is to be best in, and its error is told of; see docs/kinds.md.
        auto_full: Keep a layer whole where its factors would be no smaller than its difference.
        activations: Second moments of what goes into the layers, of `record`: the error of their output counts
            then, not that of the weight. Not with budgets, `noise` and kinds other than lora.
    """

    dtype: torch.dtype | Element | None
    components: Sequence[str] | None
    include: Sequence[str]
    exclude: Sequence[str]
    full_differences: bool
    allow_partial: bool
    relative: bool
    norm: str | None
    kind: str
    factor: int
    convention: Convention
    auto_full: bool
    activations: TensorSource | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction will do, known from headers alone.

    Attributes:
        sides: The two checkpoints.
        pairing: What they have in common.
        rule: How many directions a layer gets.
        element: What the factors are stored as.
        full_differences: Whether parameters without a low-rank form are kept whole.
        why: Why it is this rule, in words for people, where that is not asked for.
        relative: The norm of the base's weights, as shares of which a budget compares the changes; None:
            as they are.
        ranks: What a budget gives, by target; None: a rule decides, or the changes have to be looked at first.
        form: What the change becomes.
        factor: Of a LoKr.
        convention: Whose reading of a DoRA.
        auto_full: Whether a layer is kept whole where factors would be no smaller.
        activations: What goes into the layers; None: nobody knows.
    """

    sides: Sides
    pairing: Pairing
    rule: RankRule | Budget
    element: Element
    full_differences: bool = False
    why: str | None = None
    relative: str | None = None
    ranks: Mapping[str, int] | None = None
    form: Form = LORA
    factor: int = -1
    convention: Convention = "paper"
    auto_full: bool = False
    activations: Activations | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return getattr(torch, self.element.title)

    def rule_for(self, pair: Pair) -> RankRule:
        """The rule for one layer: kernels may have their own. Of a budget the rank, or the most there can be."""
        if isinstance(self.rule, RankRule):
            return self.rule.for_kernel(pair.shape[2:])
        if self.ranks is not None:  # what has none did not change, and says so itself
            return RankRule("rank", self.ranks.get(pair.target, 1))
        own = self.rule.rule_for(pair.shape[2:])
        return RankRule("rank", self.rule.most or min(pair.matrix)) if own is None else own

    def form_for(self, pair: Pair) -> Form:
        """The form that one layer gets: not all weights can have all."""
        return self.form if self.form.is_for(pair.shape) else LORA

    def moment(self, pair: Pair) -> Moment | None:
        """What goes into one layer, read when it is asked for; None where it was not recorded."""
        return None if self.activations is None else self.activations.moment(pair.target)

    def is_left_out(self, pair: Pair) -> bool:
        """Whether the rule gives this layer no rank at all."""
        return self.rule_for(pair).leaves_out

    def why_not(self, pair: Pair) -> str | None:
        """Why a parameter without factors is left out; None: it is kept whole."""
        return None if self.full_differences else NO_FACTORS

    @property
    def whole_size(self) -> int:
        """Bytes of what is kept whole, at most, as far as it is of the parts that have no factors."""
        return 0

    def most_ranks(self, pair: Pair) -> int:
        """The largest rank that a layer can get."""
        rule, full = self.rule_for(pair), min(pair.matrix)
        return rule.first_guess(full) if rule.kind == "rank" else min(full, rule.most or full)

    def working_set(self, pair: Pair) -> int:
        """Bytes on the device while a layer is worked on; an upper estimate.

        Two stored sides, the difference and two float32 copies of it, and the Krylov spaces; for `noise` a
        copy more.
        """
        out, width = pair.matrix
        spaces = min(out, width, 8 * self.most_ranks(pair) + 256)
        form = self.form_for(pair)
        copies = form.copies + (4 if self.rule_for(pair).is_noise else 3)
        if not form.has_values:  # the normal equations
            spaces += 4 * self.most_ranks(pair) ** 2
        if self.activations is not None:  # the weighted change, and what it is weighted by
            copies += 2 + 4 * width // out
        return out * width * (2 * 4 + copies * 4) + 4 * (out + width) * spaces


def plan_extraction(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Pair two checkpoints and settle what is to be done, from headers alone.

    Args:
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        rule: How many directions a layer gets; see `ranks` and `budgets`. None: 32; where a side is stored in 8 bits or
            fewer, what stands above the rounding of that, 128 at most.
        **options: See `PlanOptions`.

    Raises:
        ArgumentError: The rule is wrong, or a pattern or a component does not exist.
        MismatchError: The checkpoints do not belong together.
    """
    return plan_named(base, tuned, rule, parameters, options)


def plan_named(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None,
    named: Callable[[TensorSource], Mapping[str, Parameter]],
    options: PlanOptions,
) -> Plan:
    """The same of checkpoints whose parameters have the names that `named` gives them."""
    for source in (base, tuned):
        check_checkpoint(source)
    if is_controlnet(tuned) and not is_controlnet(base):
        raise MismatchError(
            f"{tuned.name} is a ControlNet, whose copy of the UNet no LoRA changes; extract a Control-LoRA of it"
        )
    pairing = pair(
        base,
        tuned,
        components=options.get("components"),
        include=options.get("include", ()),
        exclude=options.get("exclude", ()),
        allow_partial=options.get("allow_partial", False),
        named=named,
    )
    asked = options.get("dtype")
    dtype = element_of(asked) if asked else _usual_dtype(tuned, pairing.candidates)
    whole = options.get("full_differences", False)
    sides = Sides(base, tuned)
    if rule is None:
        chosen, why = usual_rule(sides, pairing)
    else:
        chosen, why = parse_rule(rule, stored=True), None
    relative = compared_by(options.get("norm"), chosen, is_relative=options.get("relative", False))
    kind, factor = options.get("kind", LORA.name), options.get("factor", -1)
    plan = Plan(
        *(sides, pairing, chosen, dtype, whole, why, relative),
        form=form_named(kind, chosen, factor),
        factor=factor,
        convention=options.get("convention", "paper"),
        auto_full=options.get("auto_full", False),
        activations=activations_for(options.get("activations"), chosen, pairing, kind),
    )
    if pairing.candidates and all(map(plan.is_left_out, pairing.candidates)):
        raise ArgumentError(f"rank rule `{plan.rule}` gives rank 0 to every layer; give 1 or more")
    return plan


def activations_for(
    source: TensorSource | None,
    rule: RankRule | Budget,
    pairing: Pairing,
    kind: str,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Activations | None:
    """What goes into the layers, once it is sure that it is of these, and that rule and kind can use it.

    Args:
        source: The record; None: there is none.
        rule: How many directions a layer gets.
        pairing: The layers.
        kind: What their changes become.
        names: What the record may call their targets; None: the same.

    Raises:
        ArgumentError: Rule or kind cannot be weighed.
        LoraOpsError: See `read_activations` and `Activations.check`.
    """
    if source is None:
        return None
    check_weighs(rule)
    if kind != LORA.name:
        raise ArgumentError(
            f"kind `{kind}` is approximated as it is, not by what goes into it: activations weigh a LoRA; "
            "leave one of them out"
        )
    found = read_activations(source)
    found = found if names is None else found.renamed(names)
    found.check((both.target, both.shape) for both in pairing.candidates)
    return found


def usual_rule(sides: Sides, pairing: Pairing) -> tuple[RankRule, str | None]:
    """Return the rule where none is given, and why it is that, unless it is a plain rank."""
    found = Counter(filter(None, map(sides.coarse, pairing.candidates)))
    if not found:
        return RankRule("rank", USUAL_RANK), None
    storage = found.most_common(1)[0][0]
    return (
        RankRule("noise", most=USUAL_MOST),
        f"no rank was given, and {found.total()} of {counted(len(pairing.candidates), 'weight')} are stored in "
        f"8 bits or fewer ({storage}): what stands above the rounding of that is kept, up to rank {USUAL_MOST}",
    )


def _usual_dtype(tuned: TensorSource, pairs: Sequence[Pair]) -> Element:
    """The factors' dtype when none is asked for: that of most weights, made one that loaders read."""
    counts = Counter(tuned.result_element(both.tuned.key) for both in pairs)
    return loadable(counts.most_common(1)[0][0]) if counts else ELEMENTS["F16"]
