"""A folder of diffusers as the base of a merge, with files under other names; and what pieces are."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once
from bits import assert_equal
from namings import both
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import open_source
from lorakit.lora_ops.models.architectures import architecture_named, parameters
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term

MODELS = {
    name: both(architecture_named("flux"), seed, torch.bfloat16) for seed, name in enumerate("AB")
}
FILES = {name: RecipeFile(name) for name in "AB"}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PREFIX = "transformer."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A and B as folders of diffusers, and as native files."""
    for name, (native, foreign) in MODELS.items():
        save_file(native, tmp_path / f"{name}.safetensors")
        (tmp_path / name / "transformer").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text(
            json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]})
        )
        (tmp_path / name / "transformer" / "config.json").write_text("{}")
        save_file(
            {k.removeprefix(PREFIX): one for k, one in foreign.items()}, tmp_path / name / WEIGHTS
        )
    return tmp_path


def natively(path):
    with open_source(path) as source:
        return {name: read_parameter(source, one) for name, one in parameters(source).items()}


@pytest.mark.parametrize("method", ["lerp", "tensor_sum", "cosine_b"])
@pytest.mark.parametrize(("a", "b"), [("A", "B.safetensors"), ("A", "B"), ("A.safetensors", "B")])
def test_folders_and_files_in_any_place_give_the_same_numbers(folder, a, b, method):
    recipe = Recipe((Step("m", (Term("B", weight=0.3),), method, "A"),), FILES)
    found = []
    for at, names in enumerate(((a, b), ("A.safetensors", "B.safetensors"))):
        output = folder / (f"out{at}" if names[0] == "A" else f"out{at}.safetensors")
        with contextlib.ExitStack() as stack:
            opened = {
                key: stack.enter_context(open_source(folder / name))
                for key, name in zip("AB", names, strict=True)
            }
            plan = plan_merge_file(recipe, opened, output=output)
            merge_file(plan, output)
        found.append(natively(output))
        if output.is_dir():
            assert (output / "model_index.json").is_file()
            kept = load_file(output / WEIGHTS)
            assert kept.keys() == {key.removeprefix(PREFIX) for key in MODELS["A"][1]}
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[1].items():
        assert_equal(found[0][name], tensor)
        one, two = (MODELS[key][0][name] for key in "AB")
        if method == "lerp":
            assert is_rounded_once(tensor, 0.7 * one.double() + 0.3 * two.double())
        else:
            assert not torch.equal(tensor, one) or tensor.ndim < 2
