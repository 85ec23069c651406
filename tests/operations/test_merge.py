"""Merges of checkpoints against float64, what is copied, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baking import distance_to_nearest, is_rounded_once, randn, thin
from bits import assert_equal
from checkpoints import SD1, grid

from lorakit.lora_ops import DictSource, Ingredient, bake, extract
from lorakit.lora_ops.errors import ArgumentError, MismatchError, NonFiniteError, WeightShapeError
from lorakit.lora_ops.operations.merge.merge import MergedSource, merge
from lorakit.lora_ops.operations.merge.plan import plan_merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.operations.methods import coefficients
from lorakit.lora_ops.operations.weights import terms

MODELS = {name: grid(SD1, torch.float16, seed=seed) for seed, name in enumerate("ABC")}
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABC"}


def sources(models=MODELS):
    return {name: DictSource(tensors, name=name) for name, tensors in models.items()}


def run(line: str, models=MODELS, **options):
    recipe = parse_line(line)
    return merge(recipe, {k: v for k, v in sources(models).items() if k in recipe.files}, **options)


def is_merged(key: str) -> bool:
    return not key.startswith(("first_stage_model", "betas"))


@pytest.mark.parametrize(
    ("line", "weights"),
    [
        ("A + 0.3*(B - A)", (0.7, 0.3, 0)),
        ("A:0.6 B:0.2", (0.75, 0.25, 0)),
        ("A + 0.35*(B - C)", (1, 0.35, -0.35)),
        ("A:0.2 B:0.3 C:0.5", (0.2, 0.3, 0.5)),
        ("A + 0.5*(B - A) - 0.25*(C - A)", (0.75, 0.5, -0.25)),
    ],
)
def test_linear_merges_are_the_float64_sum(line, weights):
    out, report = run(line)
    assert list(out) == list(MODELS["A"])
    for key, tensor in MODELS["A"].items():
        if is_merged(key):
            parts = zip(weights, MODELS.values(), strict=True)
            exact = sum(w * model[key].double() for w, model in parts)
            assert is_rounded_once(out[key], exact)
        else:
            assert_equal(out[key], tensor)
    assert report.merged == sum(map(is_merged, MODELS["A"]))
    found = next(one for one in report.layers if KEY.startswith(f"model.{one.target}"))
    change = sum(w * m[KEY].double() for w, m in zip(weights, MODELS.values(), strict=True))
    change = change - MODELS["A"][KEY].double()
    assert found.norm == pytest.approx(float(change.norm()), rel=1e-4)
    assert found.size == pytest.approx(
        float(change.norm() / MODELS["A"][KEY].double().norm()), rel=1e-4
    )
    moved = out[KEY].double() - MODELS["A"][KEY].double()
    assert found.gain == pytest.approx(float((moved * change).sum() / change.norm() ** 2), abs=1e-3)


@pytest.mark.parametrize("line", ["A:1", "A:3", "A + 1*(B - A)", "A:0 B:2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_model_at_weight_one_is_that_model(line, dtype):
    models = {
        k: {n: t.to(dtype) for n, t in grid(SD1, torch.float32, seed=i).items()}
        for i, k in enumerate("AB")
    }
    if line.startswith("A:") and "B" not in line:
        with pytest.raises(MismatchError, match="nothing to merge"):
            run(line, models)
        return
    out, _ = run(line, models)
    for key, tensor in models["B"].items():
        assert_equal(out[key], tensor if is_merged(key) else models["A"][key])


@pytest.mark.parametrize("method", ["slerp", "karcher", "geometric_median", "energy"])
@pytest.mark.parametrize("base", ["", "C"])
def test_span_methods_take_coefficients_from_inner_products(method, base):
    step = Step("m", (Term("A", weight=0.8), Term("B", weight=0.5)), method, base)
    out, _ = merge(Recipe((step,), FILES), sources())
    start = MODELS[base][KEY].double() if base else 0
    parts = [MODELS[name][KEY].double() - start for name in "AB"]
    gram = torch.stack([torch.stack([(a * b).sum() for b in parts]) for a in parts])
    found = coefficients(method, gram, torch.tensor([0.8, 0.5], dtype=torch.float64))
    exact = start + found[0] * parts[0] + found[1] * parts[1]
    error = (out[KEY].double() - exact).abs()
    assert (error <= distance_to_nearest(exact, torch.float16) + 1e-5).all()


def test_steps_fuse_and_are_rounded_once():
    steps = (
        Step("one", (Term("B", weight=0.3),), "lerp", "A"),
        Step("two", (Term("B", "C", weight=0.2),), "sum", "one"),
    )
    out, _ = merge(Recipe(steps, FILES), sources())
    a, b, c = (model[KEY].double() for model in MODELS.values())
    exact = 0.7 * a + 0.3 * b + 0.2 * (b - c)
    assert is_rounded_once(out[KEY], exact)
    # The faulty twin: one after the other.
    first, _ = run("A + 0.3*(B - A)")
    second, _ = run("A + 0.2*(B - C)", MODELS | {"A": first})
    assert not is_rounded_once(second[KEY], exact)


def test_weights_by_block_and_component():
    term = Term("B", weight=0.5, blocks="IN01=0.5", where=("te=0",))
    out, report = merge(Recipe((Step("m", (term,), "lerp", "A"),), FILES), sources())
    a, b = MODELS["A"], MODELS["B"]
    for key, tensor in a.items():
        if key.startswith("cond_stage"):
            assert_equal(out[key], tensor)
        elif is_merged(key):
            w = 0.25 if "input_blocks.1." in key else 0.5
            assert is_rounded_once(out[key], (1 - w) * tensor.double() + w * b[key].double())
    assert report.blocks["IN01"] < report.blocks["BASE" if "BASE" in report.blocks else "IN00"]


def test_tiles_of_one_row_and_one_thread_give_the_same(monkeypatch):
    whole, _ = run("A + 0.35*(B - C)")
    monkeypatch.setattr(terms, "TILE", 1)
    rows, _ = run("A + 0.35*(B - C)")
    monkeypatch.undo()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, _ = run("A + 0.35*(B - C)")
    torch.set_num_threads(threads)
    for key, tensor in whole.items():
        assert_equal(rows[key], tensor)
        assert_equal(one[key], tensor)


def test_a_merge_is_a_checkpoint():
    recipe = parse_line("A + 0.3*(B - A)")
    made = MergedSource(plan_merge(recipe, {k: sources()[k] for k in "AB"}))
    out, _ = run("A + 0.3*(B - A)")
    for key in made.keys():  # noqa: SIM118
        assert_equal(made.tensor(key), out[key])
    _, report = extract(sources()["A"], made, 4)
    _, other = extract(sources()["A"], DictSource(out), 4)
    assert report.error == other.error


ELEMENTS = {
    "ties": (2, {"density": 0.5}),
    "sparse": (2, {"sparsify": "dare", "density": 0.5}),
    "sce": (2, {}),
    "ram": (2, {}),
    "train_difference": (2, {}),
    "smooth_add": (2, {}),
    "tensor_sum": (1, {}),
    "arcee_fusion": (1, {}),
}


@pytest.mark.parametrize("method", ELEMENTS)
def test_element_methods_are_the_same_in_tiles_and_whole(method, monkeypatch):
    count, parameters = ELEMENTS[method]
    terms_ = tuple(Term(name, weight=0.4) for name in "BC"[:count])
    recipe = Recipe((Step("m", terms_, method, "A", seed=3, parameters=parameters),), FILES)
    whole, report = merge(recipe, sources())
    assert not torch.equal(whole[KEY], MODELS["A"][KEY])
    assert len(report.layers) > 10
    monkeypatch.setattr(terms, "TILE", 200)
    tiles, _ = merge(recipe, sources())
    for key, tensor in whole.items():
        assert torch.allclose(tiles[key].float(), tensor.float(), atol=2e-4)


def test_ties_is_mergekits_sum_of_agreeing_changes():
    """From the definition, where all stays: elect by the sum, mean of those that agree."""
    terms_ = (Term("B", weight=1.0), Term("C", weight=1.0))
    step = Step("m", terms_, "ties", "A", parameters={"density": 1.0})
    out, _ = merge(Recipe((step,), FILES), sources())
    a, b, c = (model[KEY].double() for model in MODELS.values())
    deltas = torch.stack([b - a, c - a])
    agree = deltas.sign() == deltas.sum(0).sign()
    mean = (deltas * agree).sum(0) / agree.sum(0).clamp(min=1)
    assert is_rounded_once(out[KEY], a + mean)


def test_an_adapter_is_a_term_and_is_what_bake_bakes():
    name = KEY.removesuffix(".weight").removeprefix("model.")
    lora = DictSource(thin(name, MODELS["A"][KEY].shape), name="lora")
    step = Step("m", (Term("L", weight=0.7),), "sum", "A")
    out, _ = merge(
        Recipe((step,), {**FILES, "L": RecipeFile("L.safetensors")}), sources() | {"L": lora}
    )
    baked, _ = bake(sources()["A"], [Ingredient(lora, 0.7)])
    for key, tensor in baked.items():
        assert_equal(out[key], tensor)


# --- What the models do not have in common --------------------------------------------------------


def with_models(**changes):
    return {name: {**MODELS[name], **changes.get(name, {})} for name in "AB"}


def test_what_only_one_has_is_kept_or_left_out_and_counted():
    models = with_models(B={"model.diffusion_model.extra.weight": randn(3, 3).half()})
    del models["B"][KEY]
    out, report = run("A:0.5 B:0.5", models)
    assert_equal(out[KEY], MODELS["A"][KEY])
    assert report.only_base == (KEY.removeprefix("model."),)
    assert report.only_others == {"B": ("diffusion_model.extra.weight",)}
    assert "only in A" in " ".join(report.notes)
    with pytest.raises(MismatchError, match="not all models have all parameters"):
        run("A:0.5 B:0.5", models, strict=True)


def test_an_inpainting_base_keeps_its_own_channels():
    key = "model.diffusion_model.input_blocks.0.0.weight"
    out_channels, channels, *kernel = MODELS["A"][key].shape
    wide = randn(out_channels, channels + 5, *kernel, seed=9).half()
    out, _ = run("A + 0.3*(B - A)", with_models(A={key: wide}))
    exact = wide.double()
    exact[:, :channels] = 0.7 * exact[:, :channels] + 0.3 * MODELS["B"][key].double()
    assert is_rounded_once(out[key], exact)
    assert_equal(out[key][:, channels:], wide[:, channels:])
    with pytest.raises(WeightShapeError, match="give the wider one as base"):
        run("A + 0.3*(B - A)", with_models(B={key: wide}))


def test_another_shape_is_refused():
    with pytest.raises(WeightShapeError, match="models of different kinds"):
        run("A:0.5 B:0.5", with_models(B={KEY: randn(8, 8).half()}))


def test_nan_names_the_file_and_the_key_and_can_be_passed_over():
    broken = MODELS["B"][KEY].clone()
    broken[0, 0] = float("nan")
    models = with_models(B={KEY: broken})
    with pytest.raises(NonFiniteError, match=f"`{KEY}` of B holds 1 NaN"):
        run("A:0.5 B:0.5", models)
    out, report = run("A:0.5 B:0.5", models, allow_nonfinite=True)
    assert_equal(out[KEY], MODELS["A"][KEY])
    assert "not finite in some model" in " ".join(report.notes)


def test_averages_are_dropped_integers_copied_and_positions_repaired():
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    ema = {"model_ema.decay": torch.tensor(0.9)}
    models = with_models(A={ids: torch.arange(7).float() + 0.1, **ema}, B={ids: torch.zeros(7)})
    out, report = run("A:0.5 B:0.5", models)
    assert_equal(out[ids], torch.arange(7))
    assert "model_ema.decay" not in out
    assert {"repaired", "EMA"} <= set(
        " ".join(report.notes).replace("(", "").replace(")", "").split()
    )


def test_flags_of_v_prediction_are_the_bases_or_as_asked():
    models = with_models(B={"v_pred": torch.empty(0)})
    recipe = parse_line("A:0.5 B:0.5")
    out, report = merge(recipe, sources(models))
    assert "v_pred" not in out
    assert "does not agree" in " ".join(report.notes)
    on = replace(recipe, output=replace(recipe.output, keep="on"))
    assert {"v_pred", "ztsnr"} <= merge(on, sources(models))[0].keys()


def test_a_vae_is_taken_where_it_is_asked_for():
    recipe = replace(parse_line("A:0.5 B:0.5"), files=FILES, parts={"vae": "C"})
    out, _ = merge(recipe, sources())
    for key in out:
        if key.startswith("first_stage_model"):
            assert_equal(out[key], MODELS["C"][key])
    assert not torch.equal(out[KEY], MODELS["A"][KEY])


def test_the_same_model_twice_changes_nothing():
    out, report = run("A:0.5 B:0.5", {"A": MODELS["A"], "B": MODELS["A"]})
    for key, tensor in MODELS["A"].items():
        assert_equal(out[key], tensor)
    assert any(note.startswith("changes nothing") for note in report.notes)


def test_a_change_alone_is_no_checkpoint():
    step = Step("m", (Term("A", "B"),), "sum")
    with pytest.raises(ArgumentError, match="gives a change, not a model"):
        merge(Recipe((step,), FILES), sources())
