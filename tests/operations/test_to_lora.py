"""Every kind as plain LoRA, against dense changes that float64 loops make from the definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import WEIGHTS, change, kinds, numbers, weight

from lorakit.lora_ops import Adapter, DictSource, convert, decode
from lorakit.lora_ops.adapters.formats import modules
from lorakit.lora_ops.adapters.layers import FullLayer, LoraLayer, ReshapedLayer
from lorakit.lora_ops.errors import ArgumentError, NonFiniteError, UnsupportedLayerError

MODULE = "diffusion_model.blocks.0.q"
KEY = "blocks.0.q.weight"
CASES = [(form, name) for form in WEIGHTS for name in kinds(form)]
OF_BASE = [
    (form, name)
    for form, name in CASES
    if "DoRA" in name or name.startswith(("glora", "oft", "boft", "ia3", "set"))
]
#: More than any of these weights has.
ALL = 64


def adapter(form: str, name: str) -> Adapter:
    tensors = {f"{MODULE}.{suffix}": one for suffix, one in kinds(form)[name].items()}
    return decode(DictSource(tensors, name="lora"))


def base(form: str) -> DictSource:
    return DictSource({KEY: weight(form)}, name="base")


def only(found: Adapter) -> LoraLayer:
    (layer,) = found.layers.values()
    assert isinstance(layer, LoraLayer)
    assert layer.mid is None
    return layer


def distance(layer: LoraLayer, wanted: np.ndarray) -> float:
    """Of the change, multiplied out in float64, from what it should be; as a share of that."""
    down = layer.down.double().flatten(1).numpy() * layer.scale
    found = layer.up.double().flatten(1).numpy() @ down
    return float(np.linalg.norm(found - wanted.reshape(found.shape)) / np.linalg.norm(wanted))


def least(wanted: np.ndarray, rank: int) -> float:
    """The smallest relative error that a rank allows (Eckart and Young)."""
    s = np.linalg.svd(wanted.reshape(len(wanted), -1), compute_uv=False)
    return math.sqrt(math.fsum(s[rank:] ** 2) / math.fsum(s**2))


# --- Every kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), CASES)
def test_at_all_its_ranks_it_is_the_same_change(form, name):
    result, report = convert(adapter(form, name), to="lora", base=base(form), rule=ALL)
    wanted = change(kinds(form)[name], weight(form))
    layer = only(result)
    assert distance(layer, wanted) < 1e-6
    assert layer.shape == WEIGHTS[form]
    assert report.error < 1e-6
    assert report.layers[0].norm == pytest.approx(np.linalg.norm(wanted), rel=1e-6)
    assert set(result.keys[MODULE]) == {"up", "down", "alpha"}
    grouped = modules(result.keys[MODULE].values())
    assert grouped.modules[MODULE].kind == "lora"


@pytest.mark.parametrize("rule", [2, "error=0.4", "energy=0.7,conv=1"])
@pytest.mark.parametrize(("form", "name"), CASES)
def test_at_a_lower_rank_it_is_the_best_there_is(form, name, rule):
    result, report = convert(adapter(form, name), to="lora", base=base(form), rule=rule)
    wanted, layer = change(kinds(form)[name], weight(form)), only(result)
    best = least(wanted, layer.rank)
    error = distance(layer, wanted)
    assert best - 1e-6 <= error <= best * (1 + 1e-5) + 1e-6
    assert report.error == pytest.approx(error, abs=1e-6)
    if rule == 2:
        assert layer.rank == min(2, np.linalg.matrix_rank(wanted.reshape(8, -1)))
    elif rule == "error=0.4" or form in ("linear", "conv1x1"):
        assert error**2 <= (0.16 if rule == "error=0.4" else 0.3) + 1e-6
        assert layer.rank == 1 or least(wanted, layer.rank - 1) ** 2 > 0.16
    else:
        assert layer.rank == 1


@pytest.mark.parametrize(("form", "name"), OF_BASE)
def test_twin_the_base_matters(form, name):
    """With another base's weights it is another change."""
    other = DictSource({KEY: weight(form).flip(0)}, name="other")
    result, _ = convert(adapter(form, name), to="lora", base=other, rule=ALL)
    assert distance(only(result), change(kinds(form)[name], weight(form))) > 1e-2


