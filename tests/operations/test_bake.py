"""Bake: every tensor against float64, what stays as it was, and what survives the rounding."""

from __future__ import annotations

import pytest
import torch
from baking import DTYPES, FP8, LINEAR, adapter, is_rounded_once, pair, randn, thin, whole_model
from bits import assert_equal, noise, raw
from checkpoints import FLUX, SD1, WAN, grid, source, trained
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import change
from torch import Tensor

from lorakit.lora_ops import DictSource, extract
from lorakit.lora_ops.operations.bake.bake import bake, run_bake
from lorakit.lora_ops.operations.bake.plan import plan_bake
from lorakit.lora_ops.operations.bake.tensor import BakedLayer

# --- The numbers ----------------------------------------------------------------------------------

FORMS = ("linear", "alpha", "conv", "conv3d", "tucker", "linear on 1x1", "1x1 on linear", "diff")


def form(kind: str) -> tuple[tuple[int, ...], dict[str, Tensor], Tensor]:
    """A weight's shape, a layer `m` that fits it, and its change in float64."""
    up, down = randn(24, 4, seed=1, size=0.1), randn(4, 40, seed=2)
    if kind == "linear":
        return (24, 40), pair("m", up, down), change(up, down, None)
    if kind == "alpha":
        keys = pair("m", up.half(), down.bfloat16(), alpha=torch.tensor(1.5))
        return (24, 40), keys, change(up.half(), down.bfloat16(), 1.5)
    if kind in ("conv", "conv3d"):
        kernel = (3, 3) if kind == "conv" else (1, 2, 2)
        up, down = randn(24, 4, *(1 for _ in kernel), size=0.1), randn(4, 10, *kernel, seed=2)
        return (24, 10, *kernel), pair("m", up, down), change(up, down, None)
    if kind == "tucker":
        mid, down = randn(4, 5, 3, 3, seed=3), randn(5, 10, 1, 1, seed=2)
        keys = pair("m", up[..., None, None], down) | {"m.lora_mid.weight": mid}
        keys["m.alpha"] = torch.tensor(2.0)
        delta = torch.zeros(24, 10, 3, 3, dtype=torch.float64)
        for p in range(4):
            for q in range(5):
                outer = up[:, p].double()[:, None] * down[q, :, 0, 0].double()[None]
                delta += 2 / 5 * outer[..., None, None] * mid[p, q].double()
        return (24, 10, 3, 3), keys, delta
    if kind == "linear on 1x1":
        return (24, 40, 1, 1), pair("m", up, down), change(up, down, None)[..., None, None]
    if kind == "1x1 on linear":
        keys = pair("m", up[..., None, None], down[..., None, None])
        return (24, 40), keys, change(up, down, None)
    diff = randn(24, 40, size=0.1)
    return (24, 40), {"m.diff": diff}, diff.double()


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form_in_every_dtype_is_the_float64_sum(dtype, kind):
    shape, layer, delta = form(kind)
    key, name = f"{LINEAR}.weight", f"diffusion_model.{LINEAR}"
    base = randn(*shape).to(dtype)
    lora = {key.replace("m.", f"{name}.", 1): tensor for key, tensor in layer.items()}
    baked, report = bake(DictSource({key: base}), [adapter(lora, 0.7)])
    assert baked[key].dtype == dtype
    assert is_rounded_once(baked[key], base.double() + 0.7 * delta)
    (found,) = report.layers
    assert found.shape == shape
    assert found.norm == pytest.approx(0.7 * float(delta.norm()), rel=1e-5)


def test_norms_and_biases_take_their_differences():
    base = grid(WAN, torch.bfloat16)
    names = ("blocks.0.self_attn.norm_q.weight", "blocks.0.ffn.0.bias", "head.modulation")
    diffs = {name: randn(*WAN[name], size=0.1) for name in names}
    lora = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": diffs[names[0]],
        "diffusion_model.blocks.0.ffn.0.diff_b": diffs[names[1]],
        "diffusion_model.head.modulation.diff": diffs[names[2]],
    }
    baked, report = bake(source(base), [adapter(lora)])
    for name in names:
        assert is_rounded_once(baked[name], base[name].double() + diffs[name].double())
    assert [layer.kind for layer in report.layers] == ["other", "norm", "bias"]


def test_many_tiles_are_one_sum():
    """A layer of more rows than a tile has, and one whose single row is longer than a tile."""
    base = {"blocks.0.a.weight": randn(1500, 700), "blocks.0.b.weight": randn(3, 300_000)}
    lora = thin("diffusion_model.blocks.0.a", (1500, 700))
    lora |= thin("diffusion_model.blocks.0.b", (3, 300_000))
    baked, _ = bake(DictSource(base), [adapter(lora)])
    for name, weight in base.items():
        layer = f"diffusion_model.{name.removesuffix('.weight')}"
        delta = change(lora[f"{layer}.lora_B.weight"], lora[f"{layer}.lora_A.weight"], None)
        assert is_rounded_once(baked[name], weight.double() + delta)


