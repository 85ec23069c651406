"""Add: the sum of changes, whatever the ranks, alphas, dtypes, layers and names of the inputs."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from adapters import ALPHAS, DTYPES, EVERY_FORM, Part, adapter, changes, module_name, tensors
from bits import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import checkpoints
from keys.adapters import spelled

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.edited import ZERO
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.errors import ArgumentError, MismatchError
from lorakit.lora_ops.linalg.storage import loadable
from lorakit.lora_ops.models.architectures import parameters
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.add.layer import CANCELS, NOT_IN_LAST
from lorakit.lora_ops.operations.methods import METHODS, coefficients
from lorakit.lora_ops.operations.reasons import STRENGTH_ZERO

LINEAR = module_name(Part().name, "kohya")


def term(parts, strength=1.0, format="kohya", name="a"):
    found = adapter(parts, format)
    return Term(found, dict.fromkeys(found.layers, strength), name)


def change_of(part):
    """From the definition, (out, in, *kernel), float64."""
    (found,) = changes(tensors([part])).values()
    return found


def expected(*terms):
    """The sum by weight of (parts, strength); a 1x1 kernel may be missing."""
    total = {}
    for parts, strength in terms:
        for part in parts:
            total.setdefault(part.name, []).append(strength * change_of(part))
    return {
        name: sum(one.reshape(max((c.shape for c in all_), key=len)) for one in all_)
        for name, all_ in total.items()
    }


def rounding(parts):
    """By weight: what factors in the dtype that holds all of its own may be off, relatively."""
    dtypes = {}
    for part in parts:
        dtypes.setdefault(part.name, []).append(loadable(part.dtype))
    return {
        name: 4 * oracles.ROUNDING[functools.reduce(torch.promote_types, own)]
        for name, own in dtypes.items()
    }


def errors(result, wanted, format="kohya"):
    """Relative errors by weight; every weight must be there, and no other."""
    assert {module_name(name, format) for name in wanted} == set(result.layers)
    found = {}
    for name, delta in wanted.items():
        layer = result.layers[module_name(name, format)]
        assert layer.shape == tuple(delta.shape)
        found[name] = oracles.error_of(delta, layer.delta(torch.float64)) / float(delta.norm())
    return found


def off(result, wanted, format="kohya"):
    """The largest of them."""
    return max(errors(result, wanted, format).values())


ALPHA = st.sampled_from([None, 0.7, 4.0, 6.0, -3.0])
STRENGTH = st.sampled_from([1.0, 0.5, -0.3, 2.0, 0.7])
PART = st.builds(
    Part,
    form=st.sampled_from(["linear", "conv1x1", "conv3x3", "conv3d", "tucker"]),
    rank=st.integers(1, 9),
    alpha=ALPHA,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
PARTS = st.lists(PART, min_size=1, max_size=5, unique_by=lambda part: part.form)


def independent(terms):
    """No two of them alike, so that nothing cancels."""
    return [
        ([replace(part, seed=4 * part.seed + index) for part in parts], strength)
        for index, (parts, strength) in enumerate(terms)
    ]


TERMS = st.lists(st.tuples(PARTS, STRENGTH), min_size=1, max_size=4).map(independent)


# --- Without a rule ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(TERMS, st.sampled_from(["kohya", "comfy", "peft", "diffusers"]))
def test_the_sum_is_exact_for_any_mix(terms, format):
    """Ranks, alphas, dtypes, kinds and sets of layers; a joined rank above the size of the layer."""
    result, report = add([term(*one, format) for one in terms])
    parts = [part for own, _ in terms for part in own]
    wanted, allowed = expected(*terms), rounding(parts)
    assert all(error < allowed[name] for name, error in errors(result, wanted, format).items())
    for layer in report.layers:
        form = next(p for p in parts if module_name(p.name, format) == layer.target)
        out, width = form.weight[0], math.prod(form.weight[1:])
        assert layer.rank == result.layers[layer.target].rank <= min(out, width)
        assert layer.norm == pytest.approx(float(wanted[form.name].norm()), rel=1e-5)
    assert not report.skips


@settings(max_examples=25, deadline=None)
@given(TERMS, st.randoms())
def test_the_order_does_not_matter(terms, random):
    one, _ = add([term(*t) for t in terms], dtype=torch.float32)
    random.shuffle(terms)
    other, _ = add([term(*t) for t in terms], dtype=torch.float32)
    assert set(one.layers) == set(other.layers)
    for target, layer in one.layers.items():
        delta = layer.delta(torch.float64)
        assert oracles.error_of(delta, other.layers[target].delta(torch.float64)) < 1e-5 * float(
            delta.norm()
        )


@settings(max_examples=25, deadline=None)
@given(PARTS, st.lists(st.floats(-2, 2).filter(lambda s: abs(s) > 1e-2), min_size=2, max_size=4))
def test_it_is_linear_in_the_strengths(parts, values):
    """One LoRA with strengths one after another is the LoRA at their sum."""
    total = math.fsum(values)
    if abs(total) < 0.1:
        return
    result, _ = add([term(parts, s) for s in values], dtype=torch.float32)
    assert off(result, expected((parts, total))) < 1e-5 * sum(map(abs, values)) / abs(total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["linear", "conv1x1", "conv3x3", "conv3d"])
def test_equal_scales_keep_every_bit(form, dtype):
    one = Part(form, 3, 1.5, dtype, seed=1)
    other = Part(form, 5, 2.5, dtype, seed=2)
    result, report = add([term([one]), term([other])])
    (layer,) = result.layers.values()
    assert_equal(layer.up, torch.cat([one.factors()["up"], other.factors()["up"]], dim=1))
    assert_equal(layer.down, torch.cat([one.factors()["down"], other.factors()["down"]]))
    assert (layer.alpha, report.error) == (4.0, 0.0)


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("format", ["kohya", "comfy"])
def test_one_at_strength_1_is_itself_bit_for_bit(format, dtype, alpha):
    """Only an absent alpha becomes the rank, which is the same scale."""
    parts = [Part(p.form, p.rank, alpha, dtype, p.seed) for p in EVERY_FORM if p.form != "tucker"]
    result, report = add([term(parts, format=format)])
    for part in parts:
        layer = result.layers[module_name(part.name, format)]
        assert_equal(layer.up, part.factors()["up"])
        assert_equal(layer.down, part.factors()["down"])
        assert np.float32(layer.alpha) == np.float32(part.rank if alpha is None else alpha)
    assert report.error == 0


def test_without_a_place_for_alpha_strength_1_keeps_the_bits_too():
    result, _ = add([term(EVERY_FORM[:4], format="peft")])
    for part in EVERY_FORM[:4]:
        layer = result.layers[module_name(part.name, "peft")]
        assert_equal(layer.up, part.factors()["up"])
        assert layer.alpha is None


def test_the_strongest_keeps_its_bits_and_nothing_grows():
    """fp16 ends at 65504: the factors of the others shrink, and alpha carries what is asked for."""
    loud = Part(rank=2, alpha=2.0, dtype=torch.float16, size=9000, seed=1)
    quiet = Part(rank=3, alpha=3.0, dtype=torch.float16, seed=2)
    result, report = add([term([loud], 40.0), term([quiet], 0.5)])
    (layer,) = result.layers.values()
    assert_equal(layer.up[:, :2], loud.factors()["up"])
    assert layer.alpha == pytest.approx(5 * 40)
    assert report.error < 1e-6
    assert not bool((loud.factors()["up"] * 40).isfinite().all()), "in the factors it would not fit"


def test_strengths_in_alpha_alone_need_no_rounding():
    part = Part(rank=4, alpha=1.0, dtype=torch.float16)
    result, report = add([term([part], -0.7)])
    (layer,) = result.layers.values()
    assert_equal(layer.up, -part.factors()["up"])  # alpha stays above 0: some programs want that
    assert layer.alpha == pytest.approx(0.7)
    assert report.error == 0


def test_full_differences_are_added():
    def full(value, dtype):
        bias = torch.full((6,), value, dtype=dtype)
        table = torch.full((7, 5), value, dtype=dtype)
        return {"diffusion_model.norm.diff_b": bias, "diffusion_model.table.diff": table}

    terms = [
        Term(decode(DictSource(full(*one))), dict.fromkeys(names, strength))
        for one, strength in (((0.5, torch.float16), 0.3), ((0.25, torch.bfloat16), -1.0))
        for names in [("diffusion_model.norm.bias", "diffusion_model.table")]
    ]
    result, report = add(terms)
    wanted = 0.3 * 0.5 - 0.25
    for layer in result.layers.values():
        assert layer.dtype == torch.float32
        assert layer.diff.tolist() == torch.full(layer.shape, wanted).tolist()
    assert [layer.kind for layer in report.layers] == ["bias", "full"]
    assert {keys["diff"] for keys in result.keys.values()} == set(full(1, torch.half))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("rule", [None, 4])
def test_a_full_difference_and_factors_of_one_weight(order, rule):
    """Also where the file that gives the name has no keys for the form of the sum."""
    part = Part(rank=3, alpha=1.0, seed=1)
    diff = torch.randn(part.weight)
    whole = {module_name(part.name, "comfy") + ".diff": diff}
    inputs = [adapter([part], "comfy"), decode(DictSource(whole))]
    result, _ = add([Term(one) for one in inputs[::order]], rule)
    ((target, layer),) = result.layers.items()
    assert layer.tensors().keys() <= result.keys[target].keys()
    exact = change_of(part) + diff.double()
    best = oracles.best_error(exact, rule or 24)
    assert oracles.error_of(exact, layer.delta(torch.float64)) <= best + 1e-5 * float(exact.norm())


# --- With a rule ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(TERMS, st.integers(1, 12))
def test_with_a_rank_it_is_the_best_of_that_rank(terms, rank):
    """Eckart and Young (1936) on the float64 sum; the report says how far that is."""
    result, report = add([term(*one) for one in terms], rank, dtype=torch.float32)
    wanted = expected(*terms)
    for layer in report.layers:
        (name,) = (n for n in wanted if module_name(n, "kohya") == layer.target)
        exact = wanted[name].flatten(1)
        written = result.layers[layer.target]
        assert written.rank <= rank
        reached = oracles.error_of(exact, written.delta(torch.float64).flatten(1))
        size = float(exact.norm())
        assert reached <= oracles.best_error(exact, rank) + 1e-5 * size
        assert layer.residual == pytest.approx(reached, abs=1e-5 * size)


@pytest.mark.parametrize(
    ("rule", "oracle", "value"),
    [("energy=0.8", oracles.energy, 0.8), ("ratio=5", oracles.ratio, 5), ("knee", oracles.knee, 0)],
)
def test_other_rules_see_the_singular_values_of_the_sum(rule, oracle, value):
    one, other = [Part(rank=8, alpha=3.0)], [Part(rank=7, seed=5)]
    _, report = add([term(one), term(other, -0.4)], rule)
    (exact,) = expected((one, 1.0), (other, -0.4)).values()
    s = oracles.singular_values(exact)[:15].tolist()
    assert report.layers[0].rank == oracle(s, value)


def test_kernels_have_their_own_rule():
    parts = [Part("linear", 5), Part("conv1x1", 5), Part("conv3x3", 5), Part("conv3d", 4)]
    more = [Part("linear", 5, seed=9)]
    result, report = add([term(parts), term(more)], "3,conv=0")
    assert [layer.rank for layer in report.layers] == [3, 3]
    assert {skip.reason for skip in report.skips} == {"rank 0 by the rule"}
    assert len(result.layers) == 2


@pytest.mark.parametrize("rule", ["8", "20", "9,min=2", "12,conv=1"])
def test_a_rank_that_holds_all_changes_no_bit(rule):
    one, other = [Part(rank=3, dtype=torch.float16)], [Part(rank=5, dtype=torch.float16, seed=1)]
    exact, _ = add([term(one), term(other)])
    result, report = add([term(one), term(other)], rule)
    assert_equal(result.layers[LINEAR].up, exact.layers[LINEAR].up)
    assert report.error == 0
    _, cut = add([term(one), term(other)], f"{rule},max=7")
    assert cut.layers[0].rank == 7
    assert cut.error > 1e-3


# --- Strengths -----------------------------------------------------------------------------------


def test_layers_of_one_input_are_carried_with_its_strength():
    one, other = [Part("linear", 4, 2.0)], [Part("conv3x3", 3, 9.0), Part("linear", 2, seed=3)]
    result, report = add([term(one, 0.5), term(other, -2.0, name="b")])
    assert off(result, expected((one, 0.5), (other, -2.0))) < 1e-6
    assert [layer.was for layer in report.layers] == [(4, 2), (0, 3)]
    assert [layer.coefficients for layer in report.layers] == [(0.5, -2.0), (0.0, -2.0)]
    assert report.notes == ("1 layer in b alone",)


def test_text_encoder_alone_and_unet_alone():
    te = Part(module="text_model.encoder.layers.0.mlp.fc1")
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    encoder = decode(
        DictSource({k.replace(LINEAR[:10], "lora_te_"): v for k, v in tensors([te]).items()})
    )
    result, report = add([Term(encoder, {}, "te"), term([Part()], 0.5, name="unet")])
    assert set(result.layers) == {key, LINEAR}
    assert {layer.component for layer in report.layers} == {"te", "unet"}
    assert report.notes == (
        "te shares no layer with another input",
        "unet shares no layer with another input",
    )
    assert oracles.error_of(change_of(te), result.layers[key].delta(torch.float64)) < 1e-5


def test_the_same_input_twice_is_twice_its_strength():
    parts = EVERY_FORM
    result, report = add([term(parts), term(parts)])
    assert off(result, expected((parts, 2.0))) < 1e-6
    assert not report.notes


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_add_and_then_subtract_is_the_identity(dtype):
    one = [Part(p.form, 4, 1.3, dtype, p.seed) for p in EVERY_FORM]
    other = [Part(p.form, 3, None, dtype, p.seed + 50) for p in EVERY_FORM]
    both, _ = add([term(one), term(other)])
    back, _ = add([Term(both), term(other, -1.0)])
    assert off(back, expected((one, 1.0))) < 8 * oracles.ROUNDING[dtype]


def test_strength_0_leaves_an_input_out_and_is_not_taken_for_1():
    one, other = [Part("linear", 4), Part("conv1x1", 2)], [Part("linear", 3, seed=7)]
    result, report = add([term(one), term(other, 0.0)])
    assert off(result, expected((one, 1.0))) < 1e-6
    assert result.layers[LINEAR].rank == 4, "no rank is spent on nothing"
    assert report.layers[0].coefficients == (1.0, 0.0)
    result, report = add([term(one[:1], 0.0), term([*other, Part("conv3d", 3)], 1.0)])
    assert off(result, expected(([*other, Part("conv3d", 3)], 1.0))) < 1e-6
    result, report = add([term(one, 0.0), term([Part("conv3d", 3)])])
    assert [skip.reason for skip in report.skips] == [STRENGTH_ZERO] * 2
    assert len(result.layers) == 1
    as_unset = expected((one, 1.0), ([Part("conv3d", 3)], 1.0))
    assert len(as_unset) == 3, "twin: read as not given, both layers would be there"


def test_all_strengths_0_is_an_error():
    with pytest.raises(MismatchError, match=r"no layer is left \(1 layer strength 0\)"):
        add([term([Part()], 0.0)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_cancel_are_left_out(dtype):
    kept = Part("conv1x1", 2)
    parts = [Part(rank=5, alpha=0.7, dtype=dtype), kept]
    result, report = add([term(parts), term(parts[:1], -1.0)])
    assert [(skip.target, skip.reason) for skip in report.skips] == [(LINEAR, CANCELS)]
    assert set(result.layers) == {module_name(kept.name, "kohya")}
    with pytest.raises(MismatchError, match=r"no layer is left \(2 layers the inputs cancel\)"):
        add([term(parts), term(parts, -1.0)])


def test_inputs_that_nearly_cancel_are_kept():
    """Twin of the threshold: a difference of a thousandth is a difference."""
    one = [Part(rank=5, alpha=5.0)]
    result, report = add([term(one), term(one, -0.999)], dtype=torch.float32)
    assert off(result, expected((one, 0.001))) < 1e-3
    assert report.layers[0].norm == pytest.approx(0.001 * float(change_of(one[0]).norm()), rel=1e-4)


def test_zero_layers():
    zero = Part(size=0.0, rank=3)
    result, report = add([term([zero]), term([Part(rank=4), Part("conv1x1")])])
    assert result.layers[LINEAR].rank == 4, "no rank is spent on nothing"
    _, report = add([term([zero, Part("conv1x1")]), term([zero])])
    assert [skip.reason for skip in report.skips] == [ZERO]
    with pytest.raises(MismatchError, match=r"1 layer changes nothing"):
        add([term([zero])])


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_an_alpha_of_zero_is_a_zero_layer(format):
    """Beside another it is left out of the sum, also where factors would be divided by its root."""
    parts = [Part(rank=3, alpha=0.0)], [Part(rank=4, alpha=2.0, seed=1)]
    result, _ = add([term(one, format=format) for one in parts])
    assert off(result, expected((parts[1], 1.0)), format) < 1e-6


# --- Methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_the_combination_that_the_report_says(method):
    """Coefficients: those of the Gram matrix of the dense float64 changes."""
    count = METHODS[method].most or 3
    strengths = [1.0, 0.5 if method == "model_stock" else -0.5, 0.8][:count]
    sets = [
        [Part(p.form, 3 + k, 1 + k, seed=100 * k + p.seed) for p in EVERY_FORM] for k in range(3)
    ]
    shared = [Part(p.form, 4, seed=p.seed) for p in EVERY_FORM]  # so that they are alike
    mixed = []
    for one, strength in zip(sets[:count], strengths, strict=True):
        blend, _ = add([term(one), term(shared)], dtype=torch.float64)
        mixed.append(Term(blend, dict.fromkeys(blend.layers, strength)))
    result, report = add(mixed, method=method, dtype=torch.float32)
    assert len(report.layers) == len(EVERY_FORM)
    for layer in report.layers:
        deltas = [one.adapter.layers[layer.target].delta(torch.float64).flatten() for one in mixed]
        stack = torch.stack(deltas)
        wanted = coefficients(method, stack @ stack.mT, torch.tensor(strengths).double())
        assert layer.coefficients == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-5)
        sum_ = (wanted[:, None] * stack).sum(0)
        error = oracles.error_of(sum_, result.layers[layer.target].delta(torch.float64).flatten())
        assert error < 1e-4 * float(sum_.norm())


def test_parameters_reach_the_method():
    one, other = [Part(rank=3)], [Part(rank=3, seed=1)]
    far, _ = add([term(one), term(other)], method="slerp", parameters={"t": 1})
    assert off(far, expected((other, 1.0))) < 1e-6
    assert far.layers[LINEAR].rank == 3, "no rank is spent on what has the coefficient 0"
    half, report = add([term(one), term(other)], method="slerp")
    assert report.layers[0].coefficients != (0.0, 1.0)
    assert half.layers[LINEAR].rank == 6


@pytest.mark.parametrize(
    ("method", "strengths", "wanted"),
    [
        ("slerp", (0.0, 1.0), (0.0, 0.5)),  # halfway from nothing
        ("orthogonalise", (0.0, 1.0), (0.0, 1.0)),
        ("orthogonalise", (1.0, 0.0), None),  # nothing of the last one
        ("average", (0.0, 2.0), (0.0, 1.0)),
        ("energy", (0.0, 2.0), (0.0, 2.0)),
    ],
)
def test_strength_0_is_an_input_of_nothing_and_not_one_input_less(method, strengths, wanted):
    terms = [([Part(), Part("conv1x1", 2)], strengths[0]), ([Part(seed=1)], strengths[1])]
    given = [term(*terms[0]), term(*terms[1])]
    given[0] = Term(
        given[0].adapter, {LINEAR: strengths[0]}
    )  # the other layer is there in any case
    if wanted is None:
        with pytest.raises(MismatchError, match="no layer is left"):
            add(given, method=method)
        return
    _, report = add(given, method=method)
    assert next(one for one in report.layers if one.target == LINEAR).coefficients == pytest.approx(
        wanted
    )


def test_what_is_left_of_the_last_is_nothing_where_the_last_is_absent():
    first, last = [Part(rank=3), Part("conv1x1", 2)], [Part(rank=3, seed=1), Part("conv3x3", 2)]
    result, report = add([term(first), term(last)], method="orthogonalise")
    assert [(skip.kind, skip.reason) for skip in report.skips] == [("conv 1x1", NOT_IN_LAST)]
    assert len(result.layers) == 2
    orthogonal = result.layers[LINEAR].delta(torch.float64)
    against = change_of(first[0])
    cosine = float((orthogonal * against).sum() / orthogonal.norm() / against.norm())
    assert abs(cosine) < 1e-6


# --- Names ---------------------------------------------------------------------------------------


def unet_targets(model):
    """Attention projections of a UNet, of each part of it, by canonical name."""
    shapes = getattr(checkpoints, model)()
    found = [one.target for one in parameters(checkpoints.source(shapes)).values()]
    ends = ("0.attn2.to_k", "attn2.to_out.0", "proj_in", "in_layers.2", "input_blocks.0.0")
    return [one for one in found if one.startswith("diffusion_model.") and one.endswith(ends)]


@pytest.mark.parametrize("format", ["kohya", "comfy", "peft", "diffusers"])
@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_four_spellings_of_a_unet_in_one_call(model, format):
    targets = unet_targets(model)
    names = {
        "comfy": {t: t for t in targets},
        "kohya": {t: spelled(t, model == "sd1", True) for t in targets},
        "diffusers": {t: spelled(t, True, False) for t in targets},
    }
    names["peft"] = {
        t: n.replace("unet.", "base_model.model.", 1) for t, n in names["diffusers"].items()
    }
    order = [format, *(f for f in names if f != format)]
    terms, total = [], dict.fromkeys(targets, 0.0)
    for index, scheme in enumerate(order):
        up, down = (".lora_up", ".lora_down") if scheme == "kohya" else (".lora_B", ".lora_A")
        found = {}
        for at, target in enumerate(targets):
            if at % 4 == index:  # each lacks some
                continue
            value = 1.0 + at + 1000 * index
            width = 768 if "attn2.to_k" in target else 5
            found[f"{names[scheme][target]}{up}.weight"] = torch.full((4, 1), value)
            found[f"{names[scheme][target]}{down}.weight"] = torch.ones(1, width)
            total[target] += value
        terms.append(Term(decode(DictSource(found)), {}, scheme))
    result, report = add(terms)
    assert set(result.layers) == set(names[format].values())
    for target in targets:
        delta = result.layers[names[format][target]].delta(torch.float64)
        assert torch.allclose(delta, torch.full_like(delta, total[target]))
    assert not report.skips
    suffix = ".lora_up.weight" if format == "kohya" else ".lora_B.weight"
    assert {keys["up"] for keys in result.keys.values()} == {
        name + suffix for name in names[format].values()
    }


def test_a_1x1_convolution_in_two_layouts():
    flat, kernel = Part("conv1x1", 3, shape=(24, 16)), Part("conv1x1", 4, alpha=1.0, seed=1)
    for pair in ([flat], [kernel]), ([kernel], [flat]):
        result, _ = add([term(one) for one in pair])
        (layer,) = result.layers.values()
        assert layer.shape == (24, 16, 1, 1)
        assert off(result, expected((pair[0], 1.0), (pair[1], 1.0))) < 1e-6


def test_a_core_and_plain_factors_of_one_kernel():
    tucker = Part("tucker", 3, 1.0)
    plain = Part("conv3x3", 4, seed=1, shape=tucker.weight, module=tucker.name)
    result, _ = add([term([tucker], 0.5), term([plain])])
    assert off(result, expected(([tucker], 0.5), ([plain], 1.0))) < 1e-6
    (layer,) = result.layers.values()
    assert (layer.mid, layer.rank) == (None, 7)


def test_a_kohya_name_gets_its_dots_from_the_reference_or_another_input():
    part = Part(module="brand_new.0.linear1")
    with pytest.raises(ArgumentError, match=r"has no name in format `comfy`.*`reference=`"):
        add([term([part])], format="comfy")
    target = "diffusion_model.brand_new.0.linear1"
    result, _ = add([term([part])], format="comfy", reference=[target])
    assert set(result.layers) == {target}
    result, _ = add([term([part]), term([part], format="peft")], format="comfy")
    assert set(result.layers) == {target}


def test_two_layers_of_one_name_are_refused():
    """One file spells a weight in two ways; both would be written under one key."""
    twice = tensors([Part()], "comfy") | {
        f"model.{key}": value for key, value in tensors([Part(seed=1)], "comfy").items()
    }
    other = decode(DictSource(twice))
    assert len(other.layers) == 2
    with pytest.raises(MismatchError, match=r"of b would be called `lora_unet_.*rename or remove"):
        add([term([Part()]), Term(other, {}, "b")])


# --- Faults of other programs --------------------------------------------------------------------


def kohya_concat(terms):
    """sd-scripts' merge with --concat: the root of the ratio on both factors, alpha the joined rank."""
    ups, downs = [], []
    rank = sum(part.rank for part, _ in terms)
    for part, ratio in terms:
        f, alpha = part.factors(), part.rank if part.alpha is None else part.alpha
        gain = math.sqrt(abs(ratio) * alpha / part.rank)
        ups.append(f["up"].double() * math.copysign(gain, ratio))
        downs.append(f["down"].double() * gain)
    return oracles.change(torch.cat(ups, 1), torch.cat(downs), rank)


