"""LoKr by its two small matrices: resize, compare, add, norms, against the product in dense float64."""

from __future__ import annotations

import math

import pytest
import torch
from kinds import change, kinds, numbers, weight
from oracles import best_error, error_of, singular_values

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.layers import LokrLayer
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.errors import ArgumentError, NonFiniteError
from lorakit.lora_ops.inspect.compare import compare
from lorakit.lora_ops.inspect.spectra import spectra
from lorakit.lora_ops.linalg import Kron, Operator, kron_svd
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.resize.resize import resize
from lorakit.lora_ops.operations.scale.scale import scale

MODULE = "diffusion_model.blocks.0.q"
CASES = [
    (form, name)
    for form in ("linear", "conv3x3")
    for name in kinds(form)
    if name.startswith("lokr") and "DoRA" not in name
]
#: Whole matrices whose factors would be larger than the weight, in two shapes of factors.
WHOLE = {
    "4x4": {"lokr_w1": numbers(4, 4, seed=1), "lokr_w2": numbers(12, 8, seed=2)},
    "4x4, other numbers": {"lokr_w1": numbers(4, 4, seed=3), "lokr_w2": numbers(12, 8, seed=4)},
    "6x4": {"lokr_w1": numbers(6, 4, seed=5), "lokr_w2": numbers(8, 8, seed=6)},
    "8x4 in factors": {
        "lokr_w1_a": numbers(8, 2, seed=7),
        "lokr_w1_b": numbers(2, 4, seed=8),
        "lokr_w2": numbers(6, 8, seed=9),
        "alpha": torch.tensor(3.0),
    },
}
OTHERS = {
    "lora": {"lora_B.weight": numbers(48, 3, seed=10), "lora_A.weight": numbers(3, 32, seed=11)},
    "loha": {
        f"hada_{part}": numbers(*shape, seed=12 + index)
        for index, (part, shape) in enumerate(
            {"w1_a": (48, 2), "w1_b": (2, 32), "w2_a": (48, 2), "w2_b": (2, 32)}.items()
        )
    },
    "full": {"diff": numbers(48, 32, seed=20)},
}
LAYERS = WHOLE | OTHERS


def read(tensors, module=MODULE):
    return decode(DictSource({f"{module}.{suffix}": one for suffix, one in tensors.items()}))


def dense(tensors):
    """The change by the definition, (out, in * kernel), float64."""
    spelled = {"lora_B.weight": "lora_up.weight", "lora_A.weight": "lora_down.weight"}
    held = {spelled.get(suffix, suffix): one for suffix, one in tensors.items()}
    return torch.from_numpy(change(held, torch.zeros(48, 32)))


def of_form(form, name):
    return torch.from_numpy(change(kinds(form)[name], weight(form))).flatten(1)


def written(layer):
    return layer.scale * layer.up.double().flatten(1) @ layer.down.double().flatten(1)


@pytest.fixture
def never_multiplied(monkeypatch):
    """A LoKr's product may not be formed, nor factors as long as its sides."""

    def refuse(self, *_, **__):
        raise AssertionError("multiplied out")

    for name in ("delta", "factors"):
        monkeypatch.setattr(LokrLayer, name, refuse)


@pytest.mark.usefixtures("never_multiplied")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("way", ["resize", "convert"])
@pytest.mark.parametrize(("form", "name"), CASES)
def test_a_cut_is_the_best_there_is(form, name, way, rank):
    exact, lora = of_form(form, name), read(kinds(form)[name])
    if way == "resize":
        result, report = resize(lora, rank)
    else:
        result, report = convert(lora, to="lora", rule=rank)
    layer, norm = result.layers[MODULE], float(exact.norm())
    if layer.title == "LoKr":
        assert layer.rank <= rank
        assert report.error == 0
    else:
        missed = error_of(exact, written(layer))
        assert missed == pytest.approx(best_error(exact, rank), rel=1e-5, abs=2e-6 * norm)
        assert report.error * norm == pytest.approx(missed, rel=1e-5, abs=2e-6 * norm)
    assert report.layers[0].norm == pytest.approx(norm, rel=1e-6)


