"""Methods that make factors, against their authors' own programs on whole weights, where these are.

They are public: TSV-M (AntoAndGar/task_singular_vectors), Iso-C (danielm1405/iso-merging), KnOTS (gstoica27/KnOTS); run as
they are, and nothing of them is here. The LoRAs have all of the weight's directions together, so that what is said of
whole weights is said of them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorakit.lora_ops import Adapter, LoraLayer, Term, add

NAME, OUT, INTO, RANK, COUNT = "diffusion_model.x", 12, 20, 4, 3
CONFIG = SimpleNamespace(device="cpu", DATASETS=range(COUNT))


def theirs(variable: str, file: str) -> Any:
    """A module of a program; the test skips where there is none."""
    told = os.environ.get(variable)
    path = Path(told or "/nowhere") / file
    if not path.is_file():
        pytest.skip(f"set {variable} to the folder of the authors' program, with {file}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def layers() -> list[LoraLayer]:
    source = torch.Generator().manual_seed(0)
    return [
        LoraLayer(
            torch.randn(OUT, RANK, generator=source), torch.randn(RANK, INTO, generator=source)
        )
        for _ in range(COUNT)
    ]


def wholes() -> list[Tensor]:
    return [layer.delta() for layer in layers()]


def ours(method: str, **parameters: float) -> Tensor:
    terms = [
        Term(Adapter({NAME: layer}, {}, {}, "comfy"), {NAME: 1.0}, str(at))
        for at, layer in enumerate(layers())
    ]
    result, _ = add(terms, method=method, parameters=parameters)
    return result.layers[NAME].delta()


def near(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 2e-5


def vectors() -> list[SimpleNamespace]:
    return [SimpleNamespace(vector={"w": one}) for one in wholes()]


def test_tsv_m() -> None:
    program = theirs("TASK_SINGULAR_VECTORS_PATH", "src/utils/TSVM_utils.py")
    wanted = program.compute_and_sum_svd_mem_reduction(vectors(), CONFIG)["w"]
    assert near(ours("tsv"), wanted)


def test_iso_c() -> None:
    program = theirs("ISO_MERGING_PATH", "src/utils/iso.py")
    assert near(ours("iso"), program.iso_c(vectors(), CONFIG)["w"])


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_with_ties(density: float) -> None:
    """Of a share below 1 theirs keeps one element more, so it is asked for one less."""
    program = theirs("KNOTS_PATH", "merging_functions.py")
    basis, sizes, rows = torch.linalg.svd(torch.cat(wholes(), dim=1).double(), full_matrices=False)
    parts = [
        (sizes[:, None] * part).flatten()[None] for part in rows.split(INTO, dim=1)
    ]  # what TIES is done on
    count = parts[0].numel()
    share = density if density == 1 else (int(density * count) - 0.5) / count
    merged = program.ties_merging(parts, topK=share, merging_type="mean")[0]
    assert near(ours("knots", density=density), (basis @ merged.reshape(-1, INTO)).float())