def peft_cat(terms):
    """PEFT's add_weighted_adapter with `cat`: strength times scale on the downs, scale 1."""
    downs = [
        p.factors()["down"].double() * s * (1 if p.alpha is None else p.alpha / p.rank)
        for p, s in terms
    ]
    return torch.cat([p.factors()["up"].double() for p, _ in terms], 1) @ torch.cat(downs)


MIXED = [(Part(rank=4, alpha=1.0), 0.7), (Part(rank=4, alpha=8.0, seed=1), -0.3)]
RANKS = [(Part(rank=3, alpha=3.0), 0.7), (Part(rank=5, alpha=5.0, seed=1), 0.4)]
ABSENT = [(Part(rank=4), 0.7), (Part(rank=4, alpha=2.0, seed=1), 0.4)]


def our_change(terms):
    result, _ = add([term([part], s) for part, s in terms])
    return result.layers[LINEAR].delta(torch.float64)


@pytest.mark.parametrize("terms", [MIXED, RANKS, ABSENT])
@pytest.mark.parametrize("formula", [kohya_concat, peft_cat])
def test_formulas_of_others_that_are_right_agree(formula, terms):
    exact = sum(s * change_of(p) for p, s in terms)
    assert oracles.error_of(exact, formula(terms)) < 1e-12 * float(exact.norm())
    assert oracles.error_of(formula(terms), our_change(terms)) < 1e-6 * float(exact.norm())


