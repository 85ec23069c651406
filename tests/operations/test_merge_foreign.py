"""Recipes of other programs are run, not only read: what they say gives what those programs compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baking import is_rounded_once, randn
from bits import assert_equal
from checkpoints import SD1, grid, target
from keys import checkpoints as keys
from recipes import FOREIGN
from recipes import MODELS as RECORDED

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.plan import plan_merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.foreign import a1111, of_record
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term

MODELS = {
    name: {
        k: t + 0.01 * randn(*t.shape, seed=seed) for k, t in grid(SD1, torch.float32, seed).items()
    }
    for seed, name in enumerate("ABC")
}
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABC"}
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
VAE = "first_stage_model.decoder.conv_in.weight"


def sources(models=MODELS):
    return {name: DictSource(tensors, name=name) for name, tensors in models.items()}


def run(*steps, **more):
    return merge(Recipe(steps, FILES, **more), sources())[0]


def weights(key):
    return [MODELS[name][key].double() for name in "ABC"]


# --- The VAE --------------------------------------------------------------------------------------


def test_a_vae_is_merged_where_parts_name_the_step():
    out = run(Step("mix", (Term("B", weight=0.3),), "lerp", "A"), parts={"vae": "mix"})
    a, b, _ = weights(VAE)
    assert is_rounded_once(out[VAE], 0.7 * a + 0.3 * b)
    kept = run(Step("mix", (Term("B", weight=0.3),), "lerp", "A"))
    assert_equal(kept[VAE], MODELS["A"][VAE])


@pytest.mark.parametrize(
    ("blocks", "where", "share"),
    [
        ("", ("vae=0.5",), 0.5),
        ("", ("unet=0",), 1.0),
        ("", ("te=0", "vae=0"), 0.0),
        (",".join(["0.2", *["0.9"] * 25]), (), 0.2),
        (",".join(["0.2", *["0.9"] * 25]), ("vae=0.7",), 0.7),
    ],
)
def test_the_weight_of_the_vae_is_its_own_or_that_of_base(blocks, where, share):
    term = Term("B", blocks=blocks, where=where)
    out = run(Step("mix", (term,), "lerp", "A"), parts={"vae": "mix"})
    a, b, _ = weights(VAE)
    assert is_rounded_once(out[VAE], (1 - share) * a + share * b)


def test_a_web_uis_merge_merges_the_vae_too():
    written = {
        "type": "webui",
        "primary_model_hash": "a" * 64,
        "secondary_model_hash": "b" * 64,
        "interp_method": "Weighted sum",
        "multiplier": 0.25,
    }
    found = a1111.read(written, {"a" * 64: "A.safetensors", "b" * 64: "B.safetensors"})
    out, _ = merge(found.recipe, sources())
    for key in (KEY, VAE):
        a, b, _ = weights(key)
        assert is_rounded_once(out[key], 0.75 * a + 0.25 * b)


def test_a_file_gives_only_the_part_that_is_asked_of_it():
    files = FILES | {"B": RecipeFile("B.safetensors", part="te")}
    recipe = replace(parse_line("A + 0.5*(B - A)"), files=files)
    out, _ = merge(recipe, sources())
    for key, tensor in MODELS["A"].items():
        if key.startswith("cond_stage_model") and "position_ids" not in key:
            assert is_rounded_once(out[key], (tensor.double() + MODELS["B"][key].double()) / 2)
        else:
            assert_equal(out[key], tensor)
    with pytest.raises(ArgumentError, match="`te2` fits none"):
        merge(
            replace(recipe, files=files | {"B": RecipeFile("B.safetensors", part="te2")}), sources()
        )


# --- What only they say ---------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["supermerger", "chattiori", "model_mixer"])
def test_a_program_whose_meaning_is_the_definition(program):
    step = Step("mix", (Term("B", weight=0.3),), "lerp", "A")
    plain = run(step)
    for key, tensor in run(replace(step, legacy=program)).items():
        assert_equal(tensor, plain[key])


@pytest.mark.parametrize("method", ["train_difference", "smooth_add", "similarity"])
def test_b_minus_c_as_one_term_is_the_two_places_of_a_method(method):
    """supermerger and Chattiori have A, B and C, alpha and beta; readers write `B - C`."""
    parameters = {"beta": 0.3} if method == "similarity" else {}
    one = Step("m", (Term("B", "C", 0.4),), method, "A", legacy="chattiori", parameters=parameters)
    terms = (Term("B", weight=0.4), Term("C", weight=parameters.get("beta", 0.0)))
    two = run(Step("m", terms, method, "A"))
    assert not torch.equal(two[KEY], MODELS["A"][KEY])
    for key, tensor in run(one).items():
        assert_equal(tensor, two[key])


def test_beta_of_a_tensor_sum_is_where_it_begins():
    step = Step("m", (Term("B", weight=0.25),), "tensor_sum", "A", parameters={"beta": 0.5})
    out = run(step)[KEY]
    high = len(out)
    assert torch.equal(out[high // 2 : 3 * high // 4], MODELS["B"][KEY][high // 2 : 3 * high // 4])
    assert torch.equal(out[: high // 2], MODELS["A"][KEY][: high // 2])


@pytest.mark.parametrize(("rescale", "same"), [(True, "density"), (False, "no")])
def test_rescaling_by_yes_and_no(rescale, same):
    step = Step("m", (Term("B"),), "sum", "A", sparsify="dare", legacy="model_mixer")
    found = run(replace(step, parameters={"density": 0.5, "rescale": rescale}))
    expected = run(replace(step, parameters={"density": 0.5, "rescale": same}))
    assert_equal(found[KEY], expected[KEY])


def elemental_loop(text, key, label, weight):
    """supermerger's rule, from its description: blocks, then elements, each by substring, the last wins."""
    for entry in text.split(","):
        blocks, elements, ratio = entry.split(":")
        fits = True
        for words in (blocks.split(" "), elements.split(" ")):
            turned = words[0] == "NOT"
            found = any(word in key + label for word in words[turned:])
            fits = fits and found != turned
        weight = float(ratio) if fits else weight
    return weight


