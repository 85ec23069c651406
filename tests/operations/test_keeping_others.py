"""Files of bitsandbytes' int8 and of torchao stay stored so where a bake changes them, as both read them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from storing import STORED, exact
from tiny_flux import LAYERS, STRENGTH, adapter, numbers
from torch import Tensor, nn

from lorakit.lora_ops import Ingredient, Report, open_source
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.weights.change import BakedLayer

KINDS = ["bitsandbytes", "int8", "int4", "fp8"]
STORAGES = {
    "bitsandbytes": "int8",
    "int8": "int8 of torchao",
    "int4": "int of torchao",
    "fp8": "fp8 of torchao",
}
CHANGED = [f"{layer}.weight" for layer in LAYERS]
#: The other layers that are stored so.
SAME = [f"{layer}.weight" for layer in STORED if layer not in LAYERS]


def stored(kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A Flux whose layers are stored so, by the layouts' definitions, and the metadata."""
    tensors, metadata, names = dict[str, Tensor](), dict[str, str](), list[str]()
    for key, weight in numbers(1).items():
        layer, _, last = key.rpartition(".")
        if layer not in STORED or last != "weight":
            tensors[key] = weight
            continue
        names.append(key)
        if kind == "bitsandbytes":
            largest = weight.abs().amax(dim=1)
            tensors[key] = (weight * (127 / largest)[:, None]).round().to(torch.int8)
            tensors[f"{layer}.SCB"] = largest
            tensors[f"{layer}.weight_format"] = torch.zeros((), dtype=torch.uint8)
            continue
        about: dict[str, object] = {"dtype": {"_type": "torch.dtype", "_data": "bfloat16"}}
        rows, group = len(weight), 32 if kind == "int4" else weight.shape[1]
        most = {"int8": 127.5, "int4": 7.5, "fp8": 448.0}[kind]
        blocks = weight.view(rows, -1, group)
        scales = blocks.abs().amax(dim=2) / most
        codes = (blocks / scales.unsqueeze(2)).view(weight.shape)
        if kind == "fp8":
            name, codes = "Float8Tensor", codes.to(torch.float8_e4m3fn)
        else:
            ends = (-8, 7) if kind == "int4" else (-128, 127)
            codes = codes.round().clamp(*ends).to(torch.int8)
            name = "Int8Tensor" if kind == "int8" else "IntxUnpackedToInt8Tensor"
            about["target_dtype"] = {"_type": "torch.dtype", "_data": kind}
            zeros = torch.zeros(scales.shape, dtype=torch.int8)
            tensors[f"{layer}._weight_zero_point"] = zeros
        tensors[f"{layer}._weight_qdata"] = codes
        tensors[f"{layer}._weight_scale"] = scales
        metadata[key] = json.dumps({"_type": name, "_data": about})
    return tensors, metadata | ({"tensor_names": json.dumps(names)} if metadata else {})


