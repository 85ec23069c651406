"""What nodes compute of loaded models on a GPU: nothing of the wrong side, and few waits, whatever a weight's size."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from device_double import counts, placed
from host_double import standing_in
from torch import Tensor

from lorakit.lora_ops.run.devices import Placement

SHARES = {
    "add_difference": (0.7, 0.0),
    "slerp": (0.3,),
    "weighted_sum": (0.25, 0.5),
}
MODELS = 3


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with standing_in():
        yield


def module(name: str) -> Any:
    return importlib.import_module(f"lorakit.nodes.{name}")


def weights(count: int, rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, 48, generator=generator) for _ in range(count)]


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """As the host gives a weight: on the device, in float32."""
    return tensor.to(device).float()


def mixed(method: str, where: Placement, rows: int) -> tuple[Tensor, Tensor]:
    """One weight on a device and on the CPU."""
    shares = SHARES.get(method, (0.25, 0.5))
    tensors = weights(1 + len(shares), rows)
    mix = module("merge.mixing").Mixed(method, shares, [partial(on, one) for one in tensors])
    with where.scope():
        found = mix(where.device)
        assert found.device == where.device
        assert found.dtype == torch.float32
        there = found.cpu()
    return there, mix(torch.device("cpu"))


METHODS = [
    *("weighted_sum", "add_difference", "slerp", "karcher", "geometric_median", "model_stock"),
    *("orthogonalise", "energy"),
]


def test_all_methods_are_here() -> None:
    assert list(module("merge.mixing").METHODS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_weight_is_that_of_the_cpu(method: str) -> None:
    found, exact = mixed(method, placed(), 40)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_weight_waits_once_whatever_its_size(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shares that depend on angles need inner products on the CPU: one copy of them all."""
    monkeypatch.setattr(module("merge.mixing"), "_TILE", 256)
    known: list[tuple[int, ...]] = []
    for rows in (40, 400):
        where = placed()
        mixed(method, where, rows)
        asked = counts(where)
        known.append((asked["upload"], asked["download"], asked["wait"]))
    if not known[0][1]:
        pytest.skip("a real device counts nothing")
    assert known[0] == known[1]
    uploads, downloads, waits = known[0]
    assert uploads <= MODELS
    is_linear = method in ("weighted_sum", "add_difference")
    assert (
        downloads == waits == (1 if is_linear else 2)
    )  # the result, which the test asks for, is one


def test_a_first_layer_of_fewer_channels_is_filled_on_the_device() -> None:
    """As of an inpainting model: columns that one model has not are A's."""
    where = placed()
    own, other = weights(2, 40)
    fill = partial(module("merge.loaded")._filled, partial(on, other[:, :30]), partial(on, own))
    with where.scope():
        found = fill(where.device).cpu()
    assert torch.equal(found, torch.cat([other[:, :30], own[:, 30:]], dim=1))
    assert counts(where)["wait"] <= 1


def test_a_weight_without_numbers_is_mixed() -> None:
    empty = [torch.empty(0, 4) for _ in range(MODELS)]
    gram = module("merge.mixing")._gram(empty, of_changes=True)
    assert torch.equal(gram, torch.zeros(MODELS - 1, MODELS - 1, dtype=torch.float64))
