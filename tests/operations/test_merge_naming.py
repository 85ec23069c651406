"""Merges of one model under two programs' names: the same numbers, whatever the method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baking import randn, thin
from namings import TRANSLATED, both

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.models.architectures import UNET, architecture_named, parameters
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Output, Recipe, RecipeFile, Step, Term

FLUX = architecture_named("flux")
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABCL"}
#: Methods that look at more than one element, and some that do not.
METHODS = [
    ("sum", 2, {}),
    ("lerp", 1, {}),
    ("slerp", 2, {}),
    ("ties", 2, {"density": 0.4}),
    ("sparse", 2, {"sparsify": "dare"}),
    ("sparse", 2, {"sparsify": "della"}),
    ("sce", 2, {"density": 0.5}),
    ("nuslerp", 2, {"axis": "tensor"}),
    ("nuslerp", 2, {"axis": "column"}),
    ("tensor_sum", 1, {"offset": 0.3}),
    ("arcee_fusion", 1, {}),
    ("cosine_a", 1, {"legacy": "mecha"}),
    ("smooth_add", 2, {}),
]


def natively(tensors):
    source = DictSource(tensors)
    return {name: read_parameter(source, one) for name, one in parameters(source).items()}


def models(architecture, dtype=torch.float32):
    """Three models, each under both of its names: a pair of native and foreign."""
    return {name: both(architecture, seed=seed, dtype=dtype) for seed, name in enumerate("ABC")}


def under(found, namings):
    """The models as sources: `n` takes the native names, `d` those of diffusers."""
    return {
        name: DictSource(found[name]["nd".index(naming)], name=name)
        for name, naming in zip("ABC", namings, strict=True)
    }


@pytest.mark.parametrize(("method", "count", "parameters_"), METHODS)
def test_every_method_sees_the_weight_and_not_its_pieces(method, count, parameters_):
    terms = tuple(Term(name, weight=0.4) for name in "BC"[:count])
    step = Step("m", terms, method, "A", seed=5, parameters=parameters_)
    found = models(FLUX)
    expected, _ = merge(Recipe((step,), FILES), under(found, "nnn"))
    assert any(not torch.equal(one, found["A"][0][key]) for key, one in expected.items())
    for namings in ("dnn", "ndn", "ddd"):
        out, _ = merge(Recipe((step,), FILES), under(found, namings))
        assert list(out) == list(found["A"]["nd".index(namings[0])])
        for name, one in natively(out).items():
            assert torch.equal(one, natively(expected)[name]), (name, namings)


def test_an_adapter_beside_a_model_is_thinned_out_as_one_change():
    """A layer of one projection of three is a change of the whole weight, whatever holds that."""
    found = models(FLUX)
    part = DictSource(thin("transformer.transformer_blocks.0.attn.to_k", (8, 4), 2), name="L")
    terms = (Term("L"), Term("B", weight=0.5))
    recipe = Recipe((Step("m", terms, "ties", "A", parameters={"density": 0.3}),), FILES)
    expected, _ = merge(recipe, under(found, "nnn") | {"L": part})
    out, _ = merge(recipe, under(found, "dnn") | {"L": part})
    for name, one in natively(out).items():
        assert torch.equal(one, natively(expected)[name]), name


@pytest.mark.parametrize("architecture", TRANSLATED, ids=lambda one: one.name)
def test_rounding_by_chance_draws_for_the_place_in_the_model(architecture):
    """Pieces, swapped halves and tables in a row: the bits are those of the native weight."""
    found = models(architecture, torch.bfloat16)
    recipe = replace(parse_line("A + 0.3*(B - C)"), output=Output(rounding="stochastic"))
    expected, _ = merge(recipe, under(found, "nnn"))
    nearest, _ = merge(replace(recipe, output=Output()), under(found, "nnn"))
    assert any(not torch.equal(one, nearest[key]) for key, one in expected.items())
    for namings in ("dnn", "ndd"):
        out, _ = merge(recipe, under(found, namings))
        for name, one in natively(out).items():
            assert torch.equal(one, natively(expected)[name]), (name, namings)


def test_a_weight_that_is_stored_the_other_way_round():
    """OpenCLIP's projection: as it stands in SDXL's files, and as ComfyUI loads it."""
    native = "conditioner.embedders.1.model.text_projection"
    loaded = "text_encoders.clip_g.transformer.text_projection.weight"
    extra = {f"{UNET}input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    label = {f"model.{UNET}label_emb.0.0.weight": torch.zeros(4, 4)}
    weights = {name: randn(24, 24, seed=seed).bfloat16() for seed, name in enumerate("AB")}
    for step in (
        Step("m", (Term("B", weight=0.3),), "tensor_sum", "A"),
        Step("m", (Term("B", weight=0.3),), "cosine_b", "A", parameters={"legacy": "mecha"}),
        Step("m", (Term("B", weight=0.3),), "lerp", "A", seed=2),
    ):
        recipe = Recipe((step,), FILES, output=Output(rounding="stochastic"))
        turned, straight = (
            merge(recipe, {k: DictSource({key: make(w), **more}) for k, w in weights.items()})[0]
            for key, make, more in (
                (
                    native,
                    lambda w: w.mT.contiguous(),
                    {f"model.{k}": v for k, v in extra.items()} | label,
                ),
                (loaded, lambda w: w, extra),
            )
        )
        assert not torch.equal(straight[loaded], weights["A"])
        assert torch.equal(turned[native].mT, straight[loaded]), step.method
