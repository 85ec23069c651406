"""Rounding by chance in a merge: the mean, the neighbours, any tiles and threads, what the report says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baking import randn
from bits import assert_equal
from oracles import finite_values
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.errors import NonFiniteError
from lorakit.lora_ops.operations.merge import file as merge_files
from lorakit.lora_ops.operations.merge.merge import MergedSource, merge
from lorakit.lora_ops.operations.merge.plan import plan_merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.merge.recipes.recipe import Output
from lorakit.lora_ops.operations.weights import terms
from lorakit.lora_ops.run.devices import Placement

KEY = "diffusion_model.blocks.0.attn.weight"
DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
LINE = "A + 0.1*(B - A)"


def pair(dtype, size=0.01, shape=(256, 200)):
    """Two models whose difference, at a tenth, is below the spacing of the numbers."""
    base = (0.03 * randn(*shape)).to(dtype)
    change = size * 0.03 * randn(*shape, seed=1)
    return {"A": base, "B": base.float() + change}


def run(models, rounding="stochastic", seed=None, **output):
    recipe = parse_line(LINE)
    recipe = replace(
        recipe,
        steps=(replace(recipe.steps[0], seed=seed),),
        output=Output(rounding=rounding, **output),
    )
    sources = {name: DictSource({KEY: one}, name=name) for name, one in models.items()}
    out, report = merge(recipe, sources)
    return out[KEY], report


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_number_is_a_neighbour_and_the_mean_is_the_number(dtype):
    models = pair(dtype)
    found, _ = run(models)
    assert found.dtype == dtype
    exact = models["A"].double() + 0.1 * (models["B"].double() - models["A"].double())
    known = finite_values(dtype)
    above = torch.searchsorted(known, exact)
    low = torch.where(known[above] == exact, known[above], known[above - 1])
    is_low, is_high = found.double() == low, found.double() == known[above]
    slack = (exact - found.double()).abs() < 1e-9  # where float32 rounds up to a neighbour
    assert bool((is_low | is_high | slack).all())
    noise = found.double() - exact
    spread = ((exact - low) * (known[above] - exact)).clamp(min=0).sum().sqrt()
    assert abs(float(noise.sum())) < 4 * float(spread)
    nearest, _ = run(models, "nearest")
    assert float((nearest.double() - exact).abs().sum()) < float(noise.abs().sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_the_report_says_that_the_change_is_there_where_the_nearest_ate_it(dtype):
    models = pair(dtype, shape=(1024, 1024))
    (eaten,) = run(models, "nearest")[1].layers
    out, report = run(models)
    (kept,) = report.layers
    assert eaten.gain < 0.6
    assert kept.gain == pytest.approx(1, abs=0.05)
    assert kept.cosine < 0.9
    change = 0.1 * (models["B"].double() - models["A"].double())
    moved = out.double() - models["A"].double()
    assert kept.gain == pytest.approx(float((moved * change).sum() / change.norm() ** 2), abs=0.02)
    assert not any("rounding ate" in note for note in report.notes)
    assert any("by chance" in note for note in run(models, "nearest")[1].notes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_threads_and_files_give_the_same_bits(dtype, monkeypatch, tmp_path):
    models = pair(dtype)
    whole, _ = run(models)
    monkeypatch.setattr(terms, "TILE", 1)
    assert_equal(run(models)[0], whole)
    monkeypatch.undo()
    for workers in (1, 3):
        placement = Placement(torch.device("cpu"), workers)
        monkeypatch.setattr(
            "lorakit.lora_ops.operations.merge.merge.place", lambda _, p=placement: p
        )
        assert_equal(run(models)[0], whole)
    recipe = replace(parse_line(LINE), output=Output(rounding="stochastic"))
    for name, one in models.items():
        save_file({KEY: one}, tmp_path / f"{name}.safetensors")
    with open_source(tmp_path / "A.safetensors") as a, open_source(tmp_path / "B.safetensors") as b:
        plan = merge_files.plan_merge_file(recipe, {"A": a, "B": b})
        assert_equal(MergedSource(plan).tensor(KEY), whole)
        merge_files.merge_file(plan, tmp_path / "out.safetensors")
    assert_equal(load_file(tmp_path / "out.safetensors")[KEY], whole)


def test_the_seed_of_the_last_step_decides():
    models = pair(torch.bfloat16)
    plain, _ = run(models)
    assert_equal(run(models, seed=0)[0], plain)
    assert not torch.equal(run(models, seed=1)[0], plain)


def test_what_nothing_changes_and_what_is_wide_is_not_drawn_for():
    """A copy that is narrowed goes to the nearest: there is no change to keep."""
    models = pair(torch.float32)
    wide, report = run(models)
    assert_equal(wide, run(models, "nearest")[0])
    assert report.layers[0].gain == pytest.approx(1, abs=1e-6)
    copied = {"vae.decoder.conv_in.weight": randn(9, 9)}
    recipe = replace(parse_line(LINE), output=Output({"all": "bf16"}, rounding="stochastic"))
    sources = {k: DictSource({KEY: v} | copied, name=k) for k, v in models.items()}
    out = merge(recipe, sources)[0]
    (key,) = copied
    assert_equal(out[key], copied[key].bfloat16())
    assert not torch.equal(out[KEY], wide.bfloat16())
    assert_equal(MergedSource(plan_merge(recipe, sources)).tensor(KEY), out[KEY])


@pytest.mark.parametrize("size", [1, 3])
def test_what_does_not_fit_is_refused_and_not_clamped(size):
    models = {"A": torch.full((4, 4), 60000.0).half(), "B": torch.full((4, 4), 2e5)}
    if size > 1:
        models = {name: one.repeat(400, 400) for name, one in models.items()}
    with pytest.raises(NonFiniteError, match="do not fit float16"):
        run(models)
