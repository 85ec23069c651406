"""Threads that work side by side, and how they end."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lorakit.lora_ops.run.scratch import Scratch
from lorakit.lora_ops.run.workers import ordered_map

SCRIPT = """
import torch
from lorakit.lora_ops.run.scratch import SCRATCH
from lorakit.lora_ops.run.workers import ordered_map
for _ in range(5):
    list(ordered_map(lambda size: SCRATCH.take((size,), torch.float32).fill_(1).sum(), [1 << 18] * 4, 2))
"""


@pytest.mark.parametrize("time", range(3))
def test_a_script_that_ends_after_its_work_ends_well(time):
    """Threads that still freed tensors then had the process aborted, more often than not."""
    del time
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_threads_memory_is_let_go_when_it_has_ended(monkeypatch):
    scratch, left = Scratch(), []
    monkeypatch.setattr("lorakit.lora_ops.run.workers.SCRATCH", scratch)

    def work(size: int) -> int:
        with scratch.frame():
            scratch.take((size,), torch.float32)
        left.append(scratch._blocks)
        return size

    assert list(ordered_map(work, [1 << 20] * 3, 2)) == [1 << 20] * 3
    assert left == [[]] * 3
