"""What all tests share: one thread for each computation, and the same random numbers."""

from __future__ import annotations

import os

# Small matrices on shared cores: threads inside one factorisation wait for each other a thousand
# times longer than they compute. Set before numpy and torch are imported; subprocesses inherit it.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same global generator, whatever ran before."""
    torch.manual_seed(0)
