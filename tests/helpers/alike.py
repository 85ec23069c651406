"""Comparing what operations return, however deep numbers lie in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass

from torch import Tensor


def check_alike(
    one: object,
    other: object,
    tensors: Callable[[Tensor, Tensor], None],
    near: Callable[[float], object] | None = None,
) -> None:
    """Check that two results are of one form, with equal values.

    Args:
        one: Any nest of dicts, lists, tuples and dataclasses.
        other: What it should be.
        tensors: Checks two tensors.
        near: What makes of a number something that equals all that are near it; None: they are equal.
    """
    assert type(one) is type(other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        tensors(one, other)
    elif isinstance(one, dict) and isinstance(other, dict):
        check_alike(list(one.items()), list(other.items()), tensors, near)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            check_alike(mine, theirs, tensors, near)
    elif is_dataclass(one):
        for field in fields(one):
            check_alike(getattr(one, field.name), getattr(other, field.name), tensors, near)
    elif near is not None and isinstance(one, float) and isinstance(other, float):
        assert one == near(other)
    else:
        assert one == other
