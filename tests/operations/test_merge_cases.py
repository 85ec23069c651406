"""What goes wrong in merges elsewhere, case by case, and what is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baking import FP8, is_rounded_once, randn
from bits import assert_equal
from checkpoints import FLUX, OPENCLIP, SD1, grid

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.errors import (
    ArgumentError,
    MismatchError,
    NonFiniteError,
    QuantisedError,
    WeightShapeError,
)
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.ancestry import Parent, merged_metadata
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Output, Recipe, RecipeFile, Step, Term
from lorakit.lora_ops.run.inputs import Input

MODELS = {name: grid(SD1, torch.float16, seed=seed) for seed, name in enumerate("ABC")}
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABC"}


def run(line, models=MODELS, output=None, parts=None, **options):
    recipe = parse_line(line) if isinstance(line, str) else Recipe((line,), FILES)
    recipe = replace(recipe, output=output or Output(), parts=parts or {})
    opened = {name: DictSource(tensors, name=name) for name, tensors in models.items()}
    files = {*recipe.files, *recipe.parts.values()}
    return merge(recipe, {k: v for k, v in opened.items() if k in files}, **options)


def altered(**changes):
    """The models with some tensors replaced, added, or with None taken out."""
    found = {name: {**one, **changes.get(name, {})} for name, one in MODELS.items()}
    return {n: {k: t for k, t in one.items() if t is not None} for n, one in found.items()}


# --- Numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_what_is_not_finite_names_the_file_and_the_key(name, number):
    broken = MODELS[name][KEY].clone()
    broken[3, 1] = number
    models = altered(**{name: {KEY: broken}})
    what = "1 NaN and 0" if number != number else "0 NaN and 1"
    with pytest.raises(NonFiniteError, match=f"`{KEY}` of {name} holds {what}"):
        run("A + 0.5*(B - C)", models)
    out, report = run("A + 0.5*(B - C)", models, allow_nonfinite=True)
    assert_equal(out[KEY], models["A"][KEY])
    assert [skip.target for skip in report.skips if "not finite" in skip.reason]


def test_a_sum_that_does_not_fit_is_an_error_with_a_way_out():
    models = altered(B={KEY: torch.full_like(MODELS["B"][KEY], 60000)})
    with pytest.raises(NonFiniteError, match=r"do not fit float16.*bf16"):
        run("A + 2*(B - C)", models)
    out, _ = run("A + 2*(B - C)", models, Output({"all": "bf16"}))
    assert bool(out[KEY].isfinite().all())


# --- What the models do not have in common --------------------------------------------------------


def test_a_weight_that_one_of_a_difference_lacks_stays_the_bases():
    models = altered(C={KEY: None})
    for step in (
        "A + 0.5*(B - C)",
        Step("m", (Term("B", weight=0.5), Term("C")), "add_difference", "A"),
        Step("m", (Term("B", weight=0.5), Term("C")), "train_difference", "A"),
    ):
        out, report = run(step, models)
        assert_equal(out[KEY], MODELS["A"][KEY])
        assert not torch.equal(out[FIRST], MODELS["A"][FIRST])
        assert not report.only_base  # B has it


def test_what_only_another_has_is_left_out_and_an_error_if_asked():
    models = altered(B={"model.diffusion_model.extra.weight": randn(3, 3).half()})
    out, report = run("A:0.5 B:0.5", models)
    assert list(out) == list(MODELS["A"])
    assert report.only_others["B"] == ("diffusion_model.extra.weight",)
    with pytest.raises(MismatchError, match=r"the first `diffusion_model\.extra\.weight`"):
        run("A:0.5 B:0.5", models, strict=True)


@pytest.mark.parametrize(
    "key", [KEY, "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
)
def test_other_shapes_are_refused_vocabularies_too(key):
    wider = torch.cat([MODELS["B"][key], MODELS["B"][key][:2]])
    with pytest.raises(WeightShapeError, match="models of different kinds"):
        run("A:0.5 B:0.5", altered(B={key: wider}))


def test_a_change_is_carried_to_an_inpainting_model():
    """inpainting + (other - base): what the change lacks is no change there."""
    high, channels, *kernel = MODELS["A"][FIRST].shape
    wide = randn(high, 9, *kernel, seed=3).half()
    out, _ = run("A + 1*(B - C)", altered(A={FIRST: wide}))
    exact = wide.double()
    exact[:, :channels] += MODELS["B"][FIRST].double() - MODELS["C"][FIRST].double()
    assert is_rounded_once(out[FIRST], exact)
    assert_equal(out[FIRST][:, channels:], wide[:, channels:])
    with pytest.raises(WeightShapeError, match="give the wider one as base"):
        run("A + 1*(B - C)", altered(B={FIRST: wide}))


def test_a_wider_first_layer_of_flux():
    models = {name: grid(FLUX, torch.bfloat16, seed=at) for at, name in enumerate("AB")}
    high, width = models["A"]["img_in.weight"].shape
    models["A"]["img_in.weight"] = wide = randn(high, 6 * width, seed=4).bfloat16()
    out, _ = run("A + 0.5*(B - A)", models)
    exact = wide.double()
    exact[:, :width] = (exact[:, :width] + models["B"]["img_in.weight"].double()) / 2
    assert is_rounded_once(out["img_in.weight"], exact)


# --- What is not merged ---------------------------------------------------------------------------


def test_averages_are_dropped_listed_and_never_mixed_with_weights():
    ema = "model_ema." + KEY.removeprefix("model.").replace(".", "")
    own = {ema: randn(3, 3).half(), "model_ema.decay": torch.tensor(0.99)}
    out, report = run("A:0.5 B:0.5", altered(A=own, B=own))
    assert not any(key.startswith("model_ema") for key in out)
    assert any("2 tensors of running averages" in note and ema in note for note in report.notes)
    assert not any("ema" in layer.target for layer in report.layers)
    out, report = run("A:0.5 B:0.5", altered(B=own))
    assert not report.only_others["B"]


def test_whole_numbers_and_what_belongs_to_no_model_stay_the_bases():
    mine = {"alphas_cumprod": randn(1000, seed=1), "num_batches": torch.tensor(7)}
    theirs = {"alphas_cumprod": randn(1000, seed=2), "num_batches": torch.tensor(9)}
    out, _ = run("A:0.5 B:0.5", altered(A=mine, B=theirs), Output({"all": "bf16"}))
    for key, tensor in (mine | {"betas": MODELS["A"]["betas"]}).items():
        assert_equal(out[key], tensor)


@pytest.mark.parametrize("wrong", [torch.float16, torch.float32, torch.int64, torch.int32])
def test_positions_that_were_merged_elsewhere_are_repaired(wrong):
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    right = torch.arange(77)[None]
    broken = right.clone()
    broken[0, 41] = 40
    out, report = run("A:0.5 B:0.5", altered(A={ids: broken.to(wrong)}))
    assert torch.equal(out[ids], right)
    assert not out[ids].is_floating_point()
    assert any("repaired" in note and ids in note for note in report.notes)
    out, report = run("A:0.5 B:0.5", altered(A={ids: right}))
    assert_equal(out[ids], right)
    assert not any("repaired" in note for note in report.notes)


def test_the_vae_is_the_bases_or_of_the_file_that_is_named():
    out, _ = run("A:0.5 B:0.5")
    assert_equal(out[VAE], MODELS["A"][VAE])
    first = "first_stage_model."
    alone = {k.removeprefix(first): t for k, t in MODELS["C"].items() if k.startswith(first)}
    mix = Step("m", (Term("B", weight=0.5),), "lerp", "A")
    for source in (MODELS["C"], alone):  # a checkpoint, or a file of a VAE alone
        out, _ = run(mix, {**MODELS, "C": source}, parts={"vae": "C"})
        assert_equal(out[VAE], MODELS["C"][VAE])
    out, _ = run(Step("m", (), "sum", "A"), parts={"vae": "C"})  # nothing else changes
    for key, tensor in MODELS["A"].items():
        assert_equal(out[key], MODELS["C"][key] if key.startswith("first_stage") else tensor)


def test_text_encoders_one_by_one():
    models = {name: grid(OPENCLIP, torch.float16, seed=at) for at, name in enumerate("ABC")}
    one = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    two = "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight"
    step = Step("m", (Term("B", weight=0.5, where=("te1=0", "te2=0.5")),), "lerp", "A")
    out, _ = run(step, models)
    assert_equal(out[one], models["A"][one])
    assert is_rounded_once(
        out[two], 0.75 * models["A"][two].double() + 0.25 * models["B"][two].double()
    )
    out, _ = run(step, models, parts={"te2": "C"})
    assert_equal(out[two], models["C"][two])
    assert_equal(out[one], models["A"][one])


# --- Flags ----------------------------------------------------------------------------------------

FLAGS = ("v_pred", "ztsnr", "edm_vpred.sigma_max")


@pytest.mark.parametrize(
    ("mine", "keep", "found"),
    [
        ((), "auto", ()),
        (FLAGS, "auto", FLAGS),
        ((), "on", ("v_pred", "ztsnr")),
        (FLAGS, "off", ("edm_vpred.sigma_max",)),
    ],
)
def test_flags_are_the_bases_or_as_asked(mine, keep, found):
    """Another's flags never come in by themselves, as they do where keys are added."""
    models = altered(A=dict.fromkeys(mine, torch.ones(0)), B=dict.fromkeys(FLAGS, torch.zeros(0)))
    if mine:
        models["B"] = MODELS["B"]
    out, report = run("A:0.5 B:0.5", models, Output(keep=keep))
    assert {*out} & {*FLAGS} == {*found}
    assert any("does not agree" in note for note in report.notes) == (keep == "auto")