@pytest.mark.parametrize(
    "text",
    [
        "IN01:attn2:0.5",
        "IN01:attn2 ff:0.5",
        "IN01::0.9,NOT IN01:time_embed:0.1",
        "NOT BASE:NOT attn1:0.8,IN01:to_k:0",
        "OUT03 OUT04:attn2 attn1.to_out:0.5",
    ],
)
def test_elemental_weights(text):
    out = run(
        Step("m", (Term("B", weight=0.3, elemental=text),), "lerp", "A", legacy="supermerger")
    )
    seen = set()
    for key, tensor in MODELS["A"].items():
        if not key.startswith(("model.", "cond_stage")):
            continue
        name = target(key)
        label = "BASE" if name.startswith("text") else "IN01" if "blocks.1." in name else "IN00"
        share = elemental_loop(text, key, label, 0.3)
        seen.add(share)
        assert is_rounded_once(
            out[key], (1 - share) * tensor.double() + share * MODELS["B"][key].double()
        )
    assert len(seen) > 1 or text.startswith("OUT")


@pytest.mark.parametrize("text", ["IN01:attn2", "IN01:attn2:much", "a:b:c:1"])
def test_elemental_weights_that_mean_nothing(text):
    step = Step("m", (Term("B", elemental=text),), "lerp", "A", legacy="supermerger")
    with pytest.raises(ArgumentError, match="BLOCKS:ELEMENTS:RATIO"):
        run(step)


#: All but one of Flux, whose list has blocks that the small model here lacks.
RUN = [name for name in FOREIGN["records"] if name != "mm flux"]


@pytest.mark.parametrize("name", RUN)
def test_what_the_programs_wrote_is_planned_on_the_models_that_it_was_for(name):
    """From real names and shapes alone; lists of 20 numbers are for XL."""
    recipe = of_record(FOREIGN["records"][name], RECORDED).recipe
    is_xl = any(term.blocks.count(",") == 19 for step in recipe.steps for term in step.terms)
    model = keys.sdxl() if is_xl or name == "sm 110" else keys.sd1()
    opened = {key: keys.source(model, name=file.name) for key, file in recipe.files.items()}
    count = len(plan_merge(recipe, opened).merged)
    assert count > 500 or name == "webui none"


def test_twenty_numbers_are_for_the_blocks_of_stable_diffusion_xl():
    """A checkpoint has biases, and names that no adapter has."""
    values = [round(0.01 * (at + 1), 2) for at in range(20)]
    term = Term("B", blocks=",".join(map(str, values)))
    recipe = Recipe((Step("m", (term,), "lerp", "A"),), FILES, parts={"vae": "m"})
    plan = plan_merge(recipe, {name: keys.source(keys.sdxl(), name=name) for name in "AB"})

    def share(key):
        (step,) = plan.tensors[f"model.diffusion_model.{key}"].steps
        return step.node.terms[0].weights

    assert share("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight") == (values[5],)
    assert share("middle_block.0.in_layers.2.bias") == (values[10],)
    assert share("output_blocks.8.0.out_layers.3.weight") == (values[19],)
    assert share("out.0.bias") == (values[19],)
    assert share("time_embed.0.weight") == share("label_emb.0.0.bias") == (values[1],)
