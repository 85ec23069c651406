"""The plan of a requantisation: how each tensor is written, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...adapters.checkpoint import check_checkpoint
from ...elements import Element, asked
from ...errors import ArgumentError
from ...files import FileSource
from ...files.quantised.encoding_gguf import GGUF_TYPES
from ...files.quantised.storages import SCHEMES
from ...run.inputs import paths_of
from ...text import either, plain
from ..weights.gguf_file_plan import GgufPlan
from ..weights.gguf_plan import with_gguf, writes_gguf
from ..weights.native_file import natively
from ..weights.output import (
    SHARD_SIZE,
    check_place,
    check_shards,
    data_size,
    rows_of,
    storage_notes,
)
from ..weights.rounding import seed_of
from ..weights.storing_plan import Wanted, model_keys, with_storing
from ..weights.tiles import Planned


@dataclass(frozen=True, slots=True, eq=False)
class RequantisePlan:
    """What a requantisation will do, known from headers alone.

    Attributes:
        checkpoint: What is written in another way.
        wanted: In which.
        tensors: How each tensor is written, by key, in the checkpoint's order.
        notes: What is worth a sentence.
        gguf: How it lies in a GGUF file, where it is written as one.
    """

    checkpoint: FileSource
    wanted: Wanted
    tensors: Mapping[str, Planned]
    notes: tuple[str, ...]
    gguf: GgufPlan | None = None

    @property
    def bits(self) -> float:
        """All bits of the tensors that are written, scales included, over the numbers that they stand for."""
        rows = rows_of(self.tensors.values())
        return (
            8 * data_size(rows) / max(1, sum(math.prod(one.shape) for one in self.tensors.values()))
        )


def plan_requantise_file(
    checkpoint: FileSource,
    to: str,
    *,
    output: Path | None = None,
    force: bool = False,
    dtype: torch.dtype | Element | None = None,
    whole: Sequence[str] = (),
    quantise: Sequence[str] = (),
    rounding: str = "nearest",
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
) -> RequantisePlan:
    """Settle how each tensor is written, from headers alone.

    Args:
        checkpoint: A file, or an index of shards, stored in any way that is read.
        to: The way in which the diffusion model's matrices are written: `fp8_scaled`, or `q8_0`, which
            makes a GGUF file of the diffusion model alone; see docs/quantised.md.
        output: Where the result is to go, `.safetensors`, `.safetensors.index.json` or `.gguf`; None:
            nowhere yet.
        force: Whether the output may replace files.
        dtype: Of the floating point numbers that are not written so; None: each as it is stored, but
            bfloat16 for matrices of the diffusion model that are stored with scales and stay whole.
        whole: Shell patterns of native names of matrices that stay whole besides the usual ones.
        quantise: Of those that would usually stay whole, and are not to; `whole` goes before it.
        rounding: To the `nearest`, or `stochastic`: up or down by chance, so that the mean stays.
        seed: Of that chance.
        shard_size: See `requantise_file`.

    Raises:
        ArgumentError: The output cannot or must not be written, or its name and `to` do not agree;
            there is no such way, or no weight can be written so.
        MismatchError: The checkpoint is an adapter.
        QuantisedError: The checkpoint's numbers are stored in a way that is not read; or the package
            that GGUF needs is not installed.
    """
    element = asked(dtype)
    if element is not None and not element.is_floating_point:
        raise ArgumentError(
            f"torch.{element.title} holds no weights; choose a floating point dtype"
        )
    if not to:  # which would mean as it is stored, and do nothing
        raise ArgumentError(f"the storage `{plain(to)}` is {either([*SCHEMES, *GGUF_TYPES])}")
    check_checkpoint(checkpoint)
    inputs = paths_of(checkpoint)
    is_gguf = writes_gguf(output, to, checkpoint)
    checkpoint = natively(checkpoint) if is_gguf else checkpoint
    if output is not None:
        check_place(output, checkpoint, inputs, force=force)
    wanted = Wanted(to, tuple(whole), tuple(quantise), seed_of(rounding, seed))
    belongs = model_keys(checkpoint)
    tensors: dict[str, Planned] = {}
    for key in checkpoint.keys():  # noqa: SIM118
        found = checkpoint.result_element(key)
        found = element if element and found.is_floating_point and key in belongs else found
        tensors[key] = Planned(key, checkpoint, key, found, seed=wanted.seed)
    gguf = None
    if is_gguf:
        tensors, gguf = with_gguf(tensors, checkpoint, wanted)
        told = gguf.notes
    else:
        tensors, told = with_storing(tensors, checkpoint, wanted, belongs if dtype else ())
    if output is not None:
        check_shards(
            *(output, checkpoint, tensors.values(), inputs), shard_size=shard_size, force=force
        )
    plan = RequantisePlan(checkpoint, wanted, tensors, (), gguf)
    scales = ", scales included" if any(one.storing for one in plan.tensors.values()) else ""
    bits = f"{plan.bits:.2f} bits per weight{scales}"
    return replace(plan, notes=(*storage_notes(checkpoint, tensors), *told, bits))
