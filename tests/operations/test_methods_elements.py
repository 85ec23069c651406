"""Methods that go element by element, against loops written from their definitions, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import cosine_loop, merge_tiles, open_work

from lorakit.lora_ops.operations.methods import MERGE_METHODS, Element, choose_method

ROWS = [None, 1, 5]


def weights(count=3, shape=(12, 17), seed=0, spread=1.0):
    """The first is the base of the others."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    tuned = [base + spread * torch.randn(shape, generator=generator) for _ in range(count - 1)]
    return [base, *tuned]


def each(formula, *tensors):
    """A formula of one number from each tensor."""
    arrays = [tensor.double().numpy() for tensor in tensors]
    return np.vectorize(formula, otypes=[float])(*arrays)


def close(merged, meant, **tolerance):
    np.testing.assert_allclose(merged.numpy(), meant, **({"rtol": 3e-6, "atol": 2e-6} | tolerance))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("alpha", [0.0, 0.35, -1.0])
def test_train_difference(alpha, rows):
    a, b, c = weights()
    c[0], b[1] = b[0], a[1]

    def formula(a, b, c):
        apart = abs(b - a) + abs(b - c)
        return a + 1.8 * alpha * (abs(b - a) / apart if apart else 0) * (b - c)

    merged = merge_tiles("train_difference", [b, c], [alpha, 0], base=a, rows=rows)
    close(merged, each(formula, a, b, c))
    assert merged[:2].equal(a[:2])  # where B is C, or A, nothing was trained


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.3), (0.4, 0.5), (1.0, 1.0)])
def test_multiply_difference(alpha, beta, rows):
    a, b, c = weights()

    def formula(a, b, c):
        size = abs(a - c) ** (1 - alpha) * abs(b - c) ** alpha
        return c + math.copysign(size, (1 - beta) * a + beta * b - c)

    merged = merge_tiles("multiply_difference", [b, c], [alpha, beta], base=a, rows=rows)
    close(merged, each(formula, a, b, c))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.7, 0.3), (1.0, 0.0)])
def test_similarity(alpha, beta, rows):
    a, b, c = weights()
    a[0], b[0] = 0.0, 0.0
    a[1], b[1] = 1e-30, 3e-30  # their squares are no float32

    def formula(a, b, c):
        size = max(abs(a), abs(b))
        alike = beta * ((a * b / size**2 + 1) / 2 if size else 1)
        return (1 - alike) * (a + alpha * (b - c)) + alike * (a + alpha / 2 * (b - a))

    merged = merge_tiles("similarity", [b, c], [alpha, beta], base=a, rows=rows)
    close(merged, each(formula, a, b, c))


@pytest.mark.parametrize("rows", ROWS)
def test_limit(rows):
    value, a, b, c = weights(4)
    merged = merge_tiles("limit", [a, b, c], [1.0, 0.0, 0.5], base=value, rows=rows)
    close(
        merged, each(lambda v, a, c: min(max(v, min(a, c)), max(a, c)), value, a, c), rtol=0, atol=0
    )
    assert merge_tiles("limit", [a, b], [0.0, 0.0], base=value, rows=rows).equal(value)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("legacy", ["no", "mecha"])
