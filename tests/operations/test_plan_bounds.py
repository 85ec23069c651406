"""Plans of edits of every kind of layer: what the run then does is within them, or fails as they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import Part, tensors, written
from kinds import kinds
from torch import Tensor

from lorakit.lora_ops import Ingredient, Report, open_source
from lorakit.lora_ops.errors import LoraOpsError
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.add.plan import plan_add_files
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.convert.plan import plan_convert_file
from lorakit.lora_ops.operations.preview import Preview
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.resize.plan import plan_resize_file
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.operations.scale.plan import plan_scale_file

# Tensors of one number that say what a layer is: they may be read.
TOLD = (".on_input", ".reshape_weight")
ALL = {f"{name}, linear": (name, "linear") for name in kinds("linear")}
ALL |= {f"{name}, conv3x3": (name, "conv3x3") for name in ("lora, Tucker", "loha", "full")}


def file_of(folder: Path, kind: str) -> Path:
    """A file of one layer of a kind; of several kinds; or so large that no slack hides a byte."""
    path = folder / "lora.safetensors"
    if kind == "large":
        parts = [
            Part(shape=(640, 1600), rank=64, dtype=torch.float16, module=f"blocks.{n}.q")
            for n in range(12)
        ]
        return written(path, tensors(parts, "comfy"))
    chosen = [name for name in ALL if name.startswith("lo") and "DoRA" not in name]
    found: dict[str, Tensor] = {}
    for n, (name, form) in enumerate(ALL[one] for one in (chosen if kind == "several" else [kind])):
        held = kinds(form)[name].items()
        found |= {f"diffusion_model.blocks.{n}.q.{key}": one.clone() for key, one in held}
    return written(path, found)


def agree(
    lora: Path,
    output: Path,
    plan: Callable[[Ingredient, Path], Preview],
    run: Callable[[Ingredient, Path], Report],
    *,
    is_budget: bool = False,
) -> None:
    """Compare a plan, for which no tensor may be read, with the run.

    A budget may give layers nothing, which no header tells.
    """
    asked: list[str] = []
    with open_source(lora) as source:
        read = source.tensor
        source.tensor = lambda key: asked.append(key) or read(key)  # type: ignore[method-assign]
        try:
            planned, refused = plan(Ingredient(source, 0.5), output), ""
        except LoraOpsError as error:
            planned, refused = None, str(error)
    assert [key for key in asked if not key.endswith(TOLD)] == []
    assert not output.exists()
    with open_source(lora) as source:
        try:
            report, failed = run(Ingredient(source, 0.5), output), ""
        except LoraOpsError as error:
            report, failed = None, str(error)
    assert refused == failed
    if planned is None or report is None:
        return
    ranks = {one.target: one.rank_at_most for one in planned.layers}
    assert ranks.keys() >= {one.target for one in report.layers}
    assert len(ranks) == len(report.layers) or is_budget
    for layer in report.layers:
        most = ranks[layer.target]
        assert most is None or layer.rank <= most
    assert report.size <= planned.size_at_most


@pytest.mark.parametrize("kind", [*ALL, "several", "large"])
@pytest.mark.parametrize("rule", ["1", "64", "energy=0.8,max=5", "size=90kB"])
def test_resize(tmp_path: Path, kind: str, rule: str) -> None:
    agree(
        *(file_of(tmp_path, kind), tmp_path / "out.safetensors"),
        lambda one, to: plan_resize_file(one.source, to, rule).preview(),
        lambda one, to: resize_file(one.source, to, rule),
        is_budget=rule.startswith("size="),
    )


@pytest.mark.parametrize("kind", [*ALL, "several", "large"])
def test_scale(tmp_path: Path, kind: str) -> None:
    agree(
        *(file_of(tmp_path, kind), tmp_path / "out.safetensors"),
        lambda one, to: plan_scale_file(one, to).preview(),
        scale_file,
    )


@pytest.mark.parametrize("kind", [*ALL, "several", "large"])
@pytest.mark.parametrize("rule", [None, "2"])
def test_add(tmp_path: Path, kind: str, rule: str | None) -> None:
    agree(
        *(file_of(tmp_path, kind), tmp_path / "out.safetensors"),
        lambda one, to: plan_add_files([one, one], to, rule).preview(),
        lambda one, to: add_files([one, one], to, rule),
    )


@pytest.mark.parametrize("kind", [*ALL, "several", "large"])
@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize(("to", "rule"), [(None, None), ("lora", "2")])
def test_convert(tmp_path: Path, kind: str, format: str, to: str | None, rule: str | None) -> None:
    agree(
        *(file_of(tmp_path, kind), tmp_path / "out.safetensors"),
        lambda one, to_: plan_convert_file(one.source, to_, format, to=to, rule=rule).preview(),
        lambda one, to_: convert_file(one.source, to_, format, to=to, rule=rule),
    )