@pytest.mark.usefixtures("never_multiplied")
@pytest.mark.parametrize("rule", ["energy=0.9", "fro=0.8", "knee", "mean=2", "total_error=0.3"])
@pytest.mark.parametrize("name", WHOLE)
def test_rules_and_budgets_see_all_singular_values(name, rule):
    result, report = resize(read(WHOLE[name]), rule)
    exact = dense(WHOLE[name])
    missed = error_of(exact, written(result.layers[MODULE]))
    assert missed == pytest.approx(best_error(exact, result.layers[MODULE].rank), rel=1e-5)
    assert report.error == pytest.approx(missed / float(exact.norm()), rel=1e-5)


@pytest.mark.usefixtures("never_multiplied")
@pytest.mark.parametrize("name", WHOLE)
def test_spectra_norms_and_strengths(name):
    lora, exact = read(WHOLE[name]), dense(WHOLE[name])
    (one,) = spectra(lora)
    s = singular_values(exact)[: len(one.s)]
    torch.testing.assert_close(one.s, torch.from_numpy(s), rtol=1e-6, atol=1e-6)
    _, report = scale(lora, -0.7)
    assert report.layers[0].norm == pytest.approx(0.7 * float(exact.norm()), rel=1e-9)
    half, report = resize(lora, 999, dtype=torch.bfloat16)
    rounded = half.layers[MODULE]
    assert rounded.title == "LoKr"
    spelled = {
        f"lokr_{role}": t.float() for role, t in rounded.tensors().items() if role != "alpha"
    }
    spelled |= {"alpha": torch.tensor(rounded.alpha)} if rounded.alpha else {}
    missed = error_of(exact, dense(spelled)) / float(exact.norm())
    assert report.error == pytest.approx(missed, rel=1e-4)
    assert 1e-4 < missed < 1e-2


@pytest.mark.usefixtures("never_multiplied")
@pytest.mark.parametrize("other", LAYERS)
@pytest.mark.parametrize("one", WHOLE)
def test_compare_has_the_inner_products_of_the_definition(one, other):
    a, b = dense(LAYERS[one]), dense(LAYERS[other])
    found = compare(read(LAYERS[one]), read(LAYERS[other]))
    assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
    assert found.layers[0].inner == pytest.approx(float((a * b).sum()), rel=1e-5, abs=1e-5)
    assert found.distance == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("never_multiplied")
@pytest.mark.parametrize("rule", [1, 4, "energy=0.8"])
@pytest.mark.parametrize("other", LAYERS)
@pytest.mark.parametrize("one", ["4x4", "6x4"])
def test_a_sum_at_a_rank_is_the_best_there_is(one, other, rule):
    terms = [Term(read(LAYERS[one])), Term(read(LAYERS[other]), {MODULE: -0.6})]
    result, report = add(terms, rule)
    exact = dense(LAYERS[one]) - 0.6 * dense(LAYERS[other])
    layer = result.layers[MODULE]
    missed = error_of(exact, written(layer))
    assert missed <= 1.001 * best_error(exact, layer.rank) + 1e-5
    assert report.error == pytest.approx(missed / float(exact.norm()), rel=1e-4, abs=1e-6)
    assert report.layers[0].norm == pytest.approx(float(exact.norm()), rel=1e-6)


def test_a_sum_of_large_ones_goes_by_products_alone():
    """Beyond 256 a side the basis is a Krylov space's; the sum is near the best all the same."""
    generator = torch.Generator().manual_seed(0)
    falling = torch.arange(1, 33).float() ** -0.8
    files = []
    for _ in range(2):
        first, second = (torch.randn(a, generator=generator) for a in ((16, 16), (48, 32)))
        files.append({"lokr_w1": first * falling[:16], "lokr_w2": second * falling})
    exact = sum(torch.kron(one["lokr_w1"].double(), one["lokr_w2"].double()) for one in files)
    result, report = add([Term(read(one)) for one in files], 16)
    missed = error_of(exact, written(result.layers[MODULE]))
    assert missed <= 1.001 * best_error(exact, 16)
    assert report.error == pytest.approx(missed / float(exact.norm()), rel=1e-4)


