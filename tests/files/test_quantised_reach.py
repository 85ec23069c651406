"""One number that two programs store in one scheme is no change, whatever they do differently; a change is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from storing import nearest_of
from torch import Tensor

from lorakit.lora_ops import DictSource, FileSource, extract, open_source
from lorakit.lora_ops.errors import MismatchError

KEY = "diffusion_model.double_blocks.0.img_attn.proj.weight"
LAYER = KEY.removesuffix(".weight")
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


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FOURS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]).double()


def text(**settings: object) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def tiled(scales: Tensor) -> Tensor:
    """Scales of 128 rows and a multiple of 4 blocks, by the formula of their places."""
    row, column = torch.meshgrid(*(torch.arange(n) for n in scales.shape), indexing="ij")
    place = (column // 4) * 512 + (row % 32) * 16 + (row // 32) * 4 + column % 4
    found = torch.empty(scales.numel(), dtype=torch.uint8)
    found[place.flatten()] = scales.view(torch.uint8).flatten()
    return found.view(scales.shape)


def packed(codes: Tensor, high_first: bool) -> Tensor:
    first, last = codes[:, ::2].to(torch.uint8), codes[:, 1::2].to(torch.uint8)
    return first << 4 | last if high_first else last << 4 | first


# Each stores a weight, of which no number is larger than it would be with a scale of `room`.


def float8(weight: Tensor, room: float, dtype: torch.dtype = E4M3) -> dict[str, Tensor]:
    scale = (weight.abs().max() * room / torch.finfo(dtype).max).float()
    codes = (weight / scale.double()).to(dtype)
    return {"weight": codes, "weight_scale": scale}


def float8_by_rows(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) * room / 448).float()
    return {"weight": (weight / scale.double()).to(E4M3), "weight_scale": scale}


def int8(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) * room / 127).float()
    codes = (weight / scale.double()).round().to(torch.int8)
    told = text(format="int8_tensorwise")
    return {"weight": codes, "weight_scale": scale, "comfy_quant": told}


def mxfp8(weight: Tensor, room: float) -> dict[str, Tensor]:
    exponents = (weight.view(128, -1, 32).abs().amax(-1) * room / 448).log2().ceil()
    codes = (weight / (2**exponents).repeat_interleave(32, 1)).to(E4M3)
    scales = tiled((exponents + 127).to(torch.uint8))
    return {"weight": codes, "weight_scale": scales, "comfy_quant": text(format="mxfp8")}


def nvfp4(weight: Tensor, room: float) -> dict[str, Tensor]:
    whole = (weight.abs().max() * room / 448 / 6).float()
    blocks = (weight.view(128, -1, 16).abs().amax(-1) / 6 / whole.double()).to(E4M3)
    scales = (blocks.double() * whole.double()).repeat_interleave(16, 1)
    sizes = nearest_of((weight.abs() / scales).nan_to_num(0, 6, 6).clamp(max=6), FOURS)
    codes = torch.bucketize(sizes, FOURS) + 8 * (weight < 0)
    return {
        "weight": packed(codes, high_first=True),
        "weight_scale": tiled(blocks),
        "weight_scale_2": whole,
        "comfy_quant": text(format="nvfp4"),
    }


def turned(weight: Tensor) -> Tensor:
    """Each four columns by ConvRot's matrix of four."""
    signs = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    return (weight.view(-1, 4) @ (signs.double() / 2)).view(weight.shape)


def rotated(weight: Tensor, room: float) -> dict[str, Tensor]:
    found = int8(turned(weight), room)
    told = text(format="int8_tensorwise", convrot=True, convrot_groupsize=4)
    return {**found, "comfy_quant": told}


def w4a4(weight: Tensor, room: float) -> dict[str, Tensor]:
    scale = (turned(weight).abs().amax(dim=1, keepdim=True) * room / 7).float()
    codes = (turned(weight) / scale.double()).round().to(torch.int64) & 15
    told = text(format="convrot_w4a4", convrot_groupsize=4)
    found = packed(codes, high_first=False).view(torch.int8)
    return {"weight": found, "weight_scale": scale, "comfy_quant": told}


def nf4(weight: Tensor, room: float, dtype: str = "bfloat16") -> dict[str, Tensor]:
    table = torch.linspace(-1, 1, 16).double().abs().sqrt() * torch.linspace(-1, 1, 16).sign()
    sizes = (weight.view(-1, 64).abs().amax(dim=1) * room).float()
    shares = weight.view(-1, 64) / sizes.double()[:, None]
    codes = torch.bucketize(nearest_of(shares, table), table).view(1, -1)
    told = text(blocksize=64, dtype=dtype, shape=list(weight.shape), quant_type="nf4")
    return {
        "weight": packed(codes, high_first=True).view(-1, 1),
        "weight.absmax": sizes,
        "weight.quant_map": table.float(),
        "weight.quant_state.bitsandbytes__nf4": told,
    }


def torchao(weight: Tensor, room: float) -> dict[str, Tensor]:
    found = int8(weight, room)
    return {"_weight_qdata": found["weight"], "_weight_scale": found["weight_scale"]}


DESCRIBED = {
    f"{LAYER}.weight": json.dumps(
        {"_type": "Int8Tensor", "_data": {"dtype": {"_type": "torch.dtype", "_data": "bfloat16"}}}
    ),
    "tensor_names": json.dumps([f"{LAYER}.weight"]),
}
STORES: dict[str, Callable[[Tensor, float], dict[str, Tensor]]] = {
    "fp8 e4m3": float8,
    "fp8 e5m2": lambda weight, room: float8(weight, room, E5M2),
    "fp8 by rows": float8_by_rows,
    "mxfp8": mxfp8,
    "nvfp4": nvfp4,
    "int8": int8,
    "int8, rotated": rotated,
    "int4, rotated": w4a4,
    "nf4": nf4,
    "nf4 of float32": lambda weight, room: nf4(weight, room, "float32"),
    "torchao": torchao,
}


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
