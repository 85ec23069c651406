"""From float8 files of the digits: nearer to what tuned draws with the rule `noise` than with rank 32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.examples.digits import demo
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import extract_file, open_source, plan_file, plan_requantise_file
from lorakit.lora_ops.operations.requantise.file import requantise_file


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(tensors: dict[str, Tensor]) -> Tensor:
    return sample_digits(load_model(tensors), starting_noise())


def in_float8(path: Path, to: Path, scaled: bool) -> Path:
    """All matrices and kernels in plain float8; or the linear ones as `requantise` has them."""
    if scaled:
        with open_source(path) as source:
            requantise_file(plan_requantise_file(source, "fp8_scaled", output=to), to)
        return to
    cast = {
        k: one.to(torch.float8_e4m3fn) if one.ndim > 1 else one
        for k, one in load_file(path).items()
    }
    save_file(cast, to)
    return to


@pytest.fixture(scope="module")
def distance() -> Any:
    """How far from what tuned draws base draws with a LoRA, which is taken from two files."""
    before, after = load_file(demo.BASE), load_file(demo.TUNED)
    goal = drawn(after)
    span = float((drawn(before) - goal).norm())

    def measure(base: Path, tuned: Path, rule: str | None, output: Path) -> float:
        with open_source(base) as first, open_source(tuned) as second:
            plan = plan_file(first, second, rule, output=output, force=True)
            extract_file(plan, first, second, output, force=True)
        with open_source(demo.BASE) as start, open_source(output) as lora:
            return float((drawn(demo.apply(start, before, lora)) - goal).norm()) / span

    return measure


@pytest.mark.parametrize("how", ["fp8", "fp8_scaled"])
def test_nearer_with_noise_than_with_rank_32(distance: Any, how: str, tmp_path: Path) -> None:
    sides = (demo.BASE, demo.TUNED)
    base, tuned = (in_float8(one, tmp_path / one.name, how != "fp8") for one in sides)
    output = tmp_path / "out.safetensors"
    fixed, free = (distance(base, tuned, rule, output) for rule in ("32", "noise"))
    assert free < 0.98 * fixed
