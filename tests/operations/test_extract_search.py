"""In which numbers directions were searched, in the report, its JSON and the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from oracles import best_error, power, with_spectrum
from safetensors import safe_open
from torch import Tensor

from lorakit.lora_ops import DictSource, extract, extract_file, plan_file
from lorakit.lora_ops.linalg import krylov

SHAPES: dict[str, tuple[int, ...]] = {"q": (600, 520), "k": (400, 384), "v": (64, 96)}
RANK = 8


@pytest.fixture(params=[torch.int8, torch.bfloat16, torch.float32])
def low(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without units for fewer bits, whatever this processor has; how it is written."""

    def known(matrix: Tensor) -> tuple[torch.dtype, ...]:
        return (request.param,) if min(matrix.shape[-2:]) >= 512 else ()

    monkeypatch.setattr(krylov, "search_dtypes", known)
    return str(request.param).removeprefix("torch.")


def models() -> tuple[DictSource, DictSource]:
    generator = torch.Generator().manual_seed(0)
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for name, shape in SHAPES.items():
        key = f"blocks.0.{name}.weight"
        base[key] = torch.randn(shape, generator=generator).mul_(0.05)
        tuned[key] = base[key] + with_spectrum(*shape, power(min(shape), 0.3)).float()
    return DictSource(base), DictSource(tuned)


def counts(found: Sequence[str]) -> dict[str, int]:
    return {name: found.count(name) for name in sorted(set(found))}


def test_the_report_says_in_which_numbers(low: str) -> None:
    base, tuned = models()
    _, report = extract(base, tuned, RANK)
    found = {layer.target.rsplit(".", 1)[-1]: layer for layer in report.layers}
    assert {name: layer.search for name, layer in found.items()} == {
        "q": low,
        "k": "float32",
        "v": None,
    }
    assert report.searches == counts([low, "float32"])
    told = report.to_dict()
    assert told["searches"] == report.searches
    assert ["search" in layer for layer in told["layers"]].count(True) == 2
    for name, layer in found.items():
        key = f"blocks.0.{name}.weight"
        best = best_error(tuned.tensor(key) - base.tensor(key), RANK)
        assert layer.residual <= best * (1 + 1e-3)


@pytest.mark.parametrize("rule", [RANK, "noise,max=8"])
def test_the_file_says_it_too(low: str, rule: str | int, tmp_path: Path) -> None:
    base, tuned = models()
    plan = plan_file(base, tuned, rule)
    path = tmp_path / "out.safetensors"
    report = extract_file(plan, base, tuned, path)
    with safe_open(path, "pt") as file:
        told = file.metadata()["lorakit.search"]
    assert told == ", ".join(f"{name} {count}" for name, count in report.searches.items())
    assert report.searches == counts([low, "float32"])


def test_an_exact_truncation_searches_nothing() -> None:
    _, report = extract(*models(), RANK, exact=True)
    assert not report.searches
    assert "searches" not in report.to_dict()
