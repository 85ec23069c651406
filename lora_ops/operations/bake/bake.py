"""Bake: add adapters to the weights of a checkpoint, in float32, rounded once.

Every tensor is treated by itself, in tiles of rows small enough to stay in cache. The report says
how much of each change is still there once the sum is rounded to the dtype that stores it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...adapters.formats import component
from ...adapters.layers import Convention, LokrLayer, LoraLayer, ReplacementLayer
from ...adapters.strengths.ingredient import Ingredient
from ...linalg import frobenius, inner
from ...report import LayerReport, Report, Skip
from ...run.devices import Placement
from ...run.job import Work
from ...run.stream import stream
from ...run.workers import Progress
from ...source import TensorSource
from ..reasons import STRENGTH_ZERO
from ..weights.change import BakedLayer
from ..weights.gguf_file_plan import LEFT_OUT
from ..weights.shares import Share
from ..weights.storing import stored_layers, storing_notes
from ..weights.survival import CHANCE, survival_notes
from ..weights.terms import matrix
from ..weights.written import tensor_jobs
from .plan import BakePlan, plan_bake
from .tensor import Baked, bake_tensor

NO_PARAMETER = "not in the checkpoint"


def bake(
    checkpoint: TensorSource,
    ingredients: Sequence[Ingredient],
    *,
    dtype: torch.dtype | None = None,
    allow_partial: bool = False,
    sign: int = 1,
    dora: Convention = "paper",
    rounding: str = "nearest",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Return a checkpoint with adapters baked in, all in memory, and the report.

    Args:
        checkpoint: What is changed; a dict of tensors as `DictSource(tensors)`.
        ingredients: The adapters, each with its strength.
        dtype: Of the result; None: each tensor as it is stored.
        allow_partial: Leave out layers that the checkpoint has no parameter for.
        sign: 1 to bake, -1 to unbake.
        dora: Whose convention, of kinds that programs read differently; see docs/kinds.md.
        rounding: See `plan_bake`.
        seed: See there.
        progress: Called after each tensor.

    Raises:
        LoraOpsError: See `plan_bake` and `run_bake`.
    """
    started = time.perf_counter()
    plan = plan_bake(
        *(checkpoint, ingredients),
        dtype=dtype,
        allow_partial=allow_partial,
        sign=sign,
        dora=dora,
        rounding=rounding,
        seed=seed,
    )
    baked = list(run_bake(plan, progress=progress))
    report = summarise_bake(plan, (one for tensor in baked for one in tensor.reports))
    report = replace(report, seconds=time.perf_counter() - started)
    return {one.key: one.tensor for one in baked}, report


def run_bake(
    plan: BakePlan, *, workers: int = 2, progress: Progress | None = None
) -> Iterator[Baked]:
    """Yield every tensor of the result, in the checkpoint's order; a few of them in memory.

    Args:
        plan: From `plan_bake`.
        workers: Tensors side by side.
        progress: Called after each tensor.

    Raises:
        NonFiniteError: NaN or infinity in what is added up, or out of the range of the dtype.
    """
    placement = Placement(torch.device("cpu"), workers)
    return stream(
        Work(tensor_jobs(plan.tensors), partial(_compute, plan)),
        placement,
        ahead=3,
        progress=progress,
    )


def _compute(plan: BakePlan, keys: Sequence[str], _: Placement) -> list[Baked]:
    return [bake_tensor(plan, key) for key in keys]


def summarise_bake(plan: BakePlan, reports: Iterable[LayerReport | Skip]) -> Report:
    """Return the report: what was changed, what was not and why, and a note where rounding ate it.

    Args:
        plan: From `plan_bake`.
        reports: Those of all tensors.
    """
    known = list(reports)
    layers = tuple(one for one in known if isinstance(one, BakedLayer))
    skips = [one for one in known if isinstance(one, Skip)]
    skips += [_skip(share, NO_PARAMETER, _norm(share)) for share in plan.lost]
    skips += [_skip(share, STRENGTH_ZERO, 0.0) for share in plan.idle]
    skips += [_skip(share, LEFT_OUT, _norm(share)) for share in plan.outside]
    skips += plan.gguf.skips if plan.gguf else ()
    stored = stored_layers(known)
    notes = (*plan.notes, *storing_notes(stored), *_notes(plan, layers))
    return Report(layers, tuple(skips), notes, stored=stored)


def _notes(plan: BakePlan, layers: Sequence[BakedLayer]) -> Iterator[str]:
    if not any(layer.cosine for layer in layers):
        yield "no number of the checkpoint changed: the layers are zero, cancel, or were rounded away"
        return
    yield from survival_notes(
        layers,
        plan.tensors.values(),
        by_chance=plan.wanted.seed is not None,
        wider="use a wider `dtype=`",
        ways=(CHANCE, "apply the LoRA at run time"),
    )


def _skip(share: Share, reason: str, norm: float) -> Skip:
    return Skip(share.name, component(share.name), share.module.kind, reason, norm)


def _norm(share: Share) -> float:
    """Frobenius norm of what a share would have added; 0 of what only the weight could tell.

    A replacement of what is not there would have added all of itself.
    """
    layer = share.read()
    if isinstance(layer, ReplacementLayer):
        return float(frobenius(matrix(layer.set_weight.float())).item()) if share.strength else 0.0
    if layer.needs_base:
        return 0.0
    if isinstance(layer, LoraLayer):
        factors = layer.factors(share.strength)
        return math.sqrt(max(0.0, float(inner(*factors, *factors))))
    if isinstance(layer, LokrLayer):
        return abs(share.strength) * float(layer.kron().norm())
    return abs(share.strength) * float(frobenius(matrix(layer.delta())).item())
