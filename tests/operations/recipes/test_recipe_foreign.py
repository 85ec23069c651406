"""Recipes of other programs, as they wrote them when they were run: what is carried, and what is said to be lost."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import FOREIGN, MODELS, read_or_refused

from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.operations.merge.recipes.document import as_json, as_toml, parse_document
from lorakit.lora_ops.operations.merge.recipes.foreign import (
    of_metadata,
    of_record,
    of_text,
    read_foreign,
)
from lorakit.lora_ops.operations.merge.recipes.recipe import RecipeFile, Term

RECORDS = FOREIGN["records"]
A, B, C = ((letter * 64) for letter in "abc")
XL = "0,0,0.3,0.3,0.3,0.3,0.5,0.5,0.5,0.4,0.6,0.6,0.6,0.6,0.2,0.2,0.2,0.2,0.2,0.2"
SD1 = ",".join(["0", *(f"{n / 25:g}" for n in range(25))])


def read(name):
    return of_record(RECORDS[name], MODELS)


def steps(name):
    return read(name).recipe.steps


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_is_a_document(name):
    found = read(name)
    assert parse_document(as_toml(found.recipe)) == found.recipe
    assert parse_document(as_json(found.recipe)) == found.recipe
    by_name = {file.name: file.sha256 for file in found.recipe.files.values() if file.sha256}
    assert by_name.items() <= {name: sha256 for sha256, name in MODELS.items()}.items()


def test_webui():
    found = read("webui weighted")
    assert found.recipe.files == {
        "A": RecipeFile("amodel.safetensors", A),
        "B": RecipeFile("bmodel.safetensors", B),
    }
    (step,) = found.recipe.steps
    assert (step.base, step.method, step.terms) == ("A", "lerp", (Term("B", weight=0.3),))
    assert found.recipe.output.dtype == {"all": "fp16"}
    assert found.recipe.title == "mix"
    found = read("webui difference")
    assert found.recipe.steps[0].terms == (Term("B", "C"),)
    assert found.recipe.files[found.recipe.parts["vae"]].name == "vae-ft-mse.safetensors"
    assert any("model_ema" in one for one in found.lost)
    found = read("webui none")
    assert (found.recipe.steps[0].base, found.recipe.steps[0].terms) == ("A", ())
    assert found.recipe.parts == {"vae": "B"}


def test_supermerger_by_blocks():
    (step,) = steps("sm blocks xl")
    assert step.terms == (Term("B", blocks=XL),)
    assert step.legacy == "supermerger"
    # 26 numbers stay 26: blocks are known by label, so those that XL lacks have no effect.
    assert steps("sm blocks 26 on xl")[0].terms == (Term("B", blocks=SD1),)
    first, second = steps("sm twice")
    assert (first.base, first.terms) == ("A", (Term("B", blocks=XL),))
    assert (second.base, second.terms[0].of) == ("step1", "C")
    assert second.terms[0].blocks == XL.replace("0.2", "0.1")
    (step,) = steps("sm triple")
    assert step.terms == (Term("B", weight=0.5), Term("C", weight=0.25))
    (step,) = steps("sm tensor")
    assert (step.method, step.parameters) == ("tensor_sum", {"beta": 0.25})


def test_supermerger_elements_and_exclusions():
    (step,) = steps("sm train")
    elements = "OUT03 OUT04:attn2 attn1.to_out:0.5"
    assert step.method == "train_difference"
    assert step.terms == (Term("B", "C", blocks=SD1, elemental=elements),)
    # Its own list has a 0 for every block that has an attention layer: the numbers are those given.
    (step,) = steps("sm exclude")
    numbers = SD1.split(",")
    assert step.terms[0].where == ("*attn2*=0",)
    assert step.terms[0].blocks.split(",") == ["0", *numbers[1:3], "0", *numbers[4:]]
    (step,) = steps("sm include")
    assert (step.method, step.terms[0].blocks.split(",").index("0.5")) == ("cosine_a", 17)


#: Keys of SDXL (the text encoders' by their names in adapters), and the place in the list of 110 that
#: supermerger's `blockfromkey` gives them.
EXTENDED = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": 0,
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": 1,
    "model.diffusion_model.input_blocks.0.0": 3,
    "model.diffusion_model.input_blocks.1.0.in_layers.2": 4,
    "model.diffusion_model.input_blocks.4.1.proj_in": 8,
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q": 10,
    "model.diffusion_model.input_blocks.7.1.transformer_blocks.9.ff.net.2": 27,
    "model.diffusion_model.middle_block.1.transformer_blocks.3.attn2.to_k": 45,
    "model.diffusion_model.middle_block.2.in_layers.2": 52,
    "model.diffusion_model.output_blocks.0.1.transformer_blocks.9.attn1.to_v": 64,
    "model.diffusion_model.output_blocks.5.2.conv": 102,
    "model.diffusion_model.output_blocks.8.0.in_layers.2": 105,
    "model.diffusion_model.out.2": 106,
    "model.diffusion_model.time_embed.0": 107,
    "model.diffusion_model.label_emb.0.0": 108,
}


def test_supermerger_with_110_numbers():
    (term,) = steps("sm 110")[0].terms
    assert (term.blocks, len(term.where)) == ("", 109)
    places = [f"model.diffusion_model.{rule.rpartition('=')[0]}.x" for rule in term.where]
    names = [*EXTENDED, *(name for name in places if "block" in name)]
    found = strengths(names, where=term.where)
    assert {name: found[name] for name in EXTENDED} == {
        name: pytest.approx(place / 200) for name, place in EXTENDED.items()
    }


def test_supermerger_history(tmp_path):
    path = tmp_path / "mergehistory.csv"
    path.write_text(FOREIGN["history"], "utf-8")
    first = read_foreign(path, 1)
    assert first.recipe.steps[0].terms == (Term("B", weight=0.4),)
    assert first.recipe.title == "my mix, v1"
    second = read_foreign(path, 2)
    elements = "OUT03:attn2:0.5,IN01:to_q:0.1"
    excluded = Term("B", "C", blocks=SD1, where=("*attn1*=0",), elemental=elements)
    assert second.recipe.steps[0].method == "smooth_add"
    assert second.recipe.steps[0].terms == (excluded,)
    assert any("0,0,1,0,0,0,0,0" in one for one in second.lost)
    last = read_foreign(path)
    assert [step.terms[0].of for step in last.recipe.steps] == ["B", "C"]
    with pytest.raises(FormatError, match="no merge 7; it has 1, 2, 3"):
        read_foreign(path, 7)


def test_chattiori():
    (step,) = steps("ch ws blocks")
    assert (step.method, step.terms) == ("cosine_a", (Term("B", blocks=XL),))
    found = read("ch ws blocks").recipe
    assert found.files[found.parts["vae"]].name == "sdxl_vae.safetensors"
    assert steps("ch deep")[0].terms[0].elemental == "OUT03:attn2:0.51234"
    assert steps("ch ad")[0].terms == (Term("B", "C", 0.35),)
    assert [step.terms[0].weight for step in steps("ch st")] == [1.0, 0.25]
    (step,) = steps("ch dare")
    assert (step.sparsify, step.parameters) == ("dare", {"density": 0.5})
    (step,) = steps("ch sim")
    assert (step.method, step.parameters) == ("similarity", {"beta": 0.2})
    drawn = read("ch rand")
    assert len(drawn.recipe.steps[0].terms[0].blocks.split(",")) == 26
    assert any("0.1,0.9,42" in one for one in drawn.lost)
    assert any("fp8" in one for one in read("ch dare").lost)


def test_model_mixer():
    first, second, third = steps("mm")
    assert first.terms == (Term("C", blocks=XL),)
    assert (second.base, second.terms) == ("step1", (Term("D", "B", 0.5),))
    assert (third.sparsify, third.terms[0].weight) == ("dare", 0.4)
    assert third.parameters == {"density": 0.5, "rescale": True}
    first, second = steps("mm flux")
    assert (first.sparsify, first.parameters) == ("magnitude", {"density": 0.3, "rescale": False})
    flux = [
        f"{kind}_blocks.{n}"
        for kind, count in (("double", 19), ("single", 38))
        for n in range(count)
    ]
    names = [f"model.diffusion_model.{name}.linear1" for name in flux]
    found = strengths(names, blocks=second.terms[0].blocks.partition(",")[2])
    assert list(found.values()) == [pytest.approx(round(n / 58, 3)) for n in range(1, 58)]


def test_what_no_program_writes(tmp_path):
    with pytest.raises(FormatError, match="of type `other`, unknown: webui"):
        of_record({"type": "other"}, {})
    with pytest.raises(FormatError, match="no program is known"):
        of_text("hello")
    path = tmp_path / "x.json"
    path.write_text("{" * 100_000)
    with pytest.raises(FormatError, match=r"x\.json: the recipe is damaged JSON"):
        read_foreign(path)
    assert of_metadata({"format": "pt"}) is None


_ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.text(max_size=3), max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_damaged_records_are_refused_or_read(name, data):
    record = copy.deepcopy(RECORDS[name])
    for key in data.draw(
        st.lists(st.sampled_from(sorted(set(record) - {"type"})), min_size=1, max_size=4)
    ):
        record[key] = data.draw(_ODD)
    read_or_refused(lambda: of_record(record, MODELS))
