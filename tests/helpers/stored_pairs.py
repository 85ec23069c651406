"""Pairs of checkpoints with a change of known rank between them, in every storage that can be written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.lora_ops.files.quantised.storages import SCHEMES

KEY = "double_blocks.0.img_attn.proj.weight"
PLAIN = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
GGUF = ("q8_0", "q5_1", "q4_0")
BITSANDBYTES = ("nf4",)


def weight(shape: tuple[int, int], uneven: float = 0.0, seed: int = 0) -> Tensor:
    """Normal numbers of deviation 0.02; rows and columns of sizes that vary by a factor of `exp(uneven)`."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape[0], 1, generator=draw).mul(uneven).exp()
    columns = torch.randn(1, shape[1], generator=draw).mul(uneven / 2).exp()
    return torch.randn(shape, generator=draw) * 0.02 * rows * columns


def change(shape: tuple[int, int], rank: int, size: float, decay: float = 0.0) -> Tensor:
    """A change of that rank and Frobenius norm, with singular values that fall like `i ** -decay`."""
    draw = torch.Generator().manual_seed(9)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=draw))[0] for n in shape)
    s = torch.arange(1.0, rank + 1) ** -decay
    return (left * (s * size / s.norm())) @ right.T


def stored(tensor: Tensor, to: str, path: Path) -> Path:
    """Write a weight in a storage; the path may get another suffix."""
    if to in PLAIN:
        save_file({KEY: tensor.to(PLAIN[to])}, path)
    elif to in SCHEMES and SCHEMES[to].fits(tensor.shape):
        save_file(_encoded(tensor, to), path)
    elif to in GGUF:
        return _gguf(tensor, to, path.with_suffix(".gguf"))
    else:
        save_file(_four_bits(tensor, to), path)
    return path


def _encoded(tensor: Tensor, to: str) -> dict[str, Tensor]:
    encoder = SCHEMES[to].encoder(KEY, tensor.shape)
    encoder.look(tensor, 0)
    codes, _ = encoder.encode(tensor, 0)
    return {KEY: codes, **dict(SCHEMES[to].beside(encoder))}


def _gguf(tensor: Tensor, to: str, path: Path) -> Path:
    gguf: Any = pytest.importorskip("gguf", reason="the package gguf writes GGUF files")
    kind = gguf.GGMLQuantizationType[to.upper()]
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_quantization_version(2)
    writer.add_tensor(KEY, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _four_bits(tensor: Tensor, to: str) -> dict[str, Tensor]:
    bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is a peer")
    params = bnb.nn.Params4bit(tensor.clone(), requires_grad=False, quant_type=to).to("cpu")
    layer = bnb.nn.Linear4bit(tensor.shape[1], tensor.shape[0], bias=False, quant_type=to)
    layer.weight = params
    state = nn.Sequential(layer).state_dict()
    name = KEY.removesuffix("weight")
    return {key.replace("0.", name, 1): value.contiguous() for key, value in state.items()}


def errors_of_ranks(difference: Tensor, true: Tensor) -> Tensor:
    """Relative error against the true change of the difference cut to each rank, from 1 on; float64."""
    u, s, vh = torch.linalg.svd(difference.double(), full_matrices=False)
    along = (u.T @ true.double() * vh).sum(1)
    square = true.double().square().sum()
    return ((square + (s.square() - 2 * s * along).cumsum(0)) / square).clamp(min=0).sqrt()


def relative(found: Tensor, true: Tensor) -> float:
    """Relative error, Frobenius."""
    return float((found.double() - true.double()).norm() / true.double().norm())