def test_tensor_sum(legacy, rows):
    a, b = weights(2)
    cut = {"no": math.floor, "mecha": round}[legacy]
    for width, offset in itertools.product((0.0, 0.3, 0.55, 0.9, 1.0), (0.0, 0.2, 0.66)):
        expected = a.clone()
        if width + offset <= 1:
            inside = slice(cut(offset * 12), cut((offset + width) * 12))
            expected[inside] = b[inside]
        else:
            inside = slice(cut((offset + width - 1) * 12), cut(offset * 12))
            expected = b.clone()
            expected[inside] = a[inside]
        asked = {"offset": offset, "legacy": legacy}
        assert merge_tiles("tensor_sum", [b], [width], base=a, rows=rows, **asked).equal(expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("axis", ["tensor", "row", "column"])
def test_nuslerp(axis, rows):
    a, b = weights(2)
    if axis != "tensor":  # one direction, the opposite one, and none
        a[0], a[1], a[2] = 2 * b[0], -b[1], 0.0
    a[:, 0], a[:, 1], a[:, 2] = 2 * b[:, 0], -b[:, 1], 0.0
    merged = merge_tiles("nuslerp", [a, b], [0.6, 1.4], rows=rows, axis=axis)
    first, second = (tensor.double().numpy() for tensor in (a, b))
    pairs = {
        "tensor": [(first, second)],
        "row": list(zip(first, second, strict=True)),
        "column": list(zip(first.T, second.T, strict=True)),
    }[axis]

    def arc(x, y, t=0.7):
        sizes = np.linalg.norm(x) * np.linalg.norm(y)
        angle = math.acos(np.clip((x * y).sum() / sizes, -1, 1)) if sizes else 0.0
        if math.sin(angle) < 1e-4:
            return (1 - t) * x + t * y
        return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)

    meant = [arc(x, y) for x, y in pairs]
    meant = {"tensor": lambda: meant[0], "row": lambda: np.stack(meant)}.get(
        axis, lambda: np.stack(meant).T
    )()
    close(merged, meant, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.0])
def test_sce(density, rows):
    changes = [change - 0 for change in weights(3, seed=5)]
    for change in changes[1:]:
        change[:3] = changes[0][:3]  # elements that do not vary do not count
    users = [1.0, 0.5, 2.0]
    merged = merge_tiles("sce", changes, users, rows=rows, density=density, strength=0.8)
    stack = np.stack([change.double().numpy() for change in changes])
    if density < 1:
        variance = stack.var(0)
        variance[:3] = 0
        count = int(density * np.count_nonzero(variance))
        least = np.sort(variance, axis=None)[::-1][count - 1] if count else math.inf
        stack = stack * (variance >= least)
    squares = (stack**2).mean((1, 2))
    shares = squares / squares.sum() if squares.sum() else np.ones(3) / 3
    meant = np.zeros(stack.shape[1:])
    for place in np.ndindex(meant.shape):
        values = stack[(slice(None), *place)]
        sign = 1 if values.sum() >= 0 else -1
        agreeing = [i for i in range(3) if values[i] * sign > 0]
        if agreeing:
            parts = [shares[i] * users[i] for i in agreeing]
            meant[place] = 0.8 * np.dot(parts, values[agreeing]) / sum(parts)
    close(merged, meant)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("boost", [0.0, 0.5])
def test_ram(boost, rows):
    changes = weights(3, seed=2)
    generator = torch.Generator().manual_seed(9)
    changes = [change * (torch.rand(12, 17, generator=generator) < 0.4) for change in changes]
    users = [1.0, 0.5, -2.0]
    asked = {"boost": boost, "limit": 0.7, "epsilon": 0.05, "strength": 2}
    merged = merge_tiles("ram", changes, users, rows=rows, **asked)
    stack = np.stack([change.double().numpy() for change in changes])
    there = np.abs(stack) > 0.05
    own, shared = (there & (there.sum(0) == 1)), (there & (there.sum(0) > 1))
    ratio = shared.sum((1, 2)) / np.maximum(own.sum((1, 2)), 1)
    lift = 1 + boost * np.minimum(ratio, 0.7)
    meant = np.zeros((12, 17))
    for index in range(3):
        meant += users[index] * stack[index] * own[index] * lift[index]
        meant += users[index] * stack[index] * shared[index] / np.maximum(there.sum(0), 1)
    close(merged, 2 * meant)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [(12, 17), (60,)])
