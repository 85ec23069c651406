"""Control-LoRAs against float64 loops: what is written, its error, and the ControlNet that comes of it."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from controlnets import SHARED, UNETS, control_lora, controlnet, filled, product, written
from graphs import scaled_fp8
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import (
    bake_control_file,
    compare,
    convert_file,
    decode,
    open_source,
    plan_control_bake_file,
    resize_file,
    verify,
)

MARK = "lora_controlnet"


@pytest.fixture
def pair(tmp_path):
    base = filled(UNETS["sd1"])
    return base, controlnet(base), written(tmp_path, base, controlnet(base))


def baked(base, control, output, **options):
    with open_source(base) as one, open_source(control) as other:
        plan = plan_control_bake_file(one, other, output=output, **options)
        return bake_control_file(plan, one, other, output)


def error_of(layers, base, tuned, held):
    """The error of a file, recomputed: whole parameters may be rounded, too."""
    lost = whole = 0.0
    for name, weight in tuned.items():
        if not name.startswith(SHARED):
            continue
        true = weight.double() - base[name].double()
        module = name.removesuffix(".weight")
        if f"{module}.up" in held:
            made = product(held, module, tuple(weight.shape))
        else:
            made = held[name].double() - base[name].double()
        lost, whole = lost + float((true - made).norm()) ** 2, whole + float(true.norm()) ** 2
    assert len(layers) == sum(name.startswith(SHARED) for name in tuned)
    return math.sqrt(lost / whole)


@pytest.mark.parametrize(
    ("model", "prefix", "base_prefix"),
    [
        ("sd1", "control_model.", "model.diffusion_model."),
        ("sd2", "", ""),
        ("sdxl", "", "model.diffusion_model."),
    ],
)
def test_a_file_holds_what_the_host_reads(tmp_path, model, prefix, base_prefix):
    """Factors of matrices, all else whole, in native names without any prefix, and the mark."""
    base = filled(UNETS[model])
    tuned = controlnet(base)
    paths = written(tmp_path, base, tuned, base_prefix, prefix)
    report = control_lora(*paths, tmp_path / "out.safetensors")
    held = load_file(tmp_path / "out.safetensors")
    wanted = {MARK}
    for name, weight in tuned.items():
        module = name.removesuffix(".weight")
        if weight.ndim > 1 and name.startswith(SHARED):
            wanted |= {f"{module}.up", f"{module}.down"}
            up, down = held[f"{module}.up"], held[f"{module}.down"]
            assert up.shape == (len(weight), 4, *(1 for _ in weight.shape[2:]))
            assert down.shape == (4, *weight.shape[1:])
            best = oracles.best_error((weight - base[name]).flatten(1).double(), 4)
            missed = weight.double() - base[name] - product(held, module, tuple(weight.shape))
            assert float(missed.norm()) == pytest.approx(best, rel=2e-3)
        else:
            wanted.add(name)
            assert torch.equal(held[name], weight)
    assert held.keys() == wanted
    assert report.error == pytest.approx(error_of(report.layers, base, tuned, held), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_error_is_that_of_the_numbers_written(tmp_path, pair, dtype):
    base, tuned, paths = pair
    report = control_lora(*paths, tmp_path / "out.safetensors", "512", dtype=dtype)
    held = load_file(tmp_path / "out.safetensors")
    assert {one.dtype for key, one in held.items() if key != MARK} == {dtype}
    assert 0 < report.error < 0.02
    assert report.error == pytest.approx(error_of(report.layers, base, tuned, held), rel=1e-4)


def test_the_metadata_say_what_it_is(tmp_path, pair):
    _, _, paths = pair
    report = control_lora(*paths, tmp_path / "out.safetensors", "energy=0.5", exact=True, seed=7)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        told = file.metadata()
    assert told["lorakit.kind"] == "control-lora"
    assert told["lorakit.rank"] == "energy=0.5"
    assert (told["lorakit.exact"], told["lorakit.seed"]) == ("True", "7")
    assert (told["lorakit.base"], told["lorakit.tuned"]) == (
        "base.safetensors",
        "controlnet.safetensors",
    )
    assert float(told["lorakit.error"]) == pytest.approx(report.error, rel=1e-4)
    assert not any(key.startswith("ss_") for key in told)


def test_same_inputs_give_the_same_bytes(tmp_path, pair):
    _, _, paths = pair
    first = control_lora(*paths, tmp_path / "a.safetensors", seed=3)
    second = control_lora(*paths, tmp_path / "b.safetensors", seed=3)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.error == second.error
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_a_pattern_leaves_out_is_the_unets_own(tmp_path, pair):
    base, _, paths = pair
    report = control_lora(*paths, tmp_path / "out.safetensors", exclude=["*attn*"])
    held = load_file(tmp_path / "out.safetensors")
    assert not any("attn1.to_q" in key for key in held)
    assert {skip.reason for skip in report.skips} == {"excluded"}
    baked(paths[0], tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    left = next(key for key in back if key.endswith("attn1.to_q.weight"))
    assert torch.equal(back[left], base[left])


@pytest.mark.parametrize("model", UNETS)
def test_bake_gives_the_controlnet(tmp_path, model):
    """Of full rank the ControlNet itself, under native names; of less what the factors come to."""
    base = filled(UNETS[model])
    tuned = controlnet(base)
    paths = written(tmp_path, base, tuned)
    for rule, near in (("512", 1e-6), ("4", None)):
        control, output = tmp_path / f"{rule}.safetensors", tmp_path / f"of {rule}.safetensors"
        control_lora(*paths, control, rule)
        baked(paths[0], control, output)
        back, held = load_file(output), load_file(control)
        assert back.keys() == tuned.keys()
        for name, one in back.items():
            module, wanted = name.removesuffix(".weight"), tuned[name].double()
            if near is None and f"{module}.up" in held:
                wanted = base[name].double() + product(held, module, tuple(one.shape))
            assert float((one - wanted).norm()) <= 1e-6 * float(wanted.norm())


def test_bake_reads_flat_factors_and_whole_matrices(tmp_path, pair):
    """As other programs may write kernels: the host makes both flat, and takes a weight as it is."""
    base, tuned, paths = pair
    control_lora(*paths, tmp_path / "own.safetensors")
    held = load_file(tmp_path / "own.safetensors")
    kernel, whole = "input_blocks.1.0.in_layers.2", "middle_block.1.proj_in"
    flat = {f"{kernel}.{role}": held[f"{kernel}.{role}"].flatten(1) for role in ("up", "down")}
    matrix = {f"{whole}.weight": tuned[f"{whole}.weight"].contiguous()}
    others = {
        key: one
        for key, one in held.items()
        if not key.startswith((f"{whole}.up", f"{whole}.down"))
    }
    save_file({**others, **flat, **matrix}, tmp_path / "foreign.safetensors")
    baked(paths[0], tmp_path / "foreign.safetensors", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    name = f"{kernel}.weight"
    wanted = base[name].double() + product(held, kernel, tuple(base[name].shape))
    assert torch.allclose(back[name].double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(back[f"{whole}.weight"], tuned[f"{whole}.weight"])


def test_bake_writes_the_dtype_of_the_unet(tmp_path, pair):
    base, tuned, _ = pair
    half = {key: one.half() for key, one in base.items()}
    paths = written(tmp_path, half, tuned)
    control_lora(*paths, tmp_path / "out.safetensors", dtype=torch.float32)
    for dtype, wanted in ((None, torch.float16), (torch.bfloat16, torch.bfloat16)):
        output = tmp_path / f"{wanted}.safetensors"
        baked(paths[0], tmp_path / "out.safetensors", output, dtype=dtype)
        assert {one.dtype for one in load_file(output).values()} == {wanted}


def test_a_base_that_is_stored_with_scales_is_decoded(tmp_path, pair):
    """The factors lead from what the host computes with to the ControlNet."""
    base, tuned, _ = pair
    stored = scaled_fp8(base)
    paths = written(tmp_path, stored, tuned)
    control_lora(*paths, tmp_path / "out.safetensors", "512", dtype=torch.float32)
    held = load_file(tmp_path / "out.safetensors")
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    decoded = stored[f"{name}.weight"].double() * stored[f"{name}.weight_scale"].double()
    true = tuned[f"{name}.weight"].double() - decoded
    assert torch.allclose(product(held, name, tuple(true.shape)), true, rtol=0, atol=1e-6)


def test_verify_finds_the_error_that_was_reported(tmp_path, pair):
    _, _, paths = pair
    report = control_lora(*paths, tmp_path / "out.safetensors", dtype=torch.float16)
    with (
        open_source(paths[0]) as base,
        open_source(paths[1]) as tuned,
        open_source(tmp_path / "out.safetensors") as control,
    ):
        found = verify(base, tuned, control)
    assert found.error == pytest.approx(report.error, rel=1e-5)
    assert {one.target: one.rank for one in found.layers if "norm" not in one.kind} == {
        one.target: one.rank for one in report.layers if "norm" not in one.kind
    }


def test_resize_cuts_the_factors_and_carries_the_rest(tmp_path, pair):
    _, _, paths = pair
    control_lora(*paths, tmp_path / "large.safetensors", "16")
    with open_source(tmp_path / "large.safetensors") as source:
        resize_file(source, tmp_path / "small.safetensors", "4")
    large, small = (load_file(tmp_path / f"{name}.safetensors") for name in ("large", "small"))
    assert large.keys() == small.keys()
    for key, one in small.items():
        if key.endswith(".up"):
            name = key.removesuffix(".up")
            shape = (one.shape[0], *small[f"{name}.down"].shape[1:])
            before, after = (product(held, name, shape).flatten(1) for held in (large, small))
            best = oracles.best_error(before, one.shape[1])
            assert float((before - after).norm()) == pytest.approx(best, rel=1e-4, abs=1e-6)
            assert one.shape[1] <= 4
        elif not key.endswith(".down"):
            assert torch.equal(one, large[key])


def test_compare_and_convert_know_them(tmp_path, pair):
    _, _, paths = pair
    for rank in ("4", "16"):
        control_lora(*paths, tmp_path / f"{rank}.safetensors", rank)
    with (
        open_source(tmp_path / "4.safetensors") as one,
        open_source(tmp_path / "16.safetensors") as other,
    ):
        found = compare(decode(one, control=True), decode(other, control=True))
        convert_file(other, tmp_path / "half.safetensors", "control-lora", dtype=torch.float16)
    small, large = (load_file(tmp_path / f"{rank}.safetensors") for rank in ("4", "16"))
    inner = squares = 0.0
    for key, up in small.items():
        if key.endswith(".up"):
            name = key.removesuffix(".up")
            shape = (len(up), *small[f"{name}.down"].shape[1:])
            a, b = product(small, name, shape), product(large, name, shape)
            inner, squares = inner + float((a * b).sum()), squares + float((a * a).sum())
    assert found.shared == len(found.layers) == sum(key.endswith(".up") for key in small)
    assert found.norms[0] == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert found.cosine == pytest.approx(inner / (found.norms[0] * found.norms[1]), rel=1e-4)
    half = load_file(tmp_path / "half.safetensors")
    assert half.keys() == large.keys()
    assert all(torch.equal(half[key], large[key].half()) for key in half if key.endswith(".up"))
