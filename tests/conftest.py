"""What all tests share: one thread for each computation, and the same random numbers."""

from __future__ import annotations

import os

# Small matrices on shared cores: threads inside one factorisation wait for each other a thousand
# times longer than they compute. Set before numpy and torch are imported; subprocesses inherit it.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# The user's own cache is not the tests' to read or fill.
os.environ["LORAKIT_CACHE"] = "off"

from collections.abc import Iterator  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from comfy_server import Server


# How long an example takes says how busy the machine is.
settings.register_profile("lorakit", deadline=None)
settings.load_profile("lorakit")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same global generator, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one real ComfyUI server of all tests that run graphs; they skip where there is none."""
    from graphs import serving

    with serving(tmp_path_factory.mktemp("comfy")) as server:
        yield server
