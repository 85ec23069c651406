"""Tiles of a merge: 16 bits interpolated at once, a sample measured, and nothing missed beside it."""

from __future__ import annotations

import pytest
import torch
from bits import assert_equal

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.errors import NonFiniteError
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.weights.terms import Between, Stored
from lorakit.lora_ops.run.scratch import SCRATCH

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
SHAPE = (1000, 600)  # two tiles, of which one in eight rows is measured
HALVES = (torch.float16, torch.bfloat16)


def weight(seed: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0.5, 2, SHAPE[0])[:, None]  # a sample from one end would show
    return (0.02 * rows * torch.randn(SHAPE, generator=generator)).to(dtype)


def run(line: str, *weights: torch.Tensor):
    recipe = parse_line(line)
    models = {n: DictSource({KEY: w}, name=n) for n, w in zip("ABC", weights, strict=False)}
    out, report = merge(recipe, {name: models[name] for name in recipe.files})
    return out[KEY], report


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 1.0, 1.3, -0.2, 1 / 3])
def test_interpolating_16_bits_is_float32_rounded_once(dtype, share):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1))
    near = every.view(torch.int16).add(order.to(torch.int16) % 9).view(dtype)
    one, other = torch.cat([every, every]), torch.cat([every[order], near])
    expected = torch.lerp(one.float(), other.float(), share).to(dtype)
    with SCRATCH.frame():
        tensors = DictSource({"one": one, "other": other})
        rows = Between(*(Stored(tensors, n, torch.float32) for n in ("one", "other")), share)
        part, out = slice(0, len(one)), torch.empty(len(one), 1, dtype=dtype)
        assert rows.rounded(part, out)
        wide = rows.rows(part, torch.empty(len(one), 1))
    for found in (out.view(-1), wide.view(-1).to(dtype)):
        numbers = ~expected.isnan()
        assert_equal(found[numbers], expected[numbers])
        assert found[~numbers].isnan().all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.3])
def test_spellings_of_a_weighted_sum_are_one_file(dtype, share):
    models = weight(0, dtype), weight(1, dtype)
    rest = 1 - share
    found, _ = run(f"A + {share}*(B - A)", *models)
    for line in (f"{rest!r}*A + {share}*B", f"A:{rest!r} B:{share}"):
        assert_equal(run(line, *models)[0], found)
    expected = torch.lerp(models[0].float(), models[1].float(), share).to(dtype)
    assert_equal(found, expected)


@pytest.mark.parametrize("line", ["A + 0.3*(B - A)", "A + 0.3*(B - C)"])
def test_norms_of_a_sample_are_near_those_of_all(line):
    models = [weight(seed) for seed in range(3)]
    out, report = run(line, *models)
    a, b, c = (model.double() for model in models)
    change = 0.3 * (b - (a if "- A" in line else c))
    (layer,) = report.layers
    moved = out.double() - a
    assert layer.norm == pytest.approx(float(change.norm()), rel=0.01)
    assert layer.residual == pytest.approx(float((moved - change).norm()), rel=0.02)
    assert layer.size == pytest.approx(float(change.norm() / a.norm()), rel=0.01)
    assert layer.gain == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("line", ["A + 0.5*(B - A)", "A + 0.5*(B - C)"])
def test_a_change_beside_the_sample_is_found(line):
    a = weight(0)
    b = a.clone()
    b[3, 5] += 1
    out, report = run(line, a, b, a)
    (layer,) = report.layers
    assert layer.norm == pytest.approx(float((b - a)[3, 5]) / 2, rel=1e-3)
    expected = a.clone()
    expected[3, 5] = (a.double() + 0.5 * (b.double() - a.double()))[3, 5]
    assert_equal(out, expected)


@pytest.mark.parametrize("line", ["A + 0.5*(B - A)", "A + 0.5*(B - C)"])
def test_what_does_not_differ_stays_bit_for_bit(line):
    a = weight(0)
    a[1, 1] = -0.0
    out, report = run(line, a, a.clone(), a.clone())
    assert_equal(out, a)
    assert not report.layers


@pytest.mark.parametrize("line", ["A + 2*(B - A)", "A + 2*(B - C)"])
@pytest.mark.parametrize("bad", [60000.0, float("inf"), float("nan")])
def test_what_is_not_finite_beside_the_sample_is_refused(line, bad):
    a, b = weight(0), weight(1)
    b[3, 5] = bad
    with pytest.raises(NonFiniteError, match="fit float16" if bad == 60000 else "`B|of B"):
        run(line, a, b, a)