@pytest.mark.parametrize(("predicts_v", "said"), [(True, "v"), (None, None)])
def test_the_metadata_say_what_is_predicted(predicts_v, said):
    recipe = parse_line("A:0.5 B:0.5")
    parents = {name: Parent(Input(f"{name}.safetensors"), {}) for name in "AB"}
    found = merged_metadata(recipe, parents, "0", base="A", v_prediction=predicts_v)
    assert found.get("modelspec.predict_key") == said


# --- Dtypes ---------------------------------------------------------------------------------------

DTYPES = (torch.float32, torch.float16, torch.bfloat16, FP8, torch.float8_e5m2, torch.float64)


@pytest.mark.parametrize("mine", DTYPES)
@pytest.mark.parametrize("theirs", DTYPES)
def test_mixed_dtypes_are_subtracted_in_float32_and_rounded_to_the_bases(mine, theirs):
    """Not in the base's: B's small change would be gone before it is weighed."""
    a, b = (0.1 * randn(16, 16, seed=at) for at in (0, 1))
    models = {"A": {KEY: a.to(mine)}, "B": {KEY: b.to(theirs)}}
    out, _ = run("A + 0.3*(B - A)", models)
    assert out[KEY].dtype == mine
    exact = 0.7 * models["A"][KEY].double() + 0.3 * models["B"][KEY].double()
    assert is_rounded_once(out[KEY], exact) or mine == torch.float64
    assert torch.allclose(out[KEY].double(), exact, rtol=0.2, atol=1e-3)


