"""Methods that look at the whole model before they treat one weight, through the engine."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from baking import randn
from bits import assert_equal
from merging import cosine_loop, supermergers_range
from namings import both
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.models.architectures import architecture_named, parameters
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.merge import MergedSource, merge
from lorakit.lora_ops.operations.merge.plan import plan_merge
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.operations.weights import terms

SHAPES = {"a.weight": (40, 30), "a.bias": (40,), "b.weight": (12, 6, 3, 3), "norm.weight": (50,)}
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABC"}


def model(seed):
    return {
        f"diffusion_model.blocks.0.{name}": randn(*shape, seed=seed * 9 + at)
        for at, (name, shape) in enumerate(SHAPES.items())
    }


A = model(0)
B = {key: one + 0.6 * randn(*one.shape, seed=99 + at) for at, (key, one) in enumerate(A.items())}
MODELS = {"A": A, "B": B, "C": model(2)}


def sources(models=MODELS):
    return {name: DictSource(tensors, name=name) for name, tensors in models.items()}


def recipe(kind, alpha=0.2, where=(), legacy=""):
    term = Term("B", weight=alpha, where=where)
    return Recipe((Step("m", (term,), f"cosine_{kind}", "A", legacy=legacy),), FILES)


def likenesses(kind):
    """supermerger's, over all weights: cosines of columns, for B with that of all in the mean."""
    found = []
    for key, one in A.items():
        a, b = (t.double().numpy().reshape(len(t), -1) for t in (one, B[key]))
        columns = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        whole = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        found.append(columns if kind == "a" else (columns + whole) / 2)
    return found


@pytest.mark.parametrize("legacy", ["", "supermerger"])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["a", "b"])
def test_cosines_are_supermergers_over_the_whole_model(kind, alpha, legacy):
    """Also where alpha is 0: that is the most of A's structure, and not A."""
    bounds = supermergers_range(likenesses(kind))
    out, report = merge(recipe(kind, alpha, legacy=legacy), sources())
    for key, one in A.items():
        meant = cosine_loop(one, B[key], alpha, kind, "no", bounds).reshape(one.shape)
        np.testing.assert_allclose(out[key].numpy(), meant, rtol=1e-4, atol=1e-5)
        # The faulty twin: each weight in its own range.
        own = supermergers_range([likenesses(kind)[list(A).index(key)]])
        if key.endswith("a.weight"):
            alone = cosine_loop(one, B[key], alpha, kind, "no", own).reshape(one.shape)
            assert not np.allclose(meant, alone, rtol=1e-3)
    assert len(report.layers) == len(A)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_files_sources_tiles_and_copies_of_the_plan_give_the_same(kind, monkeypatch, tmp_path):
    out, _ = merge(recipe(kind), sources())
    plan = plan_merge(recipe(kind), {k: sources()[k] for k in "AB"})
    assert plan.passes == 3  # the survey's, the weight's own, and the last
    made = MergedSource(pickle.loads(pickle.dumps(plan)))
    for key in reversed(list(out)):
        assert_equal(made.tensor(key), out[key])
    for name in "AB":
        save_file(MODELS[name], tmp_path / f"{name}.safetensors")
    seen = []
    with open_source(tmp_path / "A.safetensors") as a, open_source(tmp_path / "B.safetensors") as b:
        planned = plan_merge_file(
            recipe(kind), {"A": a, "B": b}, output=tmp_path / "out.safetensors"
        )
        merge_file(planned, tmp_path / "out.safetensors", progress=lambda *one: seen.append(one))
    assert len(seen) == 2 * len(A)
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        assert_equal(tensor, out[key])
    monkeypatch.setattr(terms, "TILE", 1)
    rows, _ = merge(recipe(kind), sources())
    for key, tensor in out.items():
        assert torch.allclose(rows[key], tensor, rtol=1e-6)


def test_a_survey_of_a_step_on_a_step():
    """It sees what the first step makes, not the file."""
    first = Step("mixed", (Term("C", weight=0.5),), "lerp", "A")
    last = Step("out", (Term("B", weight=0.1),), "cosine_b", "mixed")
    out, _ = merge(Recipe((first, last), FILES), sources())
    mixed, _ = merge(Recipe((first,), FILES), sources())
    expected, _ = merge(recipe("b", 0.1), sources(MODELS | {"A": mixed}))
    for key, tensor in expected.items():
        torch.testing.assert_close(out[key], tensor, rtol=1e-5, atol=1e-6)
    plan = plan_merge(Recipe((last,), FILES), sources() | {"mixed": sources()["A"]})
    assert plan.passes == 3


def test_the_naming_makes_no_difference():
    flux = architecture_named("flux")
    models = {name: both(flux, seed) for seed, name in enumerate("AB")}

    def natively(tensors):
        source = DictSource(tensors)
        return {name: read_parameter(source, one) for name, one in parameters(source).items()}

    found = [
        natively(merge(recipe("a"), sources({k: one[at] for k, one in models.items()}))[0])
        for at in (0, 1)
    ]
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-6, atol=1e-6)
    assert not torch.equal(next(iter(found[0].values())), next(iter(models["A"][0].values())))


def test_passes_count_what_methods_read():
    def passes(*steps):
        return plan_merge(Recipe(steps, FILES), sources()).passes

    both_terms = (Term("B", weight=0.5), Term("C", weight=0.5))
    linear = Step("one", (Term("B", weight=0.5),), "lerp", "A")
    assert passes(linear) == 1
    assert passes(Step("one", both_terms, "slerp", "A")) == 2
    assert passes(Step("one", both_terms, "sparse", "A", parameters={"sparsify": "dare"})) == 1
    assert passes(Step("one", both_terms, "ties", "A")) == 3
    assert passes(Step("one", both_terms, "ties", "A"), Step("two", both_terms, "ties", "one")) == 5
    assert passes(linear, Step("two", (Term("C", weight=0.5),), "cosine_a", "one")) == 3
