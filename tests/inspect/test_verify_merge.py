"""A merged checkpoint against its recipe: bit for bit, and by how much where it is another."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoints import SD1, grid, trained

from lorakit.lora_ops import DictSource, extract, merge, parse_line, plan_merge, verify_merge
from lorakit.lora_ops import MergedSource as Merged

A = grid(SD1, torch.float16)
MODELS = {"A": A, "B": trained(A)}
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
RECIPE = parse_line("A + 0.3*(B - A)")


def sources():
    return {name: DictSource(tensors, name=name) for name, tensors in MODELS.items()}


def check(tensors):
    return verify_merge(RECIPE, sources(), DictSource(tensors, name="merged"))


def test_it_is_the_same_bit_for_bit():
    out, _ = merge(RECIPE, sources())
    found = check(out)
    assert found.is_same
    assert (found.equal, found.to_dict()["same"]) == (len(A), True)
    # A zero of another sign is another bit, though it is no other number.
    signed = {**out, "betas": out["betas"].clone()}
    signed["betas"][out["betas"] == 0] = -0.0
    assert check(signed).different == {"betas": 0.0}


@pytest.mark.parametrize(
    ("change", "off"),
    [
        (lambda t: t * 2, 1.0),
        (lambda t: t.float(), math.inf),
        (lambda t: t[:-1], math.inf),
        (lambda t: t * math.nan, math.inf),
    ],
)
def test_what_differs_has_its_size(change, off):
    out, _ = merge(RECIPE, sources())
    found = check({**out, KEY: change(out[KEY])})
    assert found.different == {KEY: pytest.approx(off, rel=1e-3)}
    assert (found.equal, found.is_same) == (len(A) - 1, False)


def test_what_only_one_has():
    out, _ = merge(RECIPE, sources())
    del out[KEY]
    found = check({**out, "more": torch.ones(1)})
    assert (found.missing, found.added, found.different) == ((KEY,), ("more",), {})


def test_a_lora_is_extracted_from_a_merge_that_is_written_nowhere():
    """As from the checkpoint that it would be."""
    recipe = RECIPE.with_output(dtype="fp32")
    out, _ = merge(recipe, sources())
    made = Merged(plan_merge(recipe, sources()))
    adapter, report = extract(sources()["A"], made, 4)
    other, _ = extract(sources()["A"], DictSource(out), 4)
    assert adapter.layers.keys() == other.layers.keys()
    for name, layer in adapter.layers.items():
        assert torch.equal(layer.delta(), other.layers[name].delta())
    assert all(one.norm > 0 for one in report.layers)