def on_both_factors(terms):
    """Power-Merger, EasyLoRA: the strength on up and on down."""
    return sum(s * s * change_of(p) for p, s in terms)


def averaged_factors(terms):
    """PEFT's `linear`, supermerger: factors added as if they were changes."""
    scaled = [math.sqrt(abs(s) * (p.alpha or p.rank) / p.rank) for p, s in terms]
    up = sum(g * p.factors()["up"].double() for g, (p, _) in zip(scaled, terms, strict=True))
    down = sum(g * p.factors()["down"].double() for g, (p, _) in zip(scaled, terms, strict=True))
    return up @ down


def first_alpha(terms):
    """Power-Merger: the alpha of the first for all."""
    return sum(s * oracles.change(**p.factors(), alpha=terms[0][0].alpha) for p, s in terms)


def alpha_missing(terms):
    """Core's LoraSave: no alpha is read, or written."""
    return sum(s * oracles.change(**p.factors(), alpha=None) for p, s in terms)


def rank_cut(terms):
    """EasyLoRA, ntc-ai: every rank cut to the smallest, alpha left as it was."""
    least = min(p.rank for p, _ in terms)
    cut = [(p.factors()["up"][:, :least], p.factors()["down"][:least]) for p, _ in terms]
    return sum(
        s * oracles.change(up, down, (p.alpha or p.rank) / p.rank * least)
        for (up, down), (p, s) in zip(cut, terms, strict=True)
    )


def zero_is_unset(terms):
    return sum((s or 1.0) * change_of(p) for p, s in terms)


WITH_ZERO = [(Part(rank=3), 0.5), (Part(rank=3, seed=1), 0.0)]


@pytest.mark.parametrize(
    ("faulty", "terms"),
    [
        (on_both_factors, MIXED),
        (averaged_factors, MIXED),
        (first_alpha, MIXED),
        (alpha_missing, MIXED),
        (rank_cut, RANKS),
        (zero_is_unset, WITH_ZERO),
    ],
)
def test_faults_of_other_programs_are_not_ours(faulty, terms):
    """Each is far from the sum where ours is the sum."""
    exact = sum(s * change_of(p) for p, s in terms)
    size = float(exact.norm())
    assert oracles.error_of(exact, our_change(terms)) < 1e-6 * size
    assert oracles.error_of(exact, faulty(terms)) > 0.1 * size
