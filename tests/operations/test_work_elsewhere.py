"""The work of every operation, pickled and done in another process: the same results, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kinds
import pytest
import torch
from adapters import EVERY_FORM, Part, tensors, written
from alike import check_alike
from bits import assert_equal
from checkpoints import SD1, grid, planted
from elsewhere import ByPath, Elsewhere, elsewhere
from safetensors.torch import save_file

from lorakit.lora_ops import Adapter, Ingredient, bake, compare, extract, save_adapter, verify
from lorakit.lora_ops.adapters.formats import decode, format_named
from lorakit.lora_ops.adapters.matching.align import match_adapters
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.model import names_for
from lorakit.lora_ops.adapters.repacking.plan import planned
from lorakit.lora_ops.inspect.spectra import spectra_work
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.linalg.ranks.rules import parse_rank
from lorakit.lora_ops.operations.add.add import add_work
from lorakit.lora_ops.operations.add.layer import Adding
from lorakit.lora_ops.operations.convert.layer import Converting, convert_work
from lorakit.lora_ops.operations.convert.to_lora import plan_to_lora
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.operations.extract.plan import plan_extraction
from lorakit.lora_ops.operations.extract.shared import shared, together
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step
from lorakit.lora_ops.operations.merge.recipes.recipe import Term as MergeTerm
from lorakit.lora_ops.operations.resize.importance import importance_work
from lorakit.lora_ops.operations.resize.layer import Resizing
from lorakit.lora_ops.operations.resize.resize import resize_work
from lorakit.lora_ops.operations.scale.scale import scale_work
from lorakit.lora_ops.run.devices import place
from lorakit.lora_ops.run.job import Work
from lorakit.lora_ops.run.stream import stream

CPU = place("cpu")


@pytest.fixture(scope="module")
def there() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


@pytest.fixture
def lora(tmp_path: Path) -> ByPath:
    """LoRAs of every form, with biases and alphas."""
    written(tmp_path / "a.safetensors", tensors(), {})
    return ByPath(tmp_path / "a.safetensors")


@pytest.fixture
def other(tmp_path: Path) -> ByPath:
    parts = [Part(p.form, 3, 0.7, torch.float16, 9 + p.seed) for p in EVERY_FORM]
    written(tmp_path / "b.safetensors", tensors(parts), {})
    return ByPath(tmp_path / "b.safetensors")


def check_same(work: Work, there: Elsewhere) -> None:
    """The same results, here and there; and there is something to compare."""
    here, found = list(stream(work)), there.results(work)
    assert here
    check_equal(here, found)


def check_equal(one: object, other: object) -> None:
    check_alike(one, other, assert_equal)


def test_scale(lora: ByPath, there: Elsewhere):
    adapter = decode(lora)
    strengths = dict.fromkeys(adapter.layers, -0.3)
    strengths[next(iter(adapter.layers))] = 0.0
    check_same(scale_work(adapter, strengths, has_alpha=False), there)


@pytest.mark.parametrize("rule", ["2", "energy=0.8", "mean=2"])
def test_resize(lora: ByPath, there: Elsewhere, rule: str):
    check_same(resize_work(decode(lora), Resizing(parse_rule(rule)), CPU), there)


@pytest.mark.parametrize("rank", [None, "2"])
def test_add(lora: ByPath, other: ByPath, there: Elsewhere, rank: str | None):
    terms = [Term(decode(lora), {}, "a"), Term(decode(other), {}, "b")]
    rule = None if rank is None else parse_rank(rank)
    check_same(add_work(match_adapters(terms, "kohya"), Adding(rule)), there)


def test_convert_of_names(lora: ByPath, there: Elsewhere):
    adapter, scheme = decode(lora), format_named("kohya")
    names = names_for(adapter, None, (), scheme)
    work = convert_work(
        adapter, planned(adapter, scheme, names), Converting(scheme, names, measures=True)
    )
    check_same(work, there)


@pytest.mark.parametrize("rule", ["2", "mean=1"])
def test_convert_to_lora(tmp_path: Path, there: Elsewhere, rule: str):
    adapter, checkpoint = every_kind(tmp_path)
    lowering = plan_to_lora(adapter, adapter.layers, rule, base=checkpoint)
    check_same(lowering.work(CPU), there)


def test_spectra(tmp_path: Path, there: Elsewhere):
    check_same(spectra_work(every_kind(tmp_path)[0]), there)


def test_importance(tmp_path: Path, there: Elsewhere):
    adapter, checkpoint = every_kind(tmp_path)
    check_same(importance_work(adapter.layers, checkpoint), there)


def test_extract(tmp_path: Path, there: Elsewhere):
    base, tuned = pair(tmp_path)
    plan = plan_extraction(base, tuned, 2, full_differences=True)
    check_same(extraction_work(plan), there)


def test_extract_several(tmp_path: Path, there: Elsewhere):
    base, tuned = pair(tmp_path)
    plans, held = shared([plan_extraction(base, tuned, rank) for rank in (2, 3)])
    check_same(together([extraction_work(plan) for plan in plans], held), there)


def test_verify(tmp_path: Path, there: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    base, tuned = pair(tmp_path)
    adapter, _ = extract(base, tuned, 1)
    save_adapter(adapter, tmp_path / "lora.safetensors")
    lora = ByPath(tmp_path / "lora.safetensors")
    here = verify(base, tuned, lora)
    monkeypatch.setattr("lorakit.lora_ops.inspect.verify.stream", there.stream)
    found = verify(base, tuned, lora)
    assert there.done
    assert replace(found, seconds=0) == replace(here, seconds=0)
    assert here.layers
    assert here.error > 0


def test_compare(lora: ByPath, other: ByPath, there: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    here = compare(decode(lora), decode(other))
    monkeypatch.setattr("lorakit.lora_ops.inspect.compare.stream", there.stream)
    assert compare(decode(lora), decode(other)) == here
    assert there.done
    assert here.layers


def test_bake(tmp_path: Path, there: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    base, tuned = pair(tmp_path)
    adapter, _ = extract(base, tuned, 2)
    save_adapter(adapter, tmp_path / "lora.safetensors")
    terms = [Ingredient(ByPath(tmp_path / "lora.safetensors"), 0.7)]
    here, report = bake(base, terms)
    monkeypatch.setattr("lorakit.lora_ops.operations.bake.bake.stream", there.stream)
    found, other = bake(base, terms)
    assert there.done
    check_equal(found, here)
    assert replace(other, seconds=0) == replace(report, seconds=0)


@pytest.mark.parametrize("method", ["lerp", "ties", "cosine_a"])
def test_merge(tmp_path: Path, there: Elsewhere, monkeypatch: pytest.MonkeyPatch, method: str):
    """Methods of one pass and of more, and one that looks at the whole model first."""
    base, tuned = pair(tmp_path)
    step = Step("m", (MergeTerm("B", weight=0.4),), method, "A")
    recipe = Recipe((step,), {name: RecipeFile(f"{name}.safetensors") for name in "AB"})
    here, report = merge(recipe, {"A": base, "B": tuned})
    monkeypatch.setattr("lorakit.lora_ops.operations.merge.merge.stream", there.stream)
    found, other = merge(recipe, {"A": base, "B": tuned})
    assert there.done
    check_equal(found, here)
    assert replace(other, seconds=0) == replace(report, seconds=0)


def pair(folder: Path) -> tuple[ByPath, ByPath]:
    """Two checkpoints that differ by two directions in every matrix."""
    base = grid(SD1, torch.float32)
    save_file(base, folder / "base.safetensors")
    save_file(planted(base, 2), folder / "tuned.safetensors")
    return ByPath(folder / "base.safetensors"), ByPath(folder / "tuned.safetensors")


def every_kind(folder: Path) -> tuple[Adapter, ByPath]:
    """An adapter with a layer of each kind, and the checkpoint that it is for."""
    found, weights = kinds.every_kind()
    save_file(weights, folder / "model.safetensors")
    written(folder / "kinds.safetensors", found)
    return decode(ByPath(folder / "kinds.safetensors")), ByPath(folder / "model.safetensors")
