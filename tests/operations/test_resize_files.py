"""Resize from file to file: sizes, strengths and what is carried, read back by other programs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import adapters
import pytest
import torch
from adapters import DTYPES, EVERY_FORM, FORMATS, SHAPES, Part
from bits import raw
from oracles import best_error, error_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.resize.file import resize_file

# What float32 arithmetic may add to an error, as a share of the change.
FLOOR = 1e-6


def best(before, rank):
    return best_error(before.flatten(1), rank)


def file_of(tmp_path, tensors, metadata=None):
    return open_source(adapters.written(tmp_path / "in.safetensors", tensors, metadata))


def resized_file(tmp_path, tensors, rule, metadata=None, **options):
    """Tensors, metadata, report and size of the file that comes of a file with these tensors."""
    out = tmp_path / "out.safetensors"
    with file_of(tmp_path, tensors, metadata) as source:
        report = resize_file(source, out, rule, force=True, **options)
    with safe_open(out, "pt") as opened:
        return load_file(out), opened.metadata(), report, out.stat().st_size


# --- Budgets -------------------------------------------------------------------------------------

HEAVY = [Part("linear", 32, 1.0, shape=(120, 90)), Part("conv3x3", 16, 1.0, shape=(40, 20, 3, 3))]
EXTRAS = {
    "bundle_emb.word.string_to_param.*": torch.ones(3, 768),
    "diffusion_model.norm.diff": torch.ones(9000).half(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", [{}, EXTRAS])
@pytest.mark.parametrize("asked", [None, torch.float32])
def test_a_file_is_never_larger_than_its_budget(tmp_path, dtype, extras, asked):
    """Also where layers keep their float64, and full differences and embeddings take their part."""
    tensors = adapters.tensors([replace(part, dtype=dtype) for part in HEAVY], "comfy") | extras
    with pytest.raises(ArgumentError, match=r"is too small.*give `size=\d+` or more") as caught:
        resized_file(tmp_path, tensors, "size=1", dtype=asked)
    least = int(re.findall(r"\d+", str(caught.value))[-1])
    sizes: list[int] = []
    for more in range(0, 100_000, 4_500):
        *_, size = resized_file(tmp_path, tensors, f"size={least + more}", dtype=asked)
        assert size <= least + more
        sizes.append(size)
    assert sizes[-1] > 2 * sizes[0] - sum(tensor.nbytes for tensor in extras.values())


def test_a_budget_of_size_is_used(tmp_path):
    """What the header is given to grow into is what may be left over."""
    tensors = adapters.tensors([replace(part, dtype=torch.float32) for part in HEAVY])
    *_, size = resized_file(tmp_path, tensors, "size=40kB")
    assert 30_000 < size <= 40_000


@pytest.mark.parametrize("rule", ["3", "mean=3"])
def test_full_differences_are_kept(rule, tmp_path):
    full = {
        "diffusion_model.norm.diff": torch.randn(7).half(),
        "diffusion_model.proj.diff_b": torch.randn(9),
        "diffusion_model.table.diff": torch.randn(4, 6).bfloat16(),
    }
    found, _, report, _ = resized_file(tmp_path, adapters.tensors(format="comfy") | full, rule)
    for key, tensor in full.items():
        assert (found[key].dtype, raw(found[key])) == (tensor.dtype, raw(tensor))
    assert sorted(layer.kind for layer in report.layers if layer.is_full) == [
        "bias",
        "full",
        "full",
    ]
    found, _, report, _ = resized_file(
        tmp_path, adapters.tensors(format="comfy") | full, rule, dtype=torch.float16
    )
    assert {found[key].dtype for key in full} == {torch.float16}
    rounded = {layer.target: layer.residual for layer in report.layers if layer.is_full}
    bias = full["diffusion_model.proj.diff_b"]
    assert rounded["diffusion_model.proj.bias"] == pytest.approx(
        float((bias.double() - bias.half().double()).norm())
    )


# --- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rule", ["3", "64", "mean=3", "energy=0.8"])
def test_a_file_means_the_same_after_as_before(tmp_path, format, rule):
    """Read back by the safetensors library, its names read as their loaders read them."""
    alpha = 4.0 if format in ("kohya", "comfy") else None
    tensors = adapters.tensors([Part(form, 6, alpha) for form in SHAPES], format)
    found, _, report, size = resized_file(tmp_path, tensors, rule)
    before, after = adapters.changes(tensors), adapters.changes(found)
    assert set(after) | {s.target for s in report.skips} == set(before)
    assert set(found) <= set(tensors)
    assert report.size == size
    ranks = {layer.target: layer.rank for layer in report.layers}
    for module, change in after.items():
        old = before[module]
        allowed = best(old, ranks[module]) * (1 + 1e-5) + FLOOR * float(old.norm())
        assert error_of(old, change) <= allowed


@pytest.mark.parametrize(("component", "format"), [("", "peft"), ("transformer", "diffusers")])
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("rule", ["3", "6", "64", "energy=0.8"])
def test_a_peft_file_keeps_its_strength_and_tells_the_truth(
    tmp_path, component, format, more, rule
):
    """alpha is 4 times r in the configuration, so the factors must take it; twin: carried as it is."""
    tensors = adapters.tensors([Part(form, 6, seed=n) for n, form in enumerate(SHAPES)], format)
    metadata = adapters.peft_config(6, 24.0, component, **more)
    scale = 24 / math.sqrt(6) if more else 4.0
    found, told, report, _ = resized_file(tmp_path, tensors, rule, metadata)
    before = adapters.changes(tensors, scale)
    config = json.loads(told["lora_adapter_metadata"])
    prefix = f"{component}." if component else ""
    ranks = {layer.target: layer.rank for layer in report.layers}
    for module, change in before.items():
        down = found[next(k for k in found if k.startswith(module) and ("_A" in k or "down" in k))]
        name = module.removeprefix("base_model.model.").removeprefix(prefix)
        rank = config[f"{prefix}rank_pattern"].get(name, config[f"{prefix}r"])
        alpha = config[f"{prefix}alpha_pattern"].get(name, config[f"{prefix}lora_alpha"])
        assert len(down) == rank == alpha == ranks[module]
        assert not config.get(f"{prefix}use_rslora", False)
        after = adapters.changes(found)[module]
        allowed = best(change, rank) * (1 + 1e-5) + FLOOR * float(change.norm())
        assert error_of(change, after) <= allowed
        assert error_of(change, scale * after) > 2 * allowed


def test_other_tensors_are_carried(tmp_path):
    tensors = adapters.tensors(EVERY_FORM) | {
        "bundle_emb.word.string_to_param.*": torch.randn(2, 768).half(),
        "something.else": torch.arange(5),
    }
    found, *_ = resized_file(tmp_path, tensors, 3)
    for key in ("bundle_emb.word.string_to_param.*", "something.else"):
        assert (found[key].dtype, raw(found[key])) == (tensors[key].dtype, raw(tensors[key]))


def test_weights_to_compare_with_need_a_budget(tmp_path):
    with (
        file_of(tmp_path, adapters.tensors()) as source,
        pytest.raises(ArgumentError, match="use a budget"),
    ):
        resize_file(source, tmp_path / "out.safetensors", 3, relative_to=source)
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_are_stored_with_scales_are_measured_with_them(tmp_path):
    """Read plainly, their norms would be wrong by the scales."""
    keys = [f"diffusion_model.blocks.0.self_attn.{name}" for name in "qk"]
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    scaled = {f"{key}.weight": codes for key in keys}
    scaled = {key: one.clone() for key, one in scaled.items()}
    scaled[f"{keys[0]}.scale_weight"] = torch.tensor(3.0)
    save_file(scaled, tmp_path / "base.safetensors")
    factors = {f"{key}.lora_B.weight": torch.eye(8)[:, :2].clone() for key in keys}
    factors |= {
        f"{key}.lora_A.weight": torch.eye(8)[:2] * torch.tensor([[1.0], [0.9]]) for key in keys
    }
    save_file(factors, tmp_path / "lora.safetensors")
    with (
        open_source(tmp_path / "base.safetensors") as base,
        open_source(tmp_path / "lora.safetensors") as lora,
    ):
        resize_file(lora, tmp_path / "out.safetensors", "mean=1", relative_to=base)
    found = load_file(tmp_path / "out.safetensors")
    ranks = {key: one.shape[0] for key, one in found.items() if "lora_A" in key}
    assert ranks == {f"{keys[1]}.lora_A.weight": 2}, "the weight of the other is thrice as large"
