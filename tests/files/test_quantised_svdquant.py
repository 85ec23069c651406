"""Files of Nunchaku stand for what DeepCompressor's converter was given, under the model's own names."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from deepcompressor_state import as_deepcompressor
from nunchaku_models import (
    FIRST,
    LAST,
    SHIFT,
    WIDTH,
    metadata,
    quantised,
    tiny,
    truth,
    written,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from lorakit.lora_ops.files import QuantisedSource, open_source, refuse_quantised
from lorakit.lora_ops.models.architectures import parameters
from lorakit.lora_ops.source import DictSource

MODEL = tiny()
FILE = Path(__file__).parents[1] / "helpers" / "data" / "deepcompressor-69f3473.safetensors"
GIVEN = load_file(FILE)
FLOAT32 = 2e-7  # its rounding, relative


def opened(tensors: dict[str, Tensor], folder: Path) -> QuantisedSource:
    save_file(tensors, folder / "a.safetensors", metadata())
    source = open_source(folder / "a.safetensors")
    assert isinstance(source, QuantisedSource)
    refuse_quantised(source)
    return source


def off(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("later", [False, True], ids=["first names", "later names"])
@pytest.mark.parametrize("fused", [False, True], ids=["smoothed", "smoothed before"])
@pytest.mark.parametrize("floats", [False, True], ids=["int4", "nvfp4"])
def test_a_whole_model(floats: bool, fused: bool, later: bool, tmp_path: Path) -> None:
    layers = quantised(MODEL, floats, fused)
    exact = truth(MODEL, layers)
    with opened(written(MODEL, layers, later), tmp_path) as source:
        assert sorted(source.keys()) == sorted(MODEL)
        assert source.metadata == {"config": metadata()["config"]}
        for key, weight in MODEL.items():
            assert source.shape(key) == tuple(weight.shape)
            assert off(source.tensor(key), exact[key]) <= FLOAT32, key
        stored = {source.storage(key) for key in MODEL if "blocks" in key and "norm_" not in key}
        name = f"SVDQuant {'nvfp4' if floats else 'int4'}"
        biases = {"bf16, packed", "bf16, 1 added"} | ({"bf16, shifted"} if not floats else set())
        assert stored == {name, "AWQ int4", *biases}
        assert all(one.component == "unet" for one in parameters(source).values())


def test_qwen_image_has_the_same_layers(tmp_path: Path) -> None:
    names = {"ff.net": "img_mlp.net", "ff_context.net": "txt_mlp.net"}
    names |= {"norm1.linear": "img_mod.1", "norm1_context.linear": "txt_mod.1"}

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {key: tensor for key, tensor in tensors.items() if key.startswith(FIRST)}
        for old, new in names.items():
            found = {key.replace(f".{old}.", f".{new}."): t for key, t in found.items()}
        return found

    layers = quantised(MODEL)
    exact = renamed(truth(MODEL, layers))
    with opened(renamed(written(MODEL, layers, later=True)), tmp_path) as source:
        assert sorted(source.keys()) == sorted(exact)
        assert all(off(source.tensor(key), one) <= FLOAT32 for key, one in exact.items())


Z_NAMES = {"attn.to_qkv": "attention.to_qkv", "attn.to_out.0": "attention.to_out.0"}
Z_NAMES |= {"ff.net.0.proj": "feed_forward.net.0.proj", "ff.net.2": "feed_forward.net.2"}


@pytest.mark.parametrize("biased", [False, True], ids=["zeros", "biases"])
@pytest.mark.parametrize("floats", [False, True], ids=["int4", "nvfp4"])
def test_z_image_gates_the_other_half(floats: bool, biased: bool, tmp_path: Path) -> None:
    """Its MLP as diffusers' SwiGLU, for which Nunchaku changes it; what is not quantised is fused, too."""
    layers = quantised(MODEL, floats)
    stored, exact = written(MODEL, layers, later=True), truth(MODEL, layers)
    tensors: dict[str, Tensor] = {}
    for old, new in Z_NAMES.items():
        for key in [key for key in stored if key.startswith(f"{FIRST}.{old}.")]:
            tensor = stored[key] if biased or not key.endswith("bias") else 0 * stored[key]
            tensors[f"layers.3.{new}.{key.rpartition('.')[2]}"] = tensor
    plain = {name: MODEL[f"{FIRST}.ff.{name}.weight"] for name in ("net.0.proj", "net.2")}
    tensors |= {f"noise_refiner.0.feed_forward.{k}.weight": t for k, t in plain.items()}
    x = torch.randn(5, WIDTH).double()
    with opened(tensors, tmp_path) as source:
        keys = list(source.keys())
        parts = [f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
        ff = [f"feed_forward.w{i}.weight" for i in (1, 2, 3)]
        wanted = {f"layers.3.{part}" for part in (*(f"{part}.weight" for part in parts), *ff)}
        wanted |= {f"noise_refiner.0.{part}" for part in ff}
        biases = {key for key in keys if key.endswith("bias")}
        assert {*keys} - biases == wanted
        assert len(biases) == 7 * biased
        for block, made in (
            ("layers.3", [exact[f"{FIRST}.ff.{name}.weight"] for name in plain]),
            ("noise_refiner.0", [tensor.double() for tensor in plain.values()]),
        ):
            hidden, gate = (x @ made[0].T).chunk(2, dim=-1)
            w1, w2, w3 = (
                source.tensor(f"{block}.feed_forward.w{i}.weight").double() for i in (1, 2, 3)
            )
            does = (hidden * functional.silu(gate)) @ made[1][:, : 2 * WIDTH].T
            found = (functional.silu(x @ w1.T) * (x @ w3.T)) @ w2[:, : 2 * WIDTH].T
            assert off(found, does) <= 2 * FLOAT32
            assert w2.shape == (WIDTH, 4 * WIDTH)
        value = exact[f"{FIRST}.attn.to_v.weight"]
        assert off(source.tensor("layers.3.attention.to_v.weight"), value) <= FLOAT32
        if biased:
            bias = next(o for o in layers if o.names[1] == "ff.net.2").stored_bias.double()
            assert torch.equal(source.tensor("layers.3.feed_forward.w2.bias").double(), bias)
        part = "noise_refiner.0.feed_forward.w1.weight"
        assert source.storage(part) == "bf16, fused"
        assert torch.equal(source.grid(part, w1), DictSource({"a": w1.bfloat16()}).grid("a", w1))


def given(layer: str, part: str) -> Tensor:
    return GIVEN[f"given.{FIRST}.{layer}.{part}"].double()


def test_layers_that_deepcompressor_packed(tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in GIVEN.items() if not key.startswith("given.")}
    names = {"mlp_fc1": "ff.net.0.proj", "mlp_fc2": "ff.net.2"}
    scale = given("mlp_fc1", "scale") * given("mlp_fc1", "whole")
    numbers = given("mlp_fc1", "numbers").view(128, 8, 16) / 2
    parts = {"mlp_fc1": (numbers * scale.unsqueeze(-1)).flatten(1)}
    numbers = given("mlp_fc2", "codes").view(128, 2, 64)
    parts["mlp_fc2"] = (numbers * given("mlp_fc2", "scale").unsqueeze(-1)).flatten(1)
    with opened(tensors, tmp_path) as source:
        for layer, codes in parts.items():
            smooth, down = given(layer, "smooth"), given(layer, "down")
            unsmoothed = (down / smooth).bfloat16().double()
            exact = codes / smooth + given(layer, "up") @ unsmoothed
            found = source.tensor(f"{FIRST}.{names[layer]}.weight")
            assert off(found, exact) <= FLOAT32
            bias = given(layer, "bias")
            if layer == "mlp_fc2":
                branch = given(layer, "up") @ (down / smooth)
                bias = (bias + SHIFT * branch.sum(1)).bfloat16().double()
                bias += SHIFT * (codes / smooth).sum(1)
            assert off(source.tensor(f"{FIRST}.{names[layer]}.bias"), bias) <= FLOAT32
        scale = given("norm1.linear", "scale").unsqueeze(-1)
        numbers = given("norm1.linear", "codes").view(24, 2, 64)
        offset = (scale * 7).bfloat16().double()
        exact = (numbers * scale - offset).flatten(1)
        assert off(source.tensor(f"{FIRST}.norm1.linear.weight"), exact) <= FLOAT32
        bias = given("norm1.linear", "bias").view(6, 4)
        bias[[1, 4]] = (bias[[1, 4]] + 1).bfloat16().double() - 1
        assert torch.equal(source.tensor(f"{FIRST}.norm1.linear.bias").double(), bias.flatten())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_deepcompressor_writes_the_same_file(floats: bool, fused: bool, monkeypatch: Any) -> None:
    """Its whole converter, where `DEEPCOMPRESSOR_PATH` is its repository: the files above are as it writes them."""
    monkeypatch.setattr(sys, "path", [os.environ.get("DEEPCOMPRESSOR_PATH", ""), *sys.path])
    convert: Any = pytest.importorskip(
        "deepcompressor.backend.nunchaku.convert",
        reason="set DEEPCOMPRESSOR_PATH to the repository of DeepCompressor",
    )
    layers = quantised(MODEL, floats, fused)
    saved = copy.deepcopy(as_deepcompressor(MODEL, layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks, others = convert.convert_to_nunchaku_flux_state_dicts(*saved, float_point=floats)
    ours, theirs = written(MODEL, layers), {**blocks, **others}
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (tensor.dtype, tensor.shape) == (ours[key].dtype, ours[key].shape), key
        assert torch.equal(tensor.view(torch.uint8), ours[key].view(torch.uint8)), key


def test_what_a_layer_does_behind_gelu(tmp_path: Path) -> None:
    """As Nunchaku's kernel has it: the shifted input goes to the codes alone, the bias makes up for it."""
    layers = quantised(MODEL)
    one = next(one for one in layers if one.names[0] == "mlp_fc2" and one.block == FIRST)
    x = functional.gelu(torch.randn(7, 4 * WIDTH).double())
    made = (x + SHIFT) / one.smooth.double() @ one.rest.T
    made += x @ one.stored_down.double().T @ one.up.double().T + one.stored_bias.double()
    with opened(written(MODEL, layers), tmp_path) as source:
        weight, bias = (source.tensor(f"{FIRST}.ff.net.2.{kind}") for kind in ("weight", "bias"))
        assert off(x @ weight.double().T + bias.double(), made) <= FLOAT32
        # Near what was quantised: the stored bias alone is not.
        was = MODEL[f"{FIRST}.ff.net.2.bias"].double()
        assert off(bias, was) < 0.1 < off(one.stored_bias, was)


@pytest.mark.parametrize(
    ("block", "name", "vectors"), [(FIRST, "norm1.linear", 6), (LAST, "norm.linear", 3)]
)
def test_what_modulations_do(block: str, name: str, vectors: int, tmp_path: Path) -> None:
    """As Nunchaku's modules take what the layer makes: the vectors lie interleaved, scales have their 1."""
    tensors = written(MODEL, quantised(MODEL))
    parts = {
        kind: tensors[f"{block}.{name}.{kind}"].double() for kind in ("wscales", "wzeros", "bias")
    }
    words = tensors[f"{block}.{name}.qweight"].view(torch.int16).view(-1, 2, 4, 16).transpose(1, 2)
    four = words.reshape(vectors * WIDTH, 4, 1, 8) >> torch.tensor([0, 4, 8, 12]).view(4, 1) & 15
    spread = (parts[kind][:2].T.repeat_interleave(64, 1) for kind in ("wscales", "wzeros"))
    scales, zeros = spread
    x = torch.randn(WIDTH).double()
    made = (four.reshape(-1, WIDTH) * scales + zeros) @ x + parts["bias"]
    chunks = made.view(WIDTH, vectors).T.clone()
    with opened(tensors, tmp_path) as source:
        weight, bias = (
            source.tensor(f"{block}.{name}.{kind}").double() for kind in ("weight", "bias")
        )
    found = (weight @ x + bias).view(vectors, WIDTH)
    found[[1, -2]] += 1
    assert off(found, chunks) <= FLOAT32


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_grid_is_that_of_the_rounding(floats: bool, fused: bool, tmp_path: Path) -> None:
    """Every number is within its reach of what was quantised, and the noise is what the spacing says."""
    with opened(written(MODEL, quantised(MODEL, floats, fused)), tmp_path) as source:
        for key in source.weights:
            found, was = source.tensor(key), MODEL[key]
            apart = (found - was.float()).abs().double()
            assert bool((apart <= source.reach(key, found)).all()), key
            grid = source.grid(key, found)
            if key.endswith("weight"):
                ratio = float(apart.square().mean().sqrt() / (grid.square().mean() / 12).sqrt())
                assert 0.85 < ratio < 1.05, key
            # A run in the middle of rows is told the same.
            run = slice(37, 37 + min(4 * WIDTH, found.numel() - 40))
            part = source.grid(key, found.flatten()[run], run.start)
            assert torch.equal(part, grid.flatten()[run])


def test_bytes_are_counted_once(tmp_path: Path) -> None:
    tensors = written(MODEL, quantised(MODEL))
    size = sum(t.numel() * t.itemsize for t in tensors.values())
    with opened(tensors, tmp_path) as source:
        assert sum(map(source.stored_size, source.keys())) == pytest.approx(size, rel=0.005)
        assert [sorted(part) for part in source.parts()] == [sorted(source.keys())]
