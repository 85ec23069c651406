"""Every method through the engine: tiles, threads, files, and other programs on the same models."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from baking import adapter, randn, thin
from bits import assert_equal

from lorakit.lora_ops import DictSource, bake
from lorakit.lora_ops.linalg.random_bits import random_bits, random_key
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.operations.methods import ALIASES, MERGE_METHODS, Linear, Span
from lorakit.lora_ops.operations.weights import terms
from lorakit.lora_ops.run.devices import Placement

SHAPES = {"a.weight": (48, 30), "a.bias": (48,), "b.weight": (20, 6, 3, 3), "norm.weight": (64,)}
NAMES = [f"diffusion_model.blocks.0.{name}" for name in SHAPES]
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABCD"}


def model(seed, dtype=torch.float32, spread=0.5):
    """Models that have half of their numbers in common, as fine-tunes have."""
    return {
        name: (
            randn(*shape, seed=at) + (spread * randn(*shape, seed=91 * seed + at) if seed else 0)
        ).to(dtype)
        for at, (name, shape) in enumerate(zip(NAMES, SHAPES.values(), strict=True))
    }


MODELS = {name: model(seed) for seed, name in enumerate("ABCD")}


def sources(models=MODELS):
    return {name: DictSource(tensors, name=name) for name, tensors in models.items()}


def step(method, weights=(0.7, 0.4, 0.5), **parameters):
    name = ALIASES.get(method, (method,))[0]
    least, most = MERGE_METHODS[name].terms
    count = min(most or 3, max(least, 3))
    terms_ = tuple(Term(one, weight=w) for one, w in zip("BCD", weights[:count], strict=False))
    return Step("m", terms_, method, "A", seed=3, parameters=parameters)


def run(one, models=MODELS):
    return merge(Recipe((one,), FILES), sources(models))[0]


ALL = [
    *((name, {}) for name, method in MERGE_METHODS.items() if not isinstance(method.how, Linear)),
    *((name, {}) for name in ("dare", "dare_ties", "della", "breadcrumbs")),
    *(("nuslerp", {"axis": axis}) for axis in ("row", "column")),
    ("ram", {"boost": 0.3}),
    ("ties", {"rescale": "l1"}),
    *((name, {"legacy": "mecha"}) for name in ("cosine_a", "cosine_b")),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "parameters"), ALL)
def test_rows_threads_and_order_make_no_difference(method, parameters, dtype, monkeypatch):
    models = {name: model(seed, dtype) for seed, name in enumerate("ABCD")}
    one = step(method, **parameters)
    is_span = isinstance(MERGE_METHODS[ALIASES.get(method, (method,))[0]].how, Span)
    whole = run(one, models)
    assert any(not torch.equal(whole[name], models["A"][name]) for name in NAMES)
    for tile, workers in ((1, 1), (100, 3)):
        monkeypatch.setattr(terms, "TILE", tile)
        placement = Placement(torch.device("cpu"), workers)
        monkeypatch.setattr(
            "lorakit.lora_ops.operations.merge.merge.place", lambda _, found=placement: found
        )
        for name, tensor in run(one, models).items():
            if (
                is_span and dtype == torch.float32
            ):  # products of a Gram matrix are summed in another order
                torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-7)
            else:
                assert_equal(tensor, whole[name])


# --- Others ---------------------------------------------------------------------------------------


def mergekit(name, tensors, **parameters):
    registry = pytest.importorskip("mergekit.merge_methods.registry", reason="needs mergekit")
    from mergekit.merge_methods.base import PerInputValues, TensorGroup

    group = TensorGroup.from_tensors(tensors, base_index=0)
    given = {
        key: PerInputValues(dict(enumerate(value, 1))) if isinstance(value, list) else value
        for key, value in parameters.items()
    }
    return registry.get(name).merge_group(group, **given)


def our_bernoulli(name):
    """torch.bernoulli draws, call by call, what ours draws for the terms of a weight."""
    calls = iter(range(100))

    def bernoulli(probabilities, **_):
        bits = random_bits(random_key(3, name, next(calls)), 0, probabilities.numel())
        bits = bits.view(probabilities.shape).float()
        return (bits + 32768 < (probabilities * 65536).ceil()).to(probabilities)

    return bernoulli


WEIGHTS = [0.7, 0.4, 0.5]
DENSE = {"weight": WEIGHTS, "density": [0.4] * 3, "int8_mask": False, "lambda": 0.9}
OURS = {"density": 0.4, "strength": 0.9, "legacy": "mergekit"}
MERGEKIT = {
    "task_arithmetic": ({"strength": 0.9}, {"weight": WEIGHTS, "lambda": 0.9, "normalize": False, "int8_mask": False}),
    "ties": (OURS, DENSE | {"normalize": True, "rescale": False}),
    "dare_linear": (OURS, DENSE | {"normalize": False, "rescale": True}),
    "dare_ties": (OURS, DENSE | {"normalize": False, "rescale": True}),
    "della": (OURS | {"epsilon": 0.15}, DENSE | {"normalize": True, "rescale": True, "epsilon": [0.15] * 3}),
    "breadcrumbs": (OURS | {"gamma": 0.05}, DENSE | {"normalize": False, "rescale": False, "gamma": [0.05] * 3}),
    "sce": ({"density": 0.5}, {"select_topk": 0.5, "int8_mask": False}),
    "arcee_fusion": ({}, {}),
    "model_stock": ({}, {"filter_wise": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGEKIT)
def test_mergekit_on_the_same_models(name, monkeypatch):
    """Matrices alone: what it does with vectors is another question (a row of their own in DELLA)."""
    ours, theirs = MERGEKIT[name]
    weights = (1.0, 1.0, 1.0) if name in ("sce", "model_stock", "arcee_fusion") else WEIGHTS
    out = run(step(name, weights, **ours))
    for key in NAMES:
        if MODELS["A"][key].ndim != 2:
            continue
        monkeypatch.setattr(torch, "bernoulli", our_bernoulli(key))
        count = 2 if name == "arcee_fusion" else 4
        tensors = [MODELS[one][key].clone() for one in "ABCD"[:count]]
        expected = mergekit(name, tensors, **theirs)
        torch.testing.assert_close(out[key], expected, rtol=1e-4, atol=2e-5)


def mecha(module, name):
    package = "sd_mecha.extensions.builtin.merge_methods"
    found = pytest.importorskip(f"{package}.{module}", reason="needs sd-mecha")
    return getattr(found, name).__wrapped__


MECHA = {
    "cosine_a": (step("cosine_a", (0.3,), legacy="mecha"), "cosine", "add_cosine_a", {"alpha": 0.3}),
    "cosine_b": (step("cosine_b", (0.3,), legacy="mecha"), "cosine", "add_cosine_b", {"alpha": 0.3}),
    "tensor_sum": (step("tensor_sum", (0.3,), offset=0.5, legacy="mecha"), "slicing", "tensor_sum", {"width": 0.3, "offset": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", MECHA)
def test_sd_mecha_on_the_same_models(name):
    one, module, method, parameters = MECHA[name]
    function = mecha(module, method)
    out = run(one)
    for key in NAMES:
        expected = function(*(MODELS[of][key].clone() for of in "AB"), **parameters)
        torch.testing.assert_close(out[key], expected, rtol=1e-5, atol=1e-5)


# --- Identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64]
)
@pytest.mark.parametrize(
    "one",
    [
        Step("m", (Term("B"),), "lerp", "A"),
        Step("m", (Term("A", weight=0.0), Term("B")), "average"),
        Step("m", (Term("B"),), "sum", "A"),
    ],
    ids=lambda one: f"{one.method}-{one.base}",
)
def test_one_model_at_weight_one_is_that_model_byte_for_byte(one, dtype):
    models = {name: model(seed, dtype) for seed, name in enumerate("AB")}
    out = run(one, models)
    for key, tensor in models["B"].items():
        assert_equal(out[key], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bake_then_unbake_and_a_merge_of_the_same(dtype):
    """A LoRA added by a step and taken away by the next is the base; so is unbake after bake."""
    name = NAMES[0].removesuffix(".weight")
    base = {key: one.to(dtype) for key, one in MODELS["A"].items()}
    lora = thin(name, SHAPES["a.weight"])
    baked, _ = bake(DictSource(base), [adapter(lora, 0.8)])
    back, _ = bake(DictSource(baked), [adapter(lora, 0.8)], sign=-1)
    opened = {"A": DictSource(base, name="A"), "L": DictSource(lora, name="L")}
    files = FILES | {"L": RecipeFile("L.safetensors")}
    merged = partial(merge, sources=opened)
    add = Step("add", (Term("L", weight=0.8),), "sum", "A")
    take = Step("take", (Term("L", weight=-0.8),), "sum", "add")
    assert_equal(merged(Recipe((add,), files))[0][NAMES[0]], baked[NAMES[0]])
    again, report = merged(Recipe((add, take), files))
    for key, tensor in base.items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(again[key], tensor, rtol=1e-6, atol=1e-6)
    assert not torch.equal(baked[NAMES[0]], base[NAMES[0]])
    assert all(layer.size < 1e-6 for layer in report.layers)


def test_how_much_of_a_large_weight_was_measured_is_said():
    """A sample is near the whole, and is called one; a small weight is measured whole."""
    key = "diffusion_model.blocks.0.large.weight"
    models = {
        name: {**MODELS[name], key: randn(1024, 1024, seed=at).half()}
        for at, name in enumerate("AB")
    }
    _, report = merge(Recipe((step("lerp", (0.3,)),), FILES), sources(models))
    layers = {f"{layer.target}.weight": layer for layer in report.layers}
    assert layers[NAMES[0]].measured == 1
    large = layers[key]
    assert large.measured == pytest.approx(1 / 8, abs=0.01)
    a, b = (models[name][key].double() for name in "AB")
    assert large.size == pytest.approx(float((0.3 * (b - a)).norm() / a.norm()), rel=0.02)
    counts = {
        name: layer.measured * models["A"][name].numel()
        for name, layer in layers.items()
        if name in models["A"]
    }
    biases = sum(models["A"][name].numel() for name in NAMES if name.endswith("bias"))
    total = sum(one.numel() for one in models["A"].values())
    assert report.measured == pytest.approx((sum(counts.values()) + biases) / total)
    assert report.to_dict()["measured"] == report.measured < 0.2
