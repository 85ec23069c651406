"""Methods against mergekit and sd-mecha themselves, on the same tensors.

Left out by name, for what is known of them:

- mergekit's and sd-mecha's random numbers are not ours: their masks are replaced by ours;
- mergekit breaks ties between equal magnitudes by order: the tensors here have none;
- mergekit estimates Arcee fusion's quartiles from drawn elements above a million: ours here is less;
- sd-mecha's `ties_sum_extended` has its flag `apply_stock` the wrong way round, and its
  `geometric_sum` leaves the real numbers: neither is offered.
"""

from __future__ import annotations

import pytest
import torch
from merging import merge_tiles

from lorakit.lora_ops.linalg.random_bits import random_bits, random_key

SHAPE = (24, 31)
WEIGHTS = [0.7, 1.2, 0.5]


def models(count=4, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def mergekit(name, base, terms, **parameters):
    registry = pytest.importorskip("mergekit.merge_methods.registry", reason="needs mergekit")
    from mergekit.merge_methods.base import PerInputValues, TensorGroup

    group = TensorGroup.from_tensors([base, *terms], base_index=0)
    given = {
        key: PerInputValues(dict(enumerate(value, 1))) if isinstance(value, list) else value
        for key, value in parameters.items()
    }
    return registry.get(name).merge_group(group, **given)


@pytest.fixture
def our_masks(monkeypatch):
    """torch.bernoulli draws, call by call, what ours draws for the terms."""
    calls = iter(range(100))

    def bernoulli(probabilities, **_):
        key = random_key(3, "w", next(calls))
        bits = random_bits(key, 0, probabilities.numel()).view(probabilities.shape).float()
        return (bits + 32768 < (probabilities * 65536).ceil()).to(probabilities)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


MERGEKIT = {
    "ties": ("ties", {}, {"normalize": True, "rescale": False}),
    "breadcrumbs": ("breadcrumbs", {"gamma": 0.05}, {"normalize": False, "rescale": False}),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        {"gamma": 0.05},
        {"normalize": False, "rescale": False},
    ),
    "dare_linear": ("dare_linear", {}, {"normalize": False, "rescale": True}),
    "dare_ties": ("dare_ties", {}, {"normalize": False, "rescale": True}),
    "della": ("della", {"epsilon": 0.15}, {"normalize": True, "rescale": True}),
    "della_linear": ("della_linear", {"epsilon": 0.15}, {"normalize": False, "rescale": True}),
}


@pytest.mark.parametrize("density", [0.3, 0.6])
@pytest.mark.parametrize("name", MERGEKIT)
@pytest.mark.usefixtures("our_masks")
def test_mergekits_sparse_methods(name, density):
    theirs, ours, switches = MERGEKIT[name]
    base, *terms = models()
    lists = {key: [value] * 3 for key, value in ours.items()}
    expected = mergekit(
        theirs,
        base,
        terms,
        weight=WEIGHTS,
        density=[density] * 3,
        int8_mask=False,
        **{"lambda": 0.9},
        **switches,
        **lists,
    )
    changes = [term - base for term in terms]
    asked = {"density": density, "strength": 0.9, "legacy": "mergekit"} | ours
    merged = merge_tiles(name, changes, WEIGHTS, rows=5, **asked)
    torch.testing.assert_close(base + merged, expected, rtol=1e-5, atol=1e-5)


def test_a_draw_of_signs_is_plus_in_mergekit_and_nothing_in_the_paper():
    base = torch.zeros(1, 4)
    up = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    expected = mergekit(
        "ties",
        base,
        [up, -up],
        weight=[1.0, 1.0],
        density=[1.0, 1.0],
        int8_mask=False,
        normalize=True,
        rescale=False,
        **{"lambda": 1.0},
    )
    assert merge_tiles("ties", [up, -up], density=1, legacy="mergekit").equal(expected)
    assert expected.equal(up)
    assert not merge_tiles("ties", [up, -up], density=1).any()


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_mergekits_sce(density):
    base, *terms = models()
    expected = mergekit("sce", base, terms, select_topk=density, int8_mask=False)
    merged = merge_tiles("sce", [term - base for term in terms], rows=5, density=density)
    torch.testing.assert_close(base + merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "boost"), [("ram", 0.0), ("ramplus_tl", 0.3)])