def test_two_at_once_are_rounded_once():
    key, shape = f"{LINEAR}.weight", (64, 48)
    base = randn(*shape).bfloat16()
    loras = [thin(f"diffusion_model.{LINEAR}", shape, seed=seed, size=0.02) for seed in (1, 5)]
    deltas = [change(*lora.values(), None) for lora in loras]
    exact = base.double() + 0.6 * deltas[0] - 0.4 * deltas[1]
    together, _ = bake(
        DictSource({key: base}), [adapter(loras[0], 0.6), adapter(loras[1], -0.4, "other")]
    )
    assert is_rounded_once(together[key], exact)
    # The faulty twin: one after the other.
    first, _ = bake(DictSource({key: base}), [adapter(loras[0], 0.6)])
    second, _ = bake(DictSource(first), [adapter(loras[1], -0.4)])
    assert not is_rounded_once(second[key], exact)


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(-3, 3), factor=st.floats(-3, 3))
def test_the_change_is_linear_in_the_strength(strength, factor):
    key, shape = f"{LINEAR}.weight", (12, 16)
    lora = thin(f"diffusion_model.{LINEAR}", shape)
    zero = DictSource({key: torch.zeros(shape, dtype=torch.float64)})
    assume(strength and strength * factor)
    once, _ = bake(zero, [adapter(lora, strength)])
    more, _ = bake(zero, [adapter(lora, strength * factor)])
    assert torch.allclose(more[key], factor * once[key], rtol=1e-12, atol=1e-15)


def test_rules_multiply_the_strength_of_the_modules_that_they_fit():
    base = grid(WAN, torch.float32)
    lora = whole_model(WAN)
    names = {key.partition(".lora")[0] for key in lora}
    some = {name: 0.25 if ".q" in name else 0.0 for name in names if "self_attn" in name}
    where = ["self_attn=0", "*self_attn.q=0.125"]
    baked, report = bake(source(base), [adapter(lora, 2.0, where=where)])
    for name in names:
        strength = some.get(name, 2.0)
        key = name.removeprefix("diffusion_model.") + ".weight"
        delta = change(lora[f"{name}.lora_B.weight"], lora[f"{name}.lora_A.weight"], None)
        assert is_rounded_once(baked[key], base[key].double() + strength * delta)
    idle = [name for name, strength in some.items() if not strength]
    assert [skip.target for skip in report.skips] == idle
    assert {skip.reason for skip in report.skips} <= {"strength 0"}


def test_bake_then_extract_returns_the_change():
    base = grid(FLUX, torch.float32)
    lora = whole_model(FLUX)
    baked, _ = bake(source(base), [adapter(lora)])
    found, report = extract(source(base), source(baked), 3, exact=True)
    assert report.error < 1e-5
    for name, layer in found.layers.items():
        delta = change(lora[f"{name}.lora_B.weight"], lora[f"{name}.lora_A.weight"], None)
        assert torch.allclose(layer.delta().double(), delta, atol=1e-5)
    assert len(found.layers) == len(lora) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_unbake_takes_out_what_bake_put_in(dtype):
    base = {key: weight + 1 for key, weight in grid(FLUX, dtype).items()}
    lora = whole_model(FLUX)
    there, _ = bake(source(base), [adapter(lora, 0.5)])
    back, _ = bake(source(there), [adapter(lora, 0.5)], sign=-1)
    spacing = torch.finfo(dtype).eps
    for key, weight in base.items():
        largest = max(weight.double().abs().max(), there[key].double().abs().max())
        assert (back[key].double() - weight.double()).abs().max() <= 1.01 * spacing * largest
    # Baking again is not taking out.
    twice, _ = bake(source(there), [adapter(lora, 0.5)])
    assert not torch.allclose(twice["img_in.weight"].double(), base["img_in.weight"].double())


# --- Everything else stays ------------------------------------------------------------------------


def test_other_tensors_keep_every_bit():
    base: dict[str, Tensor] = dict(grid(WAN, torch.bfloat16))
    odd = (FP8, torch.float8_e5m2, torch.uint8, torch.int64, torch.bool, torch.float16)
    base |= {f"extra.{dtype}": noise(dtype, (5, 3)) for dtype in odd}
    base["blocks.0.norm3.weight"] = noise(torch.bfloat16, (48,))
    before = {key: raw(tensor) for key, tensor in base.items()}
    lora = thin(f"diffusion_model.{LINEAR}", (48, 48))
    baked, report = bake(source(base), [adapter(lora)])
    assert list(baked) == list(base)
    for key, tensor in base.items():
        assert raw(tensor) == before[key], "an input was written into"
        if key != f"{LINEAR}.weight":
            assert_equal(baked[key], tensor)
    assert [layer.target for layer in report.layers] == [f"diffusion_model.{LINEAR}"]


def test_a_layer_of_zeros_changes_no_bit():
    """A minus zero plus a zero would be a zero."""
    base = randn(48, 48).half()
    base[0, :5] = -0.0
    lora = thin(f"diffusion_model.{LINEAR}", (48, 48), size=0.0)
    baked, report = bake(DictSource({f"{LINEAR}.weight": base}), [adapter(lora)])
    assert_equal(baked[f"{LINEAR}.weight"], base)
    assert torch.signbit(baked[f"{LINEAR}.weight"][0, :5]).all()
    assert [skip.reason for skip in report.skips] == ["the layer is zero"]
    assert any("no number of the checkpoint changed" in note for note in report.notes)


