"""Activations on a device that is not the CPU: no tensor on the wrong side, equal results."""

from __future__ import annotations

import pytest
import torch
from alike import check_alike
from checkpoints import SD1, grid, is_matrix, source, target, trained
from device_double import placed
from recorded import as_grams, inputs_of

from lorakit.lora_ops import DictSource, extract, place
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.models.activations import read_activations
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.operations.extract.plan import plan_extraction
from lorakit.lora_ops.operations.resize.layer import Resizing
from lorakit.lora_ops.operations.resize.recorded import Recorded
from lorakit.lora_ops.operations.resize.resize import resize_work
from lorakit.lora_ops.run.stream import stream

SHAPES = {
    target(key): shape
    for key, shape in SD1.items()
    if is_matrix(key, shape) and target(key).startswith("diffusion_model.")
}


@pytest.fixture(params=["gram", "sketch", "diagonal"])
def record(request):
    inputs = inputs_of(SHAPES)
    if request.param == "gram":
        return DictSource(as_grams(inputs))
    tensors = {f"{name}.diagonal": x.square().sum(0).float() for name, x in inputs.items()}
    if request.param == "sketch":
        tensors |= {f"{name}.sketch": x[:4].float() for name, x in inputs.items()}
    return DictSource(tensors)


@pytest.fixture
def pair():
    base = grid(SD1, torch.float32)
    return source(base), source(trained(base))


def check_near(make) -> None:
    where, cpu = placed(), place("cpu", memory=1 << 30)
    there, here = list(stream(make(where), where)), list(stream(make(cpu), cpu))
    assert any(getattr(one.report, "weighted", None) is not None for one in here)

    def near(mine, theirs) -> None:
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)

    check_alike(here, there, near, lambda number: pytest.approx(number, rel=1e-4, abs=1e-5))


def test_extract(pair, record):
    plan = plan_extraction(*pair, 3, dtype=torch.float32, activations=record)
    check_near(lambda where: extraction_work(plan))


@pytest.mark.parametrize("rule", ["2", "energy=0.7"])
def test_resize(pair, record, rule):
    lora, _ = extract(*pair, 6, dtype=torch.float32)
    known = read_activations(record)
    recorded = Recorded(known, {name: name for name in known.forms})
    resizing = Resizing(parse_rule(rule), recorded=recorded)
    check_near(lambda where: resize_work(lora, resizing, where))