def test_arcee_fusion(shape, rows):
    a, b = weights(2, shape, spread=0.3)
    first, second = (tensor.double().numpy().reshape(-1, shape[-1]) for tensor in (a, b))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-8 for x in (second, first))
    importance = np.abs(second - first) * (p * np.log(p / q)).sum(-1, keepdims=True)
    order = np.sort(importance, axis=None)
    low, median, high = (order[int(q * (len(order) - 1))] for q in (0.25, 0.5, 0.75))
    meant = np.where(importance >= median + 1.5 * (high - low), second, first)
    assert 0 < (meant == second).mean() < 0.3
    merged = merge_tiles("arcee_fusion", [b], base=a, rows=rows)
    close(merged, meant.reshape(shape), rtol=0, atol=0)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("legacy", ["no", "mecha"])
@pytest.mark.parametrize("kind", ["a", "b"])
def test_cosines(kind, legacy, rows):
    model = [
        weights(2, shape, seed, 0.5) for seed, shape in enumerate([(12, 17), (20,), (5, 4, 3, 3)])
    ]
    name = f"cosine_{kind}"
    survey = choose_method(name, 1, True, {"legacy": legacy}).survey
    assert (survey is None) == (legacy == "mecha")
    bounds = None
    if survey is not None:
        values = [open_work(name, [b], base=a, rows=rows)[0].values() for a, b in model]
        bounds = survey(torch.cat(values))
        assert survey(torch.cat(values[::-1])).equal(bounds)
        known = torch.cat(values).numpy()
        known = known[known >= np.percentile(known, 1, method="midpoint")]
        known = known[known <= np.percentile(known, 99, method="midpoint")]
        assert bounds.tolist() == [known.min(), known.max()]
    for a, b in model:
        merged = merge_tiles(name, [b], [0.2], base=a, rows=rows, survey=bounds, legacy=legacy)
        meant = cosine_loop(a, b, 0.2, kind, legacy, None if bounds is None else bounds.tolist())
        close(merged, meant.reshape(a.shape))


@pytest.mark.parametrize("shape", [(6, 9), (11,), (3, 4, 3, 3), (2, 2)])
def test_smooth_add_is_scipys(shape):
    ndimage = pytest.importorskip("scipy.ndimage", reason="needs SciPy")
    a, b, c = weights(3, shape)
    blurred = ndimage.gaussian_filter(ndimage.median_filter((b - c).numpy(), size=3), sigma=1)
    merged = merge_tiles("smooth_add", [b, c], [0.7, 0], base=a)
    close(merged, a.numpy() + 0.7 * blurred, rtol=1e-5, atol=1e-6)


ELEMENTS = [
    name
    for name, method in MERGE_METHODS.items()
    if isinstance(method.how, Element) and not method.how.whole
]


@pytest.mark.parametrize("name", ELEMENTS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6))
def test_tiles_make_no_difference(name, seed, rows):
    method = MERGE_METHODS[name]
    base, *terms = weights(1 + max(2, method.terms[0]), (6, 40), seed)
    if method.terms[1]:
        terms = terms[: method.terms[1]]
    shares = [0.3, 0.6][: len(terms)]
    base = base if method.of == "weights" else None
    survey = torch.tensor([0.1, 0.9], dtype=torch.float64)
    whole, parts = (
        merge_tiles(name, terms, shares, base=base, rows=r, survey=survey) for r in (None, rows)
    )
    assert parts.equal(whole)
    assert bool(whole.isfinite().all())


@pytest.mark.parametrize(
    "name",
    ["ties", "sparse", "ram", "sce", "train_difference", "limit", "arcee_fusion", "tensor_sum"],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_no_weight_gives_the_base_bit_for_bit(name, seed):
    method = MERGE_METHODS[name]
    base, *terms = weights(1 + max(2, method.terms[0]), (6, 10), seed)
    if method.terms[1]:
        terms = terms[: method.terms[1]]
    none = [0.0] * len(terms)
    if method.of == "changes":
        assert not merge_tiles(name, terms, none).any()
    else:
        assert merge_tiles(name, terms, none, base=base).equal(base)