@pytest.mark.usefixtures("never_multiplied")
def test_an_exact_sum_as_large_as_the_weights_is_refused_before_the_work():
    told = []
    large = {"lokr_w1": numbers(16, 16), "lokr_w2": numbers(768, 256)}
    lora = {"lora_B.weight": numbers(12288, 1), "lora_A.weight": numbers(1, 4096)}
    terms = [Term(read(large)), Term(read(lora))]
    with pytest.raises(
        ArgumentError, match=r"exact sum of 1 weight .*12288 x 4096.*0\.134 GB.*`rule=64`"
    ):
        add(terms, progress=lambda *one: told.append(one))
    assert told == []
    alone, _ = add([terms[0], Term(read(lora, "diffusion_model.blocks.1.q"))])
    assert [layer.title for layer in alone.layers.values()] == ["LoKr", "LoRA"]
    nothing, _ = add([terms[0], Term(terms[1].adapter, {MODULE: 0.0})])
    assert nothing.layers[MODULE].title == "LoKr"


@pytest.mark.parametrize("rule", [None, 65536])
def test_a_small_one_is_exact_and_so_is_one_with_a_rank_that_is_all_of_them(rule):
    terms = [Term(read(WHOLE["4x4"])), Term(read(OTHERS["lora"]))]
    result, report = add(terms, rule)
    exact = dense(WHOLE["4x4"]) + dense(OTHERS["lora"])
    assert error_of(exact, written(result.layers[MODULE])) < 1e-5 * float(exact.norm())
    assert report.error < 1e-5


@pytest.mark.usefixtures("never_multiplied")
def test_one_that_an_input_alone_holds_stays_in_another_dtype_too():
    terms = [Term(read(WHOLE["6x4"])), Term(read(OTHERS["lora"], "diffusion_model.blocks.1.q"))]
    result, report = add(terms, dtype=torch.float16)
    layer = result.layers[MODULE]
    assert (layer.title, layer.dtype) == ("LoKr", torch.float16)
    assert torch.equal(layer.w2, WHOLE["6x4"]["lokr_w2"].half())
    assert 1e-5 < report.error < 1e-3


@pytest.mark.parametrize("operation", [lambda one: resize(one, 1), lambda one: compare(one, one)])
def test_a_number_that_is_none_is_named(operation):
    broken = WHOLE["4x4"]["lokr_w2"].clone()
    broken[3, 2] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"the w2 of layer `diffusion_model.blocks.0.q` holds 1"
    ):
        operation(read(WHOLE["4x4"] | {"lokr_w2": broken}))


@pytest.mark.parametrize("scale_", [1.0, -2.5])
def test_kronecker_products_by_their_parts(scale_):
    first, second = numbers(5, 3).double(), numbers(4, 7, seed=1).double()
    exact = scale_ * torch.kron(first, second)
    product = Kron(first, second, scale_)
    rows = numbers(2, 20, seed=2).double()
    torch.testing.assert_close(product.times(rows), rows @ exact)
    torch.testing.assert_close(product.mT.times(rows @ exact), rows @ exact @ exact.mT)
    torch.testing.assert_close(product.rows(slice(3, 11)), exact[3:11])
    assert float(product.norm()) == pytest.approx(float(exact.norm()), rel=1e-12)
    svd = kron_svd((first.float(), torch.eye(3)), (torch.eye(4), second.float()), scale_)
    torch.testing.assert_close(
        svd.s, torch.from_numpy(singular_values(exact))[: len(svd.s)], rtol=1e-6, atol=1e-6
    )
    up, down = svd.factors(5)
    assert error_of(exact, up.double() @ down.double()) == pytest.approx(
        best_error(exact, 5), rel=1e-5
    )
    matrix = numbers(20, 21, seed=3)
    total = Operator(
        (Kron(first.float(), second.float(), scale_), matrix), (1.0, -2.0), (1, 20, 21)
    )
    torch.testing.assert_close(rows.float() @ total, (rows @ (exact - 2 * matrix)).float())
    torch.testing.assert_close(total[0], (exact - 2 * matrix).float())