@pytest.mark.parametrize("name", [name for form, name in OF_BASE if form == "conv3x3"])
def test_the_convention_is_the_one_that_is_asked_for(name):
    given_ = adapter("conv3x3", name)
    (layer,) = given_.layers.values()
    source = weight("conv3x3")
    for convention in ("paper", "comfy"):
        wanted = layer.change(source, 1.0, torch.float64, convention)
        if not wanted.any():  # a BOFT that ComfyUI leaves alone
            continue
        result, _ = convert(given_, to="lora", base=base("conv3x3"), rule=ALL, dora=convention)
        assert distance(only(result), wanted.numpy()) < 1e-6


def test_programs_differ_on_dora_by_rows():
    found = [
        convert(adapter("linear", "lora, DoRA"), to="lora", base=base("linear"), rule=ALL, dora=one)
        for one in ("paper", "comfy")
    ]
    paper, comfy = (only(result).delta() for result, _ in found)
    assert (paper - comfy).norm() > 1e-2 * comfy.norm()


# --- Exactly, without a rank ----------------------------------------------------------------------

ranks = st.integers(1, 3)
sides = st.integers(13, 40)
kernels = st.sampled_from([(), (1, 1), (3, 3), (2, 1, 3)])


@given(
    out=st.integers(18, 40),  # so large that nine directions take less room than the weight
    into=st.integers(18, 40),
    kernel=kernels,
    first=ranks,
    second=ranks,
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_loha_is_exact_at_the_product_of_its_ranks(out, into, kernel, first, second, seed):
    taps = math.prod(kernel)
    tensors = {
        "hada_w1_a": numbers(out, first, seed=seed),
        "hada_w1_b": numbers(first, into * taps, seed=seed + 1),
        "hada_w2_a": numbers(out, second, seed=seed + 2),
        "hada_w2_b": numbers(second, into * taps, seed=seed + 3),
        "alpha": torch.tensor(1.5),
    }
    check_exact(tensors, (out, into, *kernel), first * second)


@given(out=sides, into=sides, kernel=kernels, inner=ranks, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_glora_is_exact_at_its_rank_for_every_tap_and_once_more(out, into, kernel, inner, seed):
    taps, ones = math.prod(kernel), [1] * len(kernel)
    inner = min(inner, 2) if taps > 1 else inner
    tensors = {
        "a1.weight": numbers(into, inner, *ones, seed=seed),
        "a2.weight": numbers(inner, into, *ones, seed=seed + 1),
        "b1.weight": numbers(out, inner, *ones, seed=seed + 2),
        "b2.weight": numbers(inner, into, *kernel, seed=seed + 3),
        "alpha": torch.tensor(0.5),
    }
    rank = inner * (1 + taps)
    if rank * (out + into * taps) > out * into * taps:
        with pytest.raises(ArgumentError, match="more room as an exact LoRA"):
            check_exact(tensors, (out, into, *kernel), rank)
    else:
        check_exact(tensors, (out, into, *kernel), rank)


@given(a=st.integers(2, 4), b=st.integers(2, 4), c=st.integers(6, 9), d=st.integers(6, 9), inner=st.integers(1, 2))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_lokr_is_exact_at_the_product_of_its_ranks(a, b, c, d, inner):
    tensors = {
        "lokr_w1_a": numbers(a, 1, seed=1),
        "lokr_w1_b": numbers(1, b, seed=2),
        "lokr_w2_a": numbers(c, inner, seed=3),
        "lokr_w2_b": numbers(inner, d, seed=4),
        "alpha": torch.tensor(3.0),
    }
    check_exact(tensors, (a * c, b * d), inner)


def check_exact(tensors: dict[str, torch.Tensor], shape: tuple[int, ...], rank: int) -> None:
    source = numbers(*shape, seed=7)
    named = {f"{MODULE}.{suffix}": one for suffix, one in tensors.items()}
    result, report = convert(
        decode(DictSource(named)), to="lora", base=DictSource({KEY: source}), dtype=torch.float32
    )
    assert only(result).rank <= rank
    assert distance(only(result), _fast(tensors, source)) < 1e-6
    assert report.error < 1e-6


def _fast(tensors: dict[str, torch.Tensor], base: torch.Tensor) -> np.ndarray:
    """The definitions once more, by whole matrices; `kinds.change` does them number by number."""
    held = {name: one.double().flatten(1) if one.ndim else one for name, one in tensors.items()}
    if "hada_w1_a" in held:
        scale = held["alpha"] / len(held["hada_w1_b"])
        first, second = (held[f"hada_w{n}_a"] @ held[f"hada_w{n}_b"] for n in "12")
        return (scale * first * second).numpy()
    if "lokr_w1_a" in held:
        scale = held["alpha"] / len(held["lokr_w2_b"])
        pair = (held[f"lokr_w{n}_a"] @ held[f"lokr_w{n}_b"] for n in "12")
        return (scale * torch.kron(*pair)).numpy()
    scale = held["alpha"] / len(held["a2.weight"])
    own = torch.einsum("oik,ij->ojk", base.double().flatten(2) if base.ndim > 2 else base.double()[..., None], held["a1.weight"] @ held["a2.weight"])  # fmt: skip
    return (scale * (own.flatten(1) + held["b1.weight"] @ held["b2.weight"])).numpy()


def test_the_whole_matrices_are_the_loops():
    for name in ("loha", "lokr thin, thin", "glora"):
        for form in ("linear", "conv3x3"):
            tensors = kinds(form)[name]
            if form == "conv3x3" and name.startswith("lokr"):
                continue  # whose kernel `kron` of flat matrices does not keep apart: see `kinds`
            loops = change(tensors, weight(form)).reshape(8, -1)
            assert np.allclose(_fast(tensors, weight(form)), loops, atol=1e-12)


@pytest.mark.parametrize("name", ["oft", "full", "lora, DoRA", "set", "ia3", "loha of high rank"])
def test_what_has_no_small_factors_wants_a_rank(name):
    with pytest.raises(ArgumentError, match=rf"1 layer, the first `{MODULE}` .*`rule=32` or"):
        convert(adapter("linear", name), to="lora", base=base("linear"))


def test_plain_lora_stays_bit_for_bit():
    before = adapter("conv3x3", "lora")
    after, report = convert(before, to="lora")
    old, new = only(before), only(after)
    assert new.up is old.up
    assert new.down is old.down
    assert new.alpha == old.alpha
    assert (report.error, report.notes) == (0, ())


def test_a_core_is_multiplied_out_without_a_word():
    tensors = kinds("conv3x3")["lora, Tucker"] | {
        "lora_up.weight": numbers(8, 4, 1, 1, seed=1),
        "lora_mid.weight": numbers(4, 3, 3, 3, seed=3),
    }
    named = {f"{MODULE}.{suffix}": one for suffix, one in tensors.items()}
    after, report = convert(decode(DictSource(named)), to="lora")
    assert only(after).rank == 4
    assert distance(only(after), change(tensors, weight("conv3x3"))) < 1e-6
    assert report.notes == ()


def test_vectors_stay_full_differences():
    tensors = {
        f"{MODULE}.diff_b": numbers(8),
        f"{MODULE}.lora_A.weight": numbers(2, 6),
        f"{MODULE}.lora_B.weight": numbers(8, 2),
        "diffusion_model.norm.diff": numbers(8, seed=3),
        "diffusion_model.other.set_weight": numbers(8, seed=4),
    }
    source = DictSource({"other.weight": numbers(8, seed=5), KEY: weight("linear")})
    after, report = convert(decode(DictSource(tensors)), to="lora", base=source)
    kinds_ = {name: type(layer) for name, layer in after.layers.items()}
    assert kinds_ == {
        f"{MODULE}.bias": FullLayer,
        MODULE: LoraLayer,
        "diffusion_model.norm": FullLayer,
        "diffusion_model.other": FullLayer,
    }
    assert torch.equal(
        after.layers["diffusion_model.other"].delta(), numbers(8, seed=4) - numbers(8, seed=5)
    )
    assert report.error == 0


def test_a_weight_that_grows_still_does():
    grown = numbers(8, 6)
    tensors = {f"{MODULE}.{s}": one for s, one in kinds("linear")["lora, DoRA"].items()}
    tensors[f"{MODULE}.reshape_weight"] = torch.tensor([8, 6])
    after, _ = convert(
        decode(DictSource(tensors)), to="lora", rule=ALL, base=DictSource({KEY: grown[:7, :5]})
    )
    (layer,) = after.layers.values()
    assert isinstance(layer, ReshapedLayer)
    grown[7:], grown[:, 5:] = 0, 0
    wanted = change(kinds("linear")["lora, DoRA"], grown + 1e-30)
    assert np.allclose(layer.delta(torch.float64).numpy(), wanted, atol=1e-5)


def test_the_kernel_is_found_in_the_base():
    """A LoHa's is stored flat: without the base nobody knows that it is there."""
    given_ = adapter("conv3x3", "loha")
    assert only(convert(given_, to="lora")[0]).down.shape == (4, 54)
    assert only(convert(given_, to="lora", base=base("conv3x3"))[0]).down.shape == (4, 6, 3, 3)


def test_what_was_given_is_not_written_into():
    before = adapter("linear", "full")
    kept = {role: one.clone() for role, one in before.layers[MODULE].tensors().items()}
    convert(before, to="lora", rule=2)
    assert all(
        torch.equal(before.layers[MODULE].tensors()[role], one) for role, one in kept.items()
    )


# --- Ranks over all layers, and large ones --------------------------------------------------------


def mixed() -> Adapter:
    tensors = {}
    for index, name in enumerate(("loha", "oft", "lora", "full", "lokr whole, thin", "glora")):
        module = f"diffusion_model.blocks.{index}.q"
        tensors |= {f"{module}.{s}": (index + 1) * t for s, t in kinds("linear")[name].items()}
    return decode(DictSource(tensors))


def bases() -> DictSource:
    return DictSource({f"blocks.{i}.q.weight": weight("linear") for i in range(6)})


@pytest.mark.parametrize("rule", ["mean=2", "total_error=0.2", "size=4kB"])
def test_a_budget_shares_ranks_out_over_all_kinds(rule):
    result, report = convert(mixed(), to="lora", base=bases(), rule=rule)
    sizes = [layer.rank for layer in result.layers.values()]
    assert all(isinstance(layer, LoraLayer) for layer in result.layers.values())
    if rule == "mean=2":
        assert sum(sizes) == 12
        _, even = convert(mixed(), to="lora", base=bases(), rule=2)
        assert report.error <= even.error + 1e-6
    elif rule == "total_error=0.2":
        assert report.error <= 0.2
    else:
        assert sum(14 * 4 * rank for rank in sizes) < 4000
    assert len(set(sizes)) > 1


def test_the_report_says_what_became_lora():
    _, report = convert(mixed(), to="lora", base=bases(), rule=2)
    assert {"1 layer became LoRA, from OFT", "1 layer became LoRA, from full difference"} <= set(
        report.notes
    )
    assert {one.from_kind for one in report.layers} == {
        *("", "LoHa", "OFT", "full difference", "LoKr", "GLoRA"),
    }


@pytest.mark.parametrize(("exact", "excess"), [(False, 1e-3), (True, 1e-5)])
def test_a_large_change_is_cut_as_well_as_asked_for(exact, excess):
    """Above 256 rows the truncation of `extract` iterates; `exact` does not."""
    out, into, rank = 400, 330, 8
    source = numbers(out, into, seed=1) * torch.linspace(1, 0.05, into)
    blocks = numbers(100, 4, 4, seed=2)
    named = {f"{MODULE}.oft_blocks": blocks}
    result, report = convert(
        decode(DictSource(named)), to="lora", base=DictSource({KEY: source}), rule=rank, exact=exact
    )
    (layer,) = decode(DictSource(named)).layers.values()
    wanted = layer.change(source, 1.0, torch.float64).numpy()
    best = least(wanted, rank)
    assert best <= distance(only(result), wanted) <= best * (1 + excess)
    assert report.error == pytest.approx(distance(only(result), wanted), rel=1e-6)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), [case for case in OF_BASE if case[0] == "linear"])
def test_without_the_base_it_is_refused(form, name):
    words = "has DoRA magnitudes" if "DoRA" in name else "is of kind"
    with pytest.raises(
        UnsupportedLayerError,
        match=rf"1 layer of 1 can only be told from the base weights: .*`{MODULE}`, {words}.*`base=`",
    ):
        convert(adapter(form, name), to="lora", rule=2)


def test_numbers_that_are_none_are_told_by_their_tensor():
    bad = adapter("linear", "loha")
    (layer,) = bad.layers.values()
    layer.tensors()["w1_a"][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=rf"w1_a of layer `{MODULE}` holds 1 NaN"):
        convert(replace(bad, layers={MODULE: layer}), to="lora", rule=2)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, '`format=`, or `to="lora"`'),
        ({"to": "loha"}, "`loha` is no kind"),
        ({"format": "kohya", "base": base("linear")}, "do not need the base weights"),
        ({"format": "kohya", "rule": "size=1MB"}, "budget across layers"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(asked, words):
    with pytest.raises(ArgumentError, match=words):
        convert(adapter("linear", "lora"), **asked)
