"""Blocks of GGUF rounded by chance: each number a neighbour of its own, the mean the number itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_files import gguf, kind_of, numbers_of, read
from safetensors.torch import save_file
from tiny_flux import numbers
from torch import Tensor

from lorakit.lora_ops import open_source
from lorakit.lora_ops.files.quantised.encoding_gguf import GGUF_SCHEMES
from lorakit.lora_ops.operations.requantise import file as requantise
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.weights import terms
from lorakit.lora_ops.run.devices import Placement

KEY = "double_blocks.0.img_attn.proj.weight"
SEEDS = 16
TRUTH = numbers(1)[KEY].double()


def written(folder: Path, to: str, **asked: object) -> tuple[Tensor, bytes]:
    """The numbers of a weight by the package, and its bytes."""
    model, output = folder / "model.safetensors", folder / "out.gguf"
    if not model.exists():
        save_file(numbers(1), model)
    with open_source(model) as source:
        whole = ["single*", "*txt*", "*img_m*", "*qkv*"]
        plan = plan_requantise_file(source, to, output=output, force=True, whole=whole, **asked)
        requantise.requantise_file(plan, output, force=True)
    one = read(output)[0][KEY]
    return numbers_of(one).view(TRUTH.shape).double(), bytes(one.data.tobytes())


@pytest.mark.parametrize("to", GGUF_SCHEMES)
def test_each_is_a_neighbour_and_their_mean_the_number(tmp_path: Path, to: str) -> None:
    near, codes = written(tmp_path, to)
    heads = _heads(codes, to)
    total = torch.zeros_like(TRUTH)
    scales = heads[:, :1].abs().repeat_interleave(32, dim=0).view(TRUTH.shape)
    for seed in range(SEEDS):
        found, drawn = written(tmp_path, to, rounding="stochastic", seed=seed)
        assert torch.equal(_heads(drawn, to), heads), "the scales are those of the nearest"
        assert drawn != codes
        # Beyond the largest whole number there is none: in blocks of 4 and 5 bits of the other sign.
        inside = ((found - TRUTH).abs() <= scales * (1 + 1e-5)).double().mean()
        assert inside == 1 if to in ("q8_0", "q4_1", "q5_1") else inside > 0.99
        total += found
    mean = total / SEEDS - TRUTH
    assert (mean.abs() < 4 * scales / SEEDS**0.5).double().mean() > 0.995
    assert mean.norm() < 1.5 * 2**0.5 * (near - TRUTH).norm() / SEEDS**0.5


def _heads(codes: bytes, to: str) -> Tensor:
    """The scales of blocks, and what is added."""
    block, size = gguf.GGML_QUANT_SIZES[kind_of(to.upper())]
    assert block == 32
    blocks = torch.frombuffer(bytearray(codes), dtype=torch.uint8).view(-1, size)
    return blocks[:, : 4 if to.endswith("_1") else 2].contiguous().view(torch.float16).double()


@pytest.mark.parametrize("to", GGUF_SCHEMES)
def test_tiles_and_threads_give_the_same_bytes(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = written(tmp_path, to, rounding="stochastic", seed=5)
    monkeypatch.setattr(terms, "TILE", 8192)
    one = Placement(torch.device("cpu"), 1)
    monkeypatch.setattr(requantise, "place", lambda _: one)
    _, again = written(tmp_path, to, rounding="stochastic", seed=5)
    assert first == again
    _, other = written(tmp_path, to, rounding="stochastic", seed=6)
    assert first != other


def test_what_can_be_stored_stays_and_zeros_do(tmp_path: Path) -> None:
    """Numbers of the blocks themselves are drawn as what they are, by any seed."""
    found, _ = written(tmp_path, "q8_0")
    weights = numbers(1) | {KEY: found.float()}
    weights[KEY][3] = 0
    save_file(weights, tmp_path / "model.safetensors")
    for seed in range(3):
        again, _ = written(tmp_path, "q8_0", rounding="stochastic", seed=seed)
        assert torch.equal(again.float(), weights[KEY])
