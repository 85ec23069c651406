"""Extraction in other forms than LoRA: what comes back, and that its reported error is the true one."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoints import SD1, WAN, grid, planted, source, target, trained
from oracles import best_error

from lorakit.lora_ops import (
    extract,
    extract_file,
    open_source,
    plan_file,
    preview_extraction,
    verify,
)
from lorakit.lora_ops.adapters.layers import DoraLayer, FullLayer, LohaLayer, LokrLayer, LoraLayer
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.extract.kinds.lokr import factorization
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

KINDS = [name for name in FORMS if name != "lora"]
UNET = "model.diffusion_model."
SHAPES = {
    **{key: shape for key, shape in SD1.items() if key.startswith(UNET)},
    **{UNET + key: shape for key, shape in WAN.items()},
}
CLASS = {"dora": DoraLayer, "lokr": LokrLayer, "loha": LohaLayer, "locon-tucker": LoraLayer}


def pair(change=trained):
    base = grid(SHAPES, torch.float32)
    # No row of zeros: such a weight has no direction to turn.
    base = {key: one + torch.rand_like(one) / 64 for key, one in base.items()}
    return base, change(base)


def made(base, layer, key, convention="paper"):
    """The weight that a layer makes, in float64."""
    weight = base[key].double()
    return weight + layer.change(weight, 1.0, torch.float64, convention)


@pytest.mark.parametrize("convention", ["paper", "comfy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reported_error_is_that_of_the_written_numbers(kind, dtype, convention):
    base, tuned = pair()
    adapter, report = extract(
        source(base), source(tuned), 4, kind=kind, dtype=dtype, convention=convention
    )
    assert {type(one) for one in adapter.layers.values()} == {CLASS[kind]}
    keys = {target(key): key for key in base}
    for told in report.layers:
        key, layer = keys[told.target], adapter.layers[told.target]
        left = tuned[key].double() - made(base, layer, key, convention)
        assert told.residual == pytest.approx(float(left.norm()), rel=1e-3, abs=1e-6)
        assert told.norm == pytest.approx(float((tuned[key] - base[key]).double().norm()), rel=1e-5)
        assert {one.dtype for one in layer.tensors().values()} <= {dtype, torch.float32}
    assert 0 < report.error < 1


@pytest.mark.parametrize("convention", ["paper", "comfy"])
def test_uncut_dora_gives_the_tuned_weight_by_both_readings(convention):
    base, tuned = pair()
    adapter, _ = extract(source(base), source(tuned), 65536, kind="dora", dtype=torch.float32)
    keys = {target(key): key for key in base}
    for name, layer in adapter.layers.items():
        key = keys[name]
        torch.testing.assert_close(
            made(base, layer, key, convention), tuned[key].double(), rtol=1e-4, atol=2e-5
        )
        lengths = tuned[key].flatten(1).norm(dim=1)
        torch.testing.assert_close(layer.magnitude.flatten(), lengths, rtol=1e-5, atol=1e-6)


def test_dora_is_best_in_the_reading_that_is_asked_for():
    base, tuned = pair()
    errors = {}
    for convention in ("paper", "comfy"):
        adapter, _ = extract(source(base), source(tuned), 3, kind="dora", convention=convention)
        for reading in ("paper", "comfy"):
            left = [
                (tuned[key].double() - made(base, adapter.layers[target(key)], key, reading)).norm()
                for key in base
                if target(key) in adapter.layers
            ]
            errors[convention, reading] = math.hypot(*map(float, left))
    assert errors["paper", "paper"] < errors["comfy", "paper"]
    assert errors["comfy", "comfy"] < errors["paper", "comfy"]


def test_a_weight_with_a_row_of_zeros_gets_a_lora():
    base, tuned = pair()
    key = f"{UNET}blocks.0.self_attn.q.weight"
    base[key][3] = 0
    adapter, report = extract(source(base), source(tuned), 8, kind="dora", dtype=torch.float32)
    assert isinstance(adapter.layers[target(key)], LoraLayer)
    (told,) = [one for one in report.layers if one.target == target(key)]
    assert told.residual == pytest.approx(best_error(tuned[key] - base[key], 8), rel=1e-3)


@pytest.mark.parametrize("factor", [-1, 2, 4])
def test_lokr_of_a_kronecker_product_is_it(factor):
    base, tuned = pair()
    for key, weight in base.items():
        if weight.ndim < 2 or not key.endswith(".weight"):
            continue
        (a, c), (b, d) = (factorization(side, factor) for side in weight.shape[:2])
        first, second = torch.randn(a, b), torch.randn(c, d * math.prod(weight.shape[2:]))
        tuned[key] = weight + 0.05 * torch.kron(first, second).reshape(weight.shape)
    _, report = extract(
        source(base), source(tuned), 65536, kind="lokr", factor=factor, dtype=torch.float32
    )
    linear = [one.error for one in report.layers if len(one.shape) < 5]
    assert max(linear) < 1e-4
    # ComfyUI multiplies whole matrices with three axes of kernel wrongly: those are cut.
    assert max(one.error for one in report.layers if len(one.shape) == 5) < 1


def test_factors_of_a_lokr_have_the_shapes_of_lycoris():
    base, tuned = pair()
    layers = extract(source(base), source(tuned), 3, kind="lokr", factor=4)[0].layers
    thin, kernel = (
        layers[target(key)]
        for key in (f"{UNET}blocks.0.ffn.0.weight", f"{UNET}input_blocks.1.0.in_layers.2.weight")
    )
    assert (thin.w1.shape, thin.w2_a.shape, thin.w2_b.shape) == ((4, 4), (24, 3), (3, 12))
    assert (kernel.w1.shape, kernel.w2_a.shape, kernel.w2_b.shape) == ((4, 4), (12, 3), (3, 90))
    whole = extract(source(base), source(tuned), 64, kind="lokr", factor=4)[0].layers
    assert whole[target(f"{UNET}input_blocks.1.0.in_layers.2.weight")].w2.shape == (
        *(12, 10, 3, 3),
    )


def test_more_directions_never_make_it_worse():
    base, tuned = pair()
    for kind in KINDS:
        errors = [
            extract(source(base), source(tuned), rank, kind=kind, dtype=torch.float32)[1].error
            for rank in (1, 3, 8)
        ]
        assert errors == sorted(errors, reverse=True), kind


def test_tucker_gives_kernels_a_core_and_nothing_else():
    base, tuned = pair(planted)
    adapter, report = extract(source(base), source(tuned), 64, kind="locon-tucker")
    for told in report.layers:
        layer = adapter.layers[told.target]
        has_core = len(told.shape) == 4 and told.shape[2:] != (1, 1)
        assert (layer.mid is not None) == has_core
        if has_core:  # of the outputs 3 directions change, of the inputs 3 by each tap
            rank = min(27, *told.shape[:2])
            assert layer.mid.shape == (rank, rank, *told.shape[2:])
            assert told.rank == rank
        assert told.error < 2e-3


def test_rules_ask_about_the_values_of_the_form():
    base, tuned = pair()
    for kind in ("dora", "locon-tucker"):
        _, report = extract(source(base), source(tuned), "energy=0.9", kind=kind)
        assert report.energy > 0.85
        _, report = extract(source(base), source(tuned), "rank=6,max=4", kind=kind)
        assert max(one.rank for one in report.layers) <= 4
    adapter, _ = extract(source(base), source(tuned), "energy=0.5", kind="lokr", factor=2)
    assert any(one.w2_a is not None for one in adapter.layers.values())


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("energy=0.9", {"kind": "loha"}, "a LoHa has none; give a rank"),
        ("8,conv=knee", {"kind": "loha"}, "`knee` asks about singular values"),
        (8, {"kind": "lokrs"}, "did you mean `lokr`"),
        (8, {"kind": "lora", "factor": 4}, "`factor=4` is of a LoKr"),
        (8, {"kind": "lokr", "factor": 0}, "give a whole number from 1, or -1"),
    ],
)
def test_what_a_form_cannot_do_is_refused(rule, options, said):
    base, tuned = pair()
    with pytest.raises(ArgumentError, match=said):
        extract(source(base), source(tuned), rule, **options)


def test_the_report_says_how_long_an_iteration_took():
    base, tuned = pair()
    _, report = extract(source(base), source(tuned), 4, kind="loha")
    assert all(one.sweeps and one.sweeps > 1 for one in report.layers)
    assert any("alternating least squares ended after" in note for note in report.notes)
    assert all("sweeps" in one for one in report.to_dict()["layers"])
    _, report = extract(source(base), source(tuned), 4)
    assert not any("sweeps" in one for one in report.to_dict()["layers"])


@pytest.mark.parametrize("kind", list(FORMS))
def test_what_is_no_smaller_than_its_difference_is_kept_whole(kind):
    base, tuned = pair()
    rank = round(24 * FORMS[kind].share)
    adapter, report = extract(source(base), source(tuned), rank, kind=kind, auto_full=True)
    plain, _ = extract(source(base), source(tuned), rank, kind=kind)
    for told in report.layers:
        layer, other = adapter.layers[told.target], plain.layers[told.target]
        numbers = sum(one.numel() for one in other.stored_numbers().values())
        assert isinstance(layer, FullLayer) == (numbers >= math.prod(told.shape))
        if isinstance(layer, FullLayer):
            assert told.error < 1e-3
    if kind != "lokr":
        assert any(isinstance(one, FullLayer) for one in adapter.layers.values())


@pytest.mark.parametrize("format", ["comfy", "kohya"])
@pytest.mark.parametrize("kind", list(FORMS))
def test_a_file_says_what_it_is_and_takes_no_more_than_was_said(kind, format, tmp_path):
    base = grid(SD1, torch.float16)
    base = {key: one + torch.full_like(one, 1 / 64) for key, one in base.items()}
    tuned, output = trained(base, size=0.1), tmp_path / "out.safetensors"
    sides = source(base, "a.safetensors"), source(tuned, "b.safetensors")
    plan = plan_file(*sides, 6, format=format, kind=kind, output=output)
    foretold = preview_extraction(plan, output)
    report = extract_file(plan, *sides, output, format=format)
    with open_source(output) as lora:
        held = sum(lora.stored_size(key) for key in lora.keys() if not key.endswith(".alpha"))  # noqa: SIM118
        assert held <= foretold.size_at_most <= 1.5 * held
        assert lora.metadata["lorakit.kind"] == kind == foretold.settings["kind"]
        assert ("lycoris" in lora.metadata["ss_network_module"]) == (kind != "lora")
        checked = verify(*sides, lora)
    bound = {one.target: one.rank_at_most for one in foretold.layers}
    assert all(one.rank <= bound[one.target] for one in report.layers)
    assert checked.error == pytest.approx(report.error, rel=1e-4)
    assert [one.error for one in checked.layers] == pytest.approx(
        [one.error for one in report.layers], rel=1e-3
    )


def test_whole_differences_are_refused_where_there_is_no_place_for_them():
    base, tuned = pair()
    with pytest.raises(ArgumentError, match="leave `auto_full=True` out"):
        plan_file(source(base), source(tuned), 8, format="kohya", auto_full=True)