def test_weights_that_cancel_are_said_to():
    base = randn(48, 48).half()
    lora = thin(f"diffusion_model.{LINEAR}", (48, 48))
    pairs = [adapter(lora, 1.0, "a"), adapter(lora, -1.0, "b")]
    baked, report = bake(DictSource({f"{LINEAR}.weight": base}), pairs)
    assert_equal(baked[f"{LINEAR}.weight"], base)
    assert any("no number of the checkpoint changed" in note for note in report.notes)


def test_an_adapter_given_twice_counts_twice():
    base = {f"{LINEAR}.weight": randn(48, 48)}
    lora = thin(f"diffusion_model.{LINEAR}", (48, 48))
    twice, report = bake(DictSource(base), [adapter(lora), adapter(lora)])
    double, _ = bake(DictSource(base), [adapter(lora, 2.0)])
    assert torch.allclose(twice[f"{LINEAR}.weight"], double[f"{LINEAR}.weight"], atol=1e-6)
    assert "lora is given 2 times: its strengths add up" in report.notes


def test_a_dtype_is_for_the_model_alone():
    base: dict[str, Tensor] = dict(grid(SD1, torch.float32)) | {"betas": randn(10)}
    base["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    lora = thin(name, (48, 48))
    baked, _ = bake(source(base), [adapter(lora)], dtype=torch.bfloat16)
    for key, tensor in base.items():
        if key == f"model.{name}.weight":
            delta = change(*lora.values(), None)
            assert is_rounded_once(baked[key], tensor.double() + delta)
            assert baked[key].dtype == torch.bfloat16
        elif key == "betas" or not tensor.is_floating_point():
            assert_equal(baked[key], tensor)
        else:
            assert_equal(baked[key], tensor.bfloat16())


# --- What survives --------------------------------------------------------------------------------


def survival(base: Tensor, baked: Tensor, delta: Tensor) -> tuple[float, float]:
    """Cosine and relative error of the stored change, from the definitions."""
    moved = baked.double() - base.double()
    cosine = float((moved * delta).sum() / (moved.norm() * delta.norm()))
    return cosine, float((moved - delta).norm() / delta.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-3, 1e-1])
def test_the_report_says_what_survived(dtype, size):
    base = randn(600, 500).to(dtype)
    lora = thin(f"diffusion_model.{LINEAR}", (600, 500), size=size)
    baked, report = bake(DictSource({f"{LINEAR}.weight": base}), [adapter(lora)])
    delta = change(*lora.values(), None)
    cosine, error = survival(base, baked[f"{LINEAR}.weight"], delta)
    (layer,) = report.layers
    assert isinstance(layer, BakedLayer)
    assert layer.cosine == pytest.approx(cosine, abs=1e-5)
    assert layer.error == pytest.approx(error, rel=1e-3, abs=2e-7 if dtype.itemsize > 4 else 2e-5)
    eaten = [note for note in report.notes if "rounding ate" in note]
    assert bool(eaten) == (cosine < 0.9)


@pytest.mark.parametrize(("dtype", "size"), [(FP8, 1e-3), (torch.bfloat16, 1e-5)])
def test_a_change_that_rounding_ate_is_told(dtype, size):
    base = {f"blocks.0.{name}.weight": randn(64, 64).to(dtype) for name in "ab"}
    lora = thin("diffusion_model.blocks.0.a", (64, 64), size=size)
    lora |= thin("diffusion_model.blocks.0.b", (64, 64), size=1.0)
    _, report = bake(DictSource(base), [adapter(lora)])
    (note,) = report.notes
    assert note.startswith(
        "rounding ate 1 layer of 2: the stored change of `diffusion_model.blocks.0.a`"
    )
    assert report.to_dict()["layers"][0]["cosine"] < 0.9 < report.to_dict()["layers"][1]["cosine"]


# --- Order and memory -----------------------------------------------------------------------------


class Counting(DictSource):
    """Counts what is read."""

    read = 0

    def tensor(self, key):
        self.read += 1
        return super().tensor(key)


def test_tensors_are_read_as_they_are_wanted():
    base = Counting({f"blocks.{i}.a.weight": randn(8, 8) for i in range(40)})
    lora = {
        k: v for i in range(40) for k, v in thin(f"diffusion_model.blocks.{i}.a", (8, 8)).items()
    }
    plan = plan_bake(base, [adapter(lora)])
    assert base.read == 0, "a plan is made from headers"
    results = run_bake(plan, workers=2)
    next(results)
    assert base.read <= 5
    assert [one.key for one in results] == list(base.keys())[1:]
    assert base.read == 40


def test_progress_reaches_the_total():
    steps: list[tuple[int, int, str]] = []
    base = trained(grid(WAN, torch.float32))
    lora = thin(f"diffusion_model.{LINEAR}", (48, 48))
    bake(source(base), [adapter(lora)], progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == sum(tensor.numel() for tensor in base.values())
    assert [name for *_, name in steps] == list(base)
