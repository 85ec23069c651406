"""What all tests share: the same random numbers whatever ran before."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same global generator; the number of threads is left alone."""
    torch.manual_seed(0)
