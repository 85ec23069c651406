"""Checks of the numbers themselves: the tensors are read one after another, and none is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ...report import counted
from ...run.workers import Progress
from .findings import Finding, finding
from .header import leave_out
from .subject import Part, Subject

# Groups of roles by kind: the change is zero if each group has a tensor of zeros.
_ZERO: dict[str, tuple[tuple[str, ...], ...]] = {
    "lora": (("up", "down", "mid"),),
    "loha": (("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"),),
    "lokr": (("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"),),
    "glora": (("a1", "a2"), ("b1", "b2")),
    "oft": (("blocks",), ("rescale",)),
    "boft": (("blocks",), ("rescale",)),
    "full": (("diff",),),
    "ia3": (("weight",),),
}


def check_values(file: Subject, progress: Progress | None = None) -> Iterator[Finding]:
    """Yield NaN, infinity, and layers that change nothing.

    Args:
        file: All of it is read.
        progress: Called after each layer.
    """
    bad: list[str] = []
    zero: list[str] = []
    for done, part in enumerate(file.parts, start=1):
        most = {role: _most(file, key) for role, key in part.keys.items()}
        bad += [part.keys[role] for role, value in most.items() if not math.isfinite(value)]
        if _is_zero(part, most):
            zero.append(part.name)
        if progress is not None:
            progress(done, len(file.parts), part.name)
    bad += [key for key in file.extras if not math.isfinite(_most(file, key))]
    if bad:
        yield finding(
            "not-finite",
            f"NaN or infinity in {counted(len(bad), 'tensor')}: pictures turn black",
            bad,
            "no tool gives lost numbers back; take an earlier state of the training",
        )
    if zero:
        yield finding(
            "layer-zero",
            f"{counted(len(zero), 'layer')} of {len(file.parts)} all zero: they change nothing",
            zero,
            leave_out(file, zero),
        )


def _most(file: Subject, key: str) -> float:
    """The largest absolute value; NaN if there is a NaN, 0 for an empty tensor."""
    tensor = file.source.tensor(key)
    if not tensor.numel():
        return 0.0
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif not tensor.is_floating_point():
        tensor = tensor.double()  # torch has no maximum of some integers, nor of truth values
    elif tensor.itemsize == 1:
        tensor = tensor.float()
    return float(tensor.abs().max())


def _is_zero(part: Part, most: dict[str, float]) -> bool:
    groups = [[role for role in group if role in most] for group in _ZERO.get(part.kind, ())]
    known = [group for group in groups if group]
    return (
        bool(known)
        and not part.is_dora
        and all(any(most[role] == 0 for role in group) for group in known)
    )