def test_a_dtype_by_component():
    asked = Output({"all": "bf16", "te": "fp32", "vae": "fp16"})
    out, _ = run("A:0.5 B:0.5", output=asked)
    for key, tensor in out.items():
        prefix = key.partition(".")[0]
        dtypes = {
            "model": torch.bfloat16,
            "cond_stage_model": torch.float32,
            "first_stage_model": torch.float16,
            "betas": MODELS["A"]["betas"].dtype,
        }
        assert tensor.dtype == dtypes[prefix], key


# --- Stored with scales ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_numbers_with_scales_are_refused_by_name_and_plain_eight_bits_are_not(name):
    scaled = {
        KEY: MODELS[name][KEY].to(FP8),
        KEY.replace(".weight", ".scale_weight"): torch.ones(1),
    }
    with pytest.raises(QuantisedError, match=f"{name}"):
        run("A + 0.5*(B - C)", altered(**{name: scaled}))
    out, _ = run("A + 0.5*(B - C)", altered(**{name: {KEY: scaled[KEY]}}))
    models = altered(**{name: {KEY: scaled[KEY]}})
    a, b, c = (models[one][KEY].double() for one in "ABC")
    assert is_rounded_once(out[KEY], a + 0.5 * (b - c))


# --- Nothing done ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["A:0.5 B:0.5", "A + 0.5*(B - C)", Step("m", (Term("B"), Term("C")), "ties", "A")]
)
def test_the_same_numbers_under_several_names_change_nothing_and_it_is_said(line):
    models = dict.fromkeys("ABC", MODELS["A"])
    out, report = run(line, models)
    for key, tensor in MODELS["A"].items():
        assert_equal(out[key], tensor)
    assert any(note.startswith("changes nothing") for note in report.notes)


def test_a_weight_of_zero_everywhere_is_refused():
    step = Step("m", (Term("B", weight=0.0),), "lerp", "A")
    with pytest.raises(MismatchError, match="weight other than 0"):
        run(step)
    with pytest.raises(ArgumentError, match="no file is given for `B`"):
        merge(Recipe((step,), FILES), {"A": DictSource(MODELS["A"])})
