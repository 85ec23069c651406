"""The device double itself: it refuses what CUDA refuses, and counts what makes the CPU wait."""

from __future__ import annotations

import pytest
import torch
from device_double import DEVICE, Double, DoublePlacement, OnDevice

from lorakit.lora_ops.run.devices import upload


@pytest.fixture
def double() -> Double:
    return Double()


def test_it_computes_what_the_cpu_computes(double: Double) -> None:
    a, b = torch.randn(5, 4), torch.randn(4, 3)
    with double.mode():
        there = (a.to(DEVICE) @ b.to(DEVICE)).clamp_(min=0)
        there[0] = 7.0
        back = there.cpu()
    expected = (a @ b).clamp(min=0)
    expected[0] = 7
    assert torch.equal(back, expected)
    assert double.counts == {"upload": 2, "download": 1, "wait": 1}


def test_memory_is_counted_once_and_as_long_as_something_lies_in_it(double: Double) -> None:
    with double.mode():
        there = torch.zeros(100, device=DEVICE)
        view = there.view(10, 10)[3:].mT
        assert double.peak == 400
        del there
        more = view + 1
        assert double.peak == 400 + 280
        del view
        torch.cat([more, more])
        assert double.peak == 280 + 560


def test_views_write_into_what_they_are_views_of(double: Double) -> None:
    with double.mode():
        whole = torch.zeros(4, 4, device=DEVICE)
        whole.view(-1)[3:5].fill_(2.0)
        whole.mT[0].add_(1.0)
        assert whole.device.type == DEVICE.type
        found = whole.cpu()
    expected = torch.zeros(4, 4)
    expected.view(-1)[3:5].fill_(2.0)
    expected.mT[0].add_(1.0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: there + here,
        lambda here, there: there @ here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: there.addmm_(here, there),
        lambda here, there: torch.where(there > 0, there, here),
        lambda here, there: torch.stack([here, there]),
        lambda here, there: there.index_select(0, torch.tensor([0])),
        lambda here, there: torch.matmul(there, there, out=here),
    ],
)
def test_two_devices_in_one_operation_are_refused(mixed, double: Double) -> None:
    here = torch.eye(3)
    with double.mode():
        there = here.to(DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            mixed(here, there)


def test_single_numbers_of_the_cpu_may_stand_beside(double: Double) -> None:
    with double.mode():
        there = torch.ones(3).to(DEVICE) * torch.tensor(2.0, dtype=torch.float64)
        assert there.dtype == torch.float32
        assert there.cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (lambda one: one.sum().item(), 6.0),
        (lambda one: bool((one > 0).all()), True),
        (lambda one: float(one[1]), 2.0),
        (lambda one: one.tolist(), [1.0, 2.0, 3.0]),
        (lambda one: (one > 1).nonzero().shape[0], 2),
        (lambda one: one[one > 1].shape[0], 2),
        (lambda one: torch.equal(one, one), True),
    ],
)
def test_what_the_cpu_waits_for_is_counted(asked, answer, double: Double) -> None:
    with double.mode():
        there = torch.tensor([1.0, 2.0, 3.0]).to(DEVICE)
        assert double.counts["wait"] == 0
        assert asked(there) == answer
        assert double.counts["wait"] == 1


def test_eigenproblems_of_a_stack_are_counted_one_by_one(double: Double) -> None:
    with double.mode():
        torch.linalg.eigh(torch.eye(3).expand(5, 3, 3).to(DEVICE))
        torch.linalg.eigvalsh(torch.eye(3).to(DEVICE))
    assert double.counts["eigen"] == 6


def test_memory_that_is_written_to_before_its_upload_has_ended_is_told(double: Double) -> None:
    with double.mode():
        source = torch.zeros(4)
        there = source.to(DEVICE, non_blocking=True)
        source.fill_(1)
        with pytest.raises(RuntimeError, match="before its upload"):
            there.sum().item()
        late = source.to(DEVICE, non_blocking=True)
        late.sum().item()
        source.fill_(2)  # it has arrived
        assert late.cpu().tolist() == [1, 1, 1, 1]


def test_a_copy_back_that_nothing_waits_for_is_refused(double: Double) -> None:
    with double.mode(), pytest.raises(RuntimeError, match="nothing waits for"):
        torch.zeros(4).to(DEVICE).to("cpu", non_blocking=True)


def test_nothing_escapes_into_numpy_or_another_thread(double: Double) -> None:
    with double.mode():
        there = torch.zeros(4).to(DEVICE)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    with pytest.raises(RuntimeError, match="not active"):
        there + 1


def test_an_upload_of_ours_lands_on_it() -> None:
    where = DoublePlacement(DEVICE, 1)
    with where.scope():
        there = upload(torch.ones(2, dtype=torch.bfloat16), where)
        assert isinstance(there, OnDevice)
        assert there.dtype == torch.bfloat16
    assert where.double.counts["upload"] == 1
