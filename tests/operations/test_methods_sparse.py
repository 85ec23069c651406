"""TIES, DARE, DELLA, breadcrumbs against loops written from their definitions, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import merge_tiles

from lorakit.lora_ops.linalg.random_bits import random_bits, random_key

SPARSE = ("magnitude", "none", "dare", "della", "breadcrumbs")


def deltas(count=3, shape=(12, 17), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def kept_by_magnitude(values, density, gamma=0.0):
    """The loop: sort, count from the top, and keep equals of the last and the first one kept."""
    order = sorted((abs(v) for v in values.flat), reverse=True)
    kept = max(1, int(density * len(order)))
    top = min(int(gamma * len(order)), len(order) - kept)
    least, most = order[top + kept - 1], order[top]
    return np.array([[v if least <= abs(v) <= most else 0.0 for v in row] for row in values])


def kept_at_random(values, density, epsilon, index, seed, key):
    """DARE (epsilon None) and DELLA by element, from the bits of each position alone."""
    result = np.zeros(values.shape)
    stream = random_key(seed, key, index)
    for row, line in enumerate(values):
        order = sorted(range(len(line)), key=lambda column: (abs(line[column]), column))
        for rank, column in enumerate(order):
            share = density
            if epsilon is not None:
                share += epsilon * ((rank + 0.5) / len(line) - 0.5)
            bits = int(random_bits(stream, row * len(line) + column, 1)) + 32768
            if bits < share * 65536:
                result[row, column] = line[column] * 65536 / np.ceil(share * 65536)
    return result


def sparsified(terms, sparsify, density, *, gamma=0.0, epsilon=0.1, seed=3, key="w"):
    result = []
    for index, term in enumerate(terms):
        values = term.double().numpy()
        if sparsify in ("magnitude", "breadcrumbs"):
            values = kept_by_magnitude(values, density, gamma if sparsify == "breadcrumbs" else 0.0)
        elif sparsify != "none":
            window = epsilon if sparsify == "della" else None
            values = kept_at_random(values, density, window, index, seed, key)
        result.append(values)
    return result


def elected(changes, weights, elect="sum", normalize="count"):
    """TIES from the paper, one element at a time."""
    result = np.zeros(changes[0].shape)
    for place in itertools.product(*map(range, result.shape)):
        values = [weight * change[place] for weight, change in zip(weights, changes, strict=True)]
        sign = np.sign(sum(values if elect == "sum" else map(np.sign, values)))
        agreeing = [i for i, value in enumerate(values) if value * sign > 0]
        if agreeing:
            by = {"count": len(agreeing), "weights": sum(weights[i] for i in agreeing), "no": 1}
            result[place] = sum(values[i] for i in agreeing) / by[normalize]
    return result


@pytest.mark.parametrize("rows", [None, 1, 5])
@pytest.mark.parametrize("sparsify", SPARSE)
def test_sparse_is_the_loop(sparsify, rows):
    terms, weights = deltas(), [0.7, -1.2, 2.0]
    merged = merge_tiles(
        "sparse", terms, weights, rows=rows, sparsify=sparsify, density=0.3, gamma=0.1, strength=0.5
    )
    changes = sparsified(terms, sparsify, 0.3, gamma=0.1)
    meant = 0.5 * sum(w * change for w, change in zip(weights, changes, strict=True))
    np.testing.assert_allclose(merged.numpy(), meant, rtol=2e-6, atol=1e-6)
    assert ((merged.numpy() == 0) == (meant == 0)).all()


@pytest.mark.parametrize("normalize", ["count", "weights", "no"])
@pytest.mark.parametrize("elect", ["sum", "count"])
@pytest.mark.parametrize("sparsify", SPARSE)
def test_ties_is_the_loop(sparsify, elect, normalize):
    terms, weights = deltas(4), [0.7, 1.2, 2.0, 0.4]
    asked = {"sparsify": sparsify, "elect": elect, "normalize": normalize, "epsilon": 0.4}
    merged = merge_tiles("ties", terms, weights, rows=5, density=0.4, gamma=0.05, **asked)
    changes = sparsified(terms, sparsify, 0.4, gamma=0.05, epsilon=0.4)
    meant = elected(changes, weights, elect, normalize)
    np.testing.assert_allclose(merged.numpy(), meant, rtol=2e-6, atol=1e-6)


def test_each_term_has_its_own_density():
    terms = deltas(2)
    merged = merge_tiles("sparse", terms, sparsify="magnitude", density=(0.1, 0.9))
    first, second = (
        kept_by_magnitude(term.double().numpy(), density)
        for term, density in zip(terms, (0.1, 0.9), strict=True)
    )
    np.testing.assert_allclose(merged.numpy(), first + second, rtol=1e-6)
    assert merge_tiles("sparse", terms, sparsify="magnitude", density=(0.0, 1.0)).equal(terms[1])


def test_equal_magnitudes_all_stay():
    term = torch.tensor([[1.0, -1.0, 0.5], [1.0, 0.25, -0.5]])
    merged = merge_tiles("magnitude", [term], density=1 / 6)
    assert merged.tolist() == [[1.0, -1.0, 0.0], [1.0, 0.0, 0.0]]
    # Half precision has few magnitudes: many are equal, as in checkpoints.
    coarse = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).half().float()
    merged = merge_tiles("magnitude", [coarse], density=0.2, rows=3)
    assert (
        merged.double().numpy().tolist() == kept_by_magnitude(coarse.double().numpy(), 0.2).tolist()
    )


@pytest.mark.parametrize("name", ["ties", "dare", "dare_ties", "della", "breadcrumbs", "magnitude"])
@pytest.mark.parametrize("rescale", ["auto", "l1"])
@pytest.mark.parametrize("shape", [(9, 7), (5, 3, 2, 2), (37,), (1, 40)])
def test_tiles_make_no_difference(name, rescale, shape):
    terms = deltas(2, shape)
    whole = merge_tiles(name, terms, [0.5, 0.8], density=0.5, rescale=rescale)
    for rows in (1, 2, 4):
        assert merge_tiles(name, terms, [0.5, 0.8], rows=rows, density=0.5, rescale=rescale).equal(
            whole
        )


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["ties", "dare", "dare_ties", "della", "breadcrumbs", "magnitude"]),
    st.integers(0, 1000),
    st.floats(0.01, 1),
)
def test_no_weight_is_no_change(name, seed, density):
    change = merge_tiles(name, deltas(2, (4, 6), seed), [0.0, 0.0], density=density, seed=seed)
    assert not change.any()


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(3)), st.integers(0, 1000), st.sampled_from(["ties", "breadcrumbs_ties"])
)
def test_terms_may_change_places(order, seed, name):
    terms, weights = deltas(3, (5, 8), seed), [0.5, 1.5, 1.0]
    merged = merge_tiles(name, terms, weights, density=0.4)
    swapped = merge_tiles(name, [terms[i] for i in order], [weights[i] for i in order], density=0.4)
    torch.testing.assert_close(swapped, merged)


def test_random_methods_keep_the_mean_and_the_share():
    term = torch.ones(200, 500)
    for name, density in (("dare", 0.1), ("dare", 0.73), ("della_linear", 0.3)):
        merged = merge_tiles(name, [term], density=density)
        assert float((merged != 0).float().mean()) == pytest.approx(density, abs=0.01)
        assert float(merged.mean()) == pytest.approx(1, abs=0.03)
    plain = merge_tiles("dare", [term], density=0.1, rescale="no")
    assert float(plain.mean()) == pytest.approx(0.1, abs=0.01)


def test_masks_are_of_the_seed_the_name_and_the_term():
    term = torch.ones(40, 50)
    one = merge_tiles("dare", [term], density=0.5)
    assert merge_tiles("dare", [term], density=0.5).equal(one)
    for other in (
        merge_tiles("dare", [term], density=0.5, seed=4),
        merge_tiles("dare", [term], density=0.5, key="v"),
        merge_tiles("dare", [term, term], [0.0, 1.0], density=0.5),
    ):
        assert float((other == one).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_chattiori_divides_by_what_is_dropped():
    merged = merge_tiles("dare", [torch.ones(30, 30)], density=0.9, legacy="chattiori")
    assert merged.unique().tolist() == pytest.approx([0.0, 10.0])
