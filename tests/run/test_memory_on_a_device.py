"""The cap on a device's memory: no job takes more than it says, and all of them together stay below the cap."""

from __future__ import annotations

import pytest
import torch
from device_double import DEVICE, DoublePlacement
from torch import Tensor

from lorakit.lora_ops import Adapter, DictSource, LoraLayer
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.operations.extract.plan import plan_extraction
from lorakit.lora_ops.operations.resize.layer import Resizing
from lorakit.lora_ops.operations.resize.resize import resize_work
from lorakit.lora_ops.run.job import Work
from lorakit.lora_ops.run.stream import stream

# Of Flux: out of the MLP, its three projections in one, into the MLP.
FLUX = [(3072, 12288), (9216, 3072), (12288, 3072)]
# The same with all sides, and the cap, as much smaller.
SMALLER = 8
CAP = 4 * 10**9 // SMALLER**2
SHAPES = [(out // SMALLER, width // SMALLER) for out, width in FLUX]


def _pair(shapes: list[tuple[int, int]], dtype: torch.dtype) -> tuple[DictSource, DictSource]:
    generator = torch.Generator().manual_seed(0)
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for index, shape in enumerate(shapes):
        base[f"blocks.{index}.weight"] = torch.randn(shape, generator=generator).to(dtype)
        change = torch.randn(shape, generator=generator).mul_(0.02)
        tuned[f"blocks.{index}.weight"] = (base[f"blocks.{index}.weight"] + change).to(dtype)
    return DictSource(base), DictSource(tuned)


def _peak(work: Work, workers: int, memory: int) -> int:
    where = DoublePlacement(DEVICE, workers, memory)
    assert len(list(stream(work, where))) == len(work.jobs)
    return where.double.peak


@pytest.mark.parametrize(
    ("rule", "exact", "dtype"),
    [
        ("16", False, torch.bfloat16),
        ("16", False, torch.float32),
        ("16", True, torch.bfloat16),
        ("energy=0.3", False, torch.bfloat16),
        ("knee", False, torch.bfloat16),
        ("noise,max=16", False, torch.bfloat16),
    ],
)
def test_extraction_stays_below_its_cap(rule: str, exact: bool, dtype: torch.dtype) -> None:
    """Two batches at once, as a GPU has them, each of as many layers as the cap lets it have."""
    base, tuned = _pair(SHAPES * 2, dtype)
    work = extraction_work(plan_extraction(base, tuned, rule), exact=exact)
    largest = max(job.need for job in work.jobs)
    peak = _peak(work, 2, CAP)
    assert largest / 2 < peak <= CAP


def test_a_layer_of_flux_takes_no_more_than_it_says() -> None:
    base, tuned = _pair([FLUX[2]], torch.bfloat16)
    (job,) = (work := extraction_work(plan_extraction(base, tuned, "16"))).jobs
    peak = _peak(work, 1, 4 * 10**9)
    assert 2 * job.need <= 4 * 10**9  # two of them have room
    assert job.need / 4 < peak <= job.need


@pytest.mark.parametrize("rule", ["16", "energy=0.5", "mean=8"])
def test_resize_stays_below_its_cap(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"diffusion_model.blocks.{index}": LoraLayer(
            torch.randn(shape[0], 64, generator=generator).bfloat16(),
            torch.randn(64, shape[1], generator=generator).bfloat16(),
            64.0,
        )
        for index, shape in enumerate(SHAPES * 4)
    }
    adapter = Adapter(layers, {}, {}, "comfy")
    where = DoublePlacement(DEVICE, 2, 20_000_000)
    work = resize_work(adapter, Resizing(parse_rule(rule)), where)
    assert len(list(stream(work, where))) == len(layers)
    assert max(job.need for job in work.jobs) < where.double.peak <= 20_000_000