def baked(model: Path, output: Path, **asked: Any) -> Report:
    save_file(adapter(), model.with_name("lora.safetensors"))
    with (
        open_source(model) as source,
        open_source(model.with_name("lora.safetensors")) as lora,
    ):
        plan = plan_bake_file(source, [Ingredient(lora, STRENGTH)], output=output, **asked)
        return bake_file(plan, source, output)


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_stays_stored_so(tmp_path: Path, kind: str) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    tensors, metadata = stored(kind)
    save_file(tensors, model, metadata)
    report = baked(model, output)
    found = load_file(output)
    assert {k: (t.dtype, t.shape) for k, t in found.items()} == {
        k: (t.dtype, t.shape) for k, t in tensors.items()
    }
    parts = [k for k in tensors if not k.startswith(tuple(f"{layer}." for layer in LAYERS))]
    assert all(torch.equal(found[k].float(), tensors[k].float()) for k in parts)
    assert not any("only read" in note for note in report.notes)
    kept = {one.target: one for one in report.layers if isinstance(one, BakedLayer)}
    with open_source(model) as old, open_source(output) as new:
        assert {new.storage(key) for key in (*CHANGED, *SAME)} == {STORAGES[kind]}
        for key in CHANGED:
            change = exact()[key] - exact(0.0)[key]
            meant, is_now = old.tensor(key).double() + change, new.tensor(key).double()
            steps = new.grid(key, meant) * (1 if kind == "fp8" else 0.501)
            rounding = 0 if kind == "bitsandbytes" else 2**-8 * meant.abs()
            over = (is_now - meant).abs() - steps - rounding
            assert (over <= 1e-6).double().mean() > (0.98 if kind == "int4" else 0.9999)
            cosine = torch.cosine_similarity(
                (is_now - old.tensor(key).double()).flatten(), change.flatten(), dim=0
            )
            one = kept[f"diffusion_model.{key.removesuffix('.weight')}"]
            assert one.cosine == pytest.approx(float(cosine), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_by_chance_the_mean_is_the_sum(tmp_path: Path, kind: str) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    tensors, metadata = stored(kind)
    save_file(tensors, model, metadata)
    key, total, count = CHANGED[0], torch.zeros(()), 8
    near = torch.zeros(())
    for seed in range(-1, count):
        asked = {} if seed < 0 else {"rounding": "stochastic", "seed": seed}
        output.unlink(missing_ok=True)
        baked(model, output, **asked)
        with open_source(model) as old, open_source(output) as new:
            lost = new.tensor(key).double() - old.tensor(key).double()
        lost -= exact()[key] - exact(0.0)[key]
        if seed < 0:
            near = lost.norm()
        else:
            total = total + lost
    assert (total / count).norm() < 1.5 * 2**0.5 * near / count**0.5


def test_bitsandbytes_decodes_what_is_written(tmp_path: Path) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is a peer")
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    tensors, _ = stored("bitsandbytes")
    for layer in STORED:
        weight = numbers(1)[f"{layer}.weight"].half()
        codes, sizes, _ = bnb.functional.int8_vectorwise_quant(weight)
        tensors[f"{layer}.weight"], tensors[f"{layer}.SCB"] = codes, sizes
    save_file(tensors, model)
    baked(model, output)
    found = load_file(output)
    with open_source(output) as source:
        for key in (*CHANGED, *SAME):
            sizes = found[f"{key.removesuffix('.weight')}.SCB"]
            truth = bnb.functional.int8_vectorwise_dequant(found[key], sizes)
            assert torch.equal(source.tensor(key), truth), key


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_torchao_decodes_what_is_written(tmp_path: Path, kind: str) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "torchao is in no environment but its own"
        support: Any = pytest.importorskip(
            "torchao.prototype.safetensors.safetensors_support", reason=reason
        )
        api: Any = pytest.importorskip("torchao.quantization")
        config = {
            "int8": lambda: api.Int8WeightOnlyConfig(version=2),
            "fp8": api.Float8WeightOnlyConfig,
            "int4": lambda: api.IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=api.PerGroup(32)
            ),
        }[kind]
        state: dict[str, Tensor] = {}
        for key, weight in numbers(1, torch.bfloat16).items():
            state[key] = weight
            if key.removesuffix(".weight") in STORED:
                module = nn.Sequential(nn.Linear(weight.shape[1], len(weight), bias=False))
                module[0].weight = nn.Parameter(weight)
                api.quantize_(module, config())
                state[key] = module[0].weight
        tensors, metadata = support.flatten_tensor_state_dict(state)
        save_file({k: t.contiguous() for k, t in tensors.items()}, model, metadata)
        baked(model, output)
        with open_source(output) as source:
            told = source.original.metadata
            unflatten = support.unflatten_tensor_state_dict
            back, left = unflatten(load_file(output), told)
            assert left == {}
            for key in (*CHANGED, *SAME):
                assert type(back[key]) is type(state[key])
                assert torch.equal(source.tensor(key), back[key].dequantize().float()), key
            for key in CHANGED:
                assert not torch.equal(back[key].dequantize(), state[key].dequantize())
