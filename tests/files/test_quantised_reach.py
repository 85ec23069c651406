"""One number that two programs store in one scheme is no change, whatever they do differently; a change is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantisers import DESCRIBED, LAYER, STORES
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import DictSource, FileSource, extract, open_source
from lorakit.lora_ops.errors import MismatchError

KEY = f"{LAYER}.weight"
#: What ggml 0.15.3's `ggml_quantize_chunk` makes of `weight`, by type: plainly, and weighed by columns
#: (an importance matrix of 0.1 to 1.1). Two rows are normal, one has very small numbers, one large ones.
GGML = load_file(Path(__file__).parents[1] / "helpers" / "data" / "ggml-0.15.3.safetensors")
TYPES = sorted({key.partition("/")[0] for key in GGML} - {"weight"})
#: Whose rounding is so coarse that a change of a third does not stand out, number by number.
COARSE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def ggml(folder: Path, type: str, blocks: Tensor) -> FileSource:
    """A file with the blocks of a type."""
    gguf: Any = pytest.importorskip(
        "gguf", reason="the package gguf is in no environment but its own"
    )
    path = folder / f"{len(list(folder.iterdir()))}.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    kind = gguf.GGMLQuantizationType[type]
    writer.add_tensor(KEY, blocks.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_source(path)


def assert_one(one: FileSource, other: FileSource, weight: Tensor) -> None:
    """They differ, and neither from the other nor from the weight by more than their reach."""
    first, second = (side.tensor(KEY).double() for side in (one, other))
    assert not torch.equal(first, second)
    size = torch.maximum(first.abs(), second.abs())
    apart = torch.maximum(one.reach(KEY, size), other.reach(KEY, size))
    assert bool(((first - second).abs() <= apart).all())
    for side, numbers in ((one, first), (other, second)):
        assert bool(((numbers - weight).abs() <= side.reach(KEY, weight)).all())
        assert bool((side.reach(KEY, size) >= side.grid(KEY, size)).all())
        part = side.reach(KEY, size.flatten()[300:900], 300)
        assert torch.equal(part, side.reach(KEY, size).flatten()[300:900])
    with pytest.raises(MismatchError, match="only storage rounding differs"):
        extract(one, other, 4)


def assert_a_change_shows(one: FileSource, weight: Tensor) -> None:
    """One of a third of the weight, in bf16; and of a single number."""
    draw = torch.Generator().manual_seed(2)
    rows, columns = weight.shape
    delta = torch.randn(rows, 2, generator=draw) @ torch.randn(2, columns, generator=draw)
    delta *= weight.norm() / delta.norm() / 3
    assert len(extract(one, DictSource({KEY: (weight + delta).bfloat16()}), 2)[0].layers) == 1
    moved = one.tensor(KEY).clone()
    moved[1, 77] += 1.5 * float(one.reach(KEY, moved.abs() * 2)[1, 77])
    assert len(extract(one, DictSource({KEY: moved}), 2)[0].layers) == 1


def q8_0(weight: Tensor) -> Tensor:
    """Blocks whose scales leave room, which ggml's own do not."""
    blocks = weight.view(-1, 32)
    scales = (blocks.abs().amax(dim=1, keepdim=True) / 119).half()
    codes = (blocks / scales.double()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scales.view(torch.uint8), codes.view(torch.uint8)], dim=1).view(4, -1)


@pytest.mark.parametrize("type", TYPES)
def test_blocks_of_ggml_with_and_without_a_matrix_of_importance(type: str, tmp_path: Path) -> None:
    weight = GGML["weight"].double()
    blocks = {how: GGML[f"{type}/{how}"] for how in ("plain", "weighed")}
    if type == "Q8_0":  # it heeds no importance
        blocks["weighed"] = q8_0(weight)
    with (
        ggml(tmp_path, type, blocks["plain"]) as one,
        ggml(tmp_path, type, blocks["weighed"]) as other,
    ):
        assert_one(one, other, weight)
        if type not in COARSE:
            assert_a_change_shows(one, weight)


@pytest.mark.parametrize("room", [1.07, 1.9])
@pytest.mark.parametrize("store", STORES)
def test_scales_that_leave_more_room(store: str, room: float, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(128, 256, generator=draw).double() * torch.logspace(-5, 0, 128)[:, None]
    sides: list[FileSource] = []
    for name, more in (("one", 1.0), ("other", room)):
        path = tmp_path / f"{name}.safetensors"
        tensors = {f"{LAYER}.{part}": t for part, t in STORES[store](weight, more).items()}
        save_file(tensors, path, DESCRIBED if store == "torchao" else None)
        sides.append(open_source(path))
    with sides[0] as one, sides[1] as other:
        assert_one(one, other, weight)
        assert_a_change_shows(one, weight)