def test_mergekits_ram(name, boost):
    base, *terms = models()
    generator = torch.Generator().manual_seed(4)
    terms = [torch.where(torch.rand(SHAPE, generator=generator) < 0.5, base, t) for t in terms]
    plus = {"r": boost, "alpha": 0.6} if boost else {}
    expected = mergekit(name, base, terms, epsilon=1e-5, **plus)
    changes = [term - base for term in terms]
    merged = merge_tiles("ram", changes, rows=5, boost=boost, limit=0.6)
    torch.testing.assert_close(base + merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (40,)])
def test_mergekits_arcee_fusion(shape):
    base, _ = models(2, shape)
    tuned = base + 0.2 * models(2, shape, 5)[1]
    expected = mergekit("arcee_fusion", base, [tuned])
    torch.testing.assert_close(merge_tiles("arcee_fusion", [tuned], base=base, rows=5), expected)


@pytest.mark.parametrize("axis", ["tensor", "row", "column"])
def test_mergekits_nuslerp(axis):
    base, *terms = models(3)
    expected = mergekit(
        "nuslerp",
        base,
        terms,
        weight=[0.6, 1.4],
        nuslerp_flatten=axis == "tensor",
        nuslerp_row_wise=axis == "column",  # their word for vectors along the first axis
    )
    changes = [term - base for term in terms]
    merged = merge_tiles("nuslerp", changes, [0.6, 1.4], rows=5, axis=axis)
    torch.testing.assert_close(base + merged, expected, rtol=1e-5, atol=1e-5)


def mecha(module, name):
    """The function behind one of sd-mecha's methods."""
    package = "sd_mecha.extensions.builtin.merge_methods"
    found = pytest.importorskip(f"{package}.{module}", reason="needs sd-mecha")
    return getattr(found, name).__wrapped__


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_mechas_ties(density):
    changes = models(3)
    for by_sum in (False, True):
        expected = mecha("ties", "ties_sum")(*changes, k=density, vote_sgn=by_sum)
        asked = {"density": density, "legacy": "no" if by_sum else "mecha"}
        if by_sum and density < 1:
            continue  # mecha keeps one element more: only its own meaning has that
        merged = merge_tiles("ties", changes, rows=5, **asked)
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("our_masks")
def test_mechas_dare_ties():
    changes = models(3)
    method = mecha("ties", "ties_sum_with_dropout")
    # k = 1 trims nothing; its `apply_stock` is the wrong way round.
    expected = method(*changes, probability=0.4, k=1.0, apply_stock=True)
    merged = merge_tiles("dare_ties", changes, rows=5, density=0.6, legacy="mecha")
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_mechas_cosines(kind):
    a, b = models(2)
    b = a + 0.7 * b
    expected = mecha("cosine", f"add_cosine_{kind}")(a, b, alpha=0.3)
    merged = merge_tiles(f"cosine_{kind}", [b], [0.3], base=a, rows=5, legacy="mecha")
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "offset"), [(0.3, 0.0), (0.3, 0.5), (0.7, 0.6), (1.0, 0.0), (-0.2, 0.5), (0.5, 1.0)]
)
def test_mechas_tensor_sum(width, offset):
    a, b = models(2)
    expected = mecha("slicing", "tensor_sum")(a.clone(), b.clone(), width=width, offset=offset)
    asked = {"offset": offset, "legacy": "mecha"}
    assert merge_tiles("tensor_sum", [b], [width], base=a, rows=5, **asked).equal(expected)


def test_mechas_clamp():
    value, *bounds = models(4)
    expected = mecha("limiting", "clamp")(value, *bounds)
    assert merge_tiles("limit", bounds, base=value, rows=5).equal(expected)


def test_mechas_train_difference_is_a_mask():
    a, b, c = models(3)
    mask = mecha("linear", "train_difference_mask")(a, b, c, alpha=0.4)
    merged = merge_tiles("train_difference", [b, c], [0.4, 0], base=a, rows=5)
    torch.testing.assert_close(merged, a + mask * (b - c), rtol=1e-5, atol=1e-5)
