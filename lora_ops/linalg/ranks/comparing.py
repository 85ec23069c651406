"""What a budget compares the changes of layers by: their own size, or shares of the weights that they change."""

from __future__ import annotations

from ...errors import ArgumentError
from ..norms import check_norm
from .budgets import Budget
from .rules import RankRule


def compared_by(norm: str | None, rule: RankRule | Budget, *, is_relative: bool) -> str | None:
    """Return the norm of the weights that changes are compared with; None: changes count as they are.

    Args:
        norm: That is asked for; None: spectral.
        rule: How ranks are chosen.
        is_relative: Whether changes are compared as shares of weights.

    Raises:
        ArgumentError: There is no such norm, or nothing that it is for.
    """
    if norm is not None:
        check_norm(norm)
    if is_relative:
        _check_compares(rule)
        return norm or "spectral"
    if norm is not None:
        raise ArgumentError(
            f"the {norm} norm is of weights that a budget compares changes with, and it compares with none; "
            "say which weights, or leave the norm out"
        )
    return None


def _check_compares(rule: RankRule | Budget) -> None:
    """Refuse a rule for which it means nothing how large the weights are that are changed.

    Raises:
        ArgumentError: It is no budget.
    """
    if isinstance(rule, RankRule):
        raise ArgumentError(
            f"rank rule `{rule}` looks at one layer at a time, so weights to compare with change "
            "nothing; use a budget: size=, mean= or total_error="
        )
