"""The forms that a change can be extracted in: data, and what all of them are asked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ....adapters.formats import CONTROL
from ....errors import ArgumentError
from ....linalg.ranks.budgets import Budget
from ....linalg.ranks.rules import RankRule
from .change import Change, Made, pair_size
from .dora import make_dora
from .loha import loha_rank, loha_size, make_loha
from .lokr import lokr_rank, lokr_size, make_lokr
from .lora import make_lora
from .tucker import has_core, make_tucker, tucker_rank, tucker_size

# Of a weight's shape, the rank that is asked for, and the factor of a LoKr.
Counter = Callable[[Sequence[int], int, int], int]


def _pair_size(shape: Sequence[int], rank: int, _factor: int) -> int:
    return pair_size(shape, rank)


def _dora_size(shape: Sequence[int], rank: int, _factor: int) -> int:
    return pair_size(shape, rank) + 2 * shape[0]  # the magnitudes are float32


def _always(_shape: Sequence[int]) -> bool:
    return True


def _same_rank(_shape: Sequence[int], rank: int, _factor: int) -> int:
    return rank


@dataclass(frozen=True, slots=True)
class Form:
    """One form.

    Attributes:
        name: What the user calls it.
        title: What people call it.
        make: Approximates a change; the numbers are rounded afterwards.
        size: How many numbers a layer has at most.
        rank: The largest rank that its change can have.
        arguments: What LyCORIS records of a network of this form; empty for kohya's own.
        has_values: Whether it has singular values that a rule can be asked about.
        takes_factor: Whether it has a factor.
        share: Which part of a LoRA's directions it gets, so that it is as large: 1 / 2 for two pairs.
        is_for: Whether weights of a shape get it; others are plain LoRA.
        copies: Of the difference, float32, that it is made by, besides those of a LoRA.
    """

    name: str
    title: str
    make: Callable[[Change], Made]
    size: Counter = _pair_size
    rank: Counter = _same_rank
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    has_values: bool = True
    takes_factor: bool = False
    share: float = 1.0
    is_for: Callable[[Sequence[int]], bool] = _always
    copies: int = 0

    def __reduce__(self) -> tuple[Callable[[str], Form], tuple[str]]:
        """Be the one of that name in another process too: which it is decides how a layer is made."""
        return _known, (self.name,)


def _known(name: str) -> Form:
    return FORMS[name]


LORA = Form("lora", "LoRA", make_lora)
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        LORA,
        Form(
            "dora",
            "DoRA",
            make_dora,
            _dora_size,
            arguments={"algo": "locon", "dora_wd": "True", "wd_on_output": "True"},
            copies=5,
        ),
        Form(
            "lokr",
            "LoKr",
            make_lokr,
            lokr_size,
            lokr_rank,
            arguments={"algo": "lokr"},
            takes_factor=True,
            copies=3,
        ),
        Form(
            "loha",
            "LoHa",
            make_loha,
            loha_size,
            loha_rank,
            arguments={"algo": "loha"},
            has_values=False,
            share=0.5,
            copies=6,
        ),
        Form(
            "locon-tucker",
            "LoRA with Tucker cores",
            make_tucker,
            tucker_size,
            tucker_rank,
            arguments={"algo": "locon", "use_tucker": "True"},
            is_for=has_core,
            copies=3,
        ),
    )
}


def form_named(name: str, rule: RankRule | Budget, factor: int) -> Form:
    """Return the form of that name, once it is sure that it can follow the rule and the factor.

    Raises:
        ArgumentError: There is none of that name, it cannot follow the rule, or it has no factor.
    """
    if name == CONTROL.name:
        raise ArgumentError(
            "a Control-LoRA is made of a ControlNet and its checkpoint: plan it with `plan_control_file`"
        )
    if name not in FORMS:
        known = (*FORMS, CONTROL.name)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(known)}"
        raise ArgumentError(f"unknown kind `{name}`; {hint}")
    form = FORMS[name]
    if isinstance(rule, Budget) and form is not LORA:
        raise ArgumentError(
            f"`{rule}` shares ranks out between LoRAs; a {form.title} takes a rule for each layer"
        )
    rules = [] if isinstance(rule, Budget) else [rule, *([rule.conv] if rule.conv else [])]
    for one in rules:
        if not form.has_values and one.kind not in ("rank", "noise"):
            raise ArgumentError(
                f"rank rule `{one}` asks about singular values, and a {form.title} has none; give a rank, "
                "such as 8"
            )
    if factor != -1 and not form.takes_factor:
        raise ArgumentError(
            f"a factor of {factor} is for a LoKr, and this is a {form.title}; leave it out"
        )
    if factor == 0 or factor < -1:
        raise ArgumentError(
            f"a factor of {factor}: give a whole number from 1, or -1 for the most even split"
        )
    return form
