"""Many tuned checkpoints against one base: each file as if alone, the base read once, errors apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, SD1, grid, trained
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import (
    ArgumentError,
    DictSource,
    FormatError,
    LoraOpsError,
    NonFiniteError,
    Report,
    extract_file,
    extract_files,
    open_source,
    place,
    plan_file,
    preview_files,
)
from lorakit.lora_ops.run.workers import Progress


def checkpoints(folder: Path, shapes=SD1, count: int = 3) -> tuple[Path, list[Path]]:
    """A base and several that came of it, in files."""
    base = grid(shapes, torch.float16)
    save_file(base, folder / "base.safetensors")
    paths = [folder / f"tuned{number}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        save_file(trained(base, seed=number + 1), path)
    return folder / "base.safetensors", paths


def alone(base: Path, tuned: Path, output: Path, rule=None, *, where=None, exact=False, **options):
    """What a single extraction writes."""
    with open_source(base) as one, open_source(tuned) as two:
        format = options.get("format", "comfy")
        plan = plan_file(one, two, rule, output=output, **options)
        return extract_file(
            plan, one, two, output, format=format, exact=exact, placement=where, version="1"
        )


def many(base: Path, tuned: list[Path], folder: Path, rule=None, *, where=None, **options):
    with open_source(base) as source:
        return extract_files(
            source, tuned, folder, rule, placement=where, version="1", **options
        )


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (3, {}),
        ("energy=0.8,conv=2", {"dtype": torch.float32}),
        (2, {"full_differences": True, "exclude": ["*attn2*"]}),
        ("4,conv=0", {"format": "kohya", "exact": True}),
        ("noise,max=4", {}),
    ],
)
@pytest.mark.parametrize("memory", [None, 20_000_000])
def test_each_file_is_byte_for_byte_that_of_a_single_extraction(tmp_path, rule, options, memory):
    """Layer by layer, and in batches, as a GPU has them."""
    base, tuned = checkpoints(tmp_path)
    where = place("cpu", memory=memory)
    (tmp_path / "one").mkdir()
    reports = many(base, tuned, tmp_path / "all", rule, where=where, **options)
    assert list(reports) == tuned
    for path in tuned:
        output = tmp_path / "one" / path.name
        report = alone(base, path, output, rule, where=where, **options)
        assert (tmp_path / "all" / path.name).read_bytes() == output.read_bytes()
        assert isinstance(reports[path], Report)
        assert reports[path].layers == report.layers
        assert reports[path].skips == report.skips
        assert reports[path].notes == report.notes
