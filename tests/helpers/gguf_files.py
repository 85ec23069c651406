"""GGUF files by llama.cpp's package: blocks of any type, and what it reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")


def kind_of(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def blocks(name: str, rows: int = 6, columns: int = 512) -> Any:
    """Random bytes, of which the scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind_of(name)]
    found = np.random.default_rng(0).integers(
        0, 256, (rows, columns // block, size), dtype=np.uint8
    )
    halves = {
        "Q4_1": (0, 2),
        "Q5_1": (0, 2),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q6_K": (208,),
    }
    for place in halves.get(name, () if name in ("NVFP4", "IQ1_M") else (0,)):
        found[..., place : place + 2] = np.array([0.01], np.float16).view(np.uint8)
    return found.reshape(rows, -1)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors by name, and what the header says."""
    reader = gguf.GGUFReader(path)
    return {one.name: one for one in reader.tensors}, {
        name: field.contents() for name, field in reader.fields.items()
    }


def numbers_of(tensor: Any) -> torch.Tensor:
    """What a tensor stands for, in the shape that it has in the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(found, np.float32))
