"""Core operations on a device that is not the CPU: no tensor of the wrong side, few waits, equal results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import EVERY_FORM, Part, adapter, read
from alike import check_alike
from device_double import DEVICE, DoublePlacement, placed
from kinds import every_kind, kinds, weight
from oracles import power, with_spectrum
from torch import Tensor

from lorakit.lora_ops import Adapter, DictSource, Report
from lorakit.lora_ops.adapters.formats import decode, format_named
from lorakit.lora_ops.adapters.matching.align import match_adapters
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.model import names_for
from lorakit.lora_ops.adapters.repacking.plan import planned
from lorakit.lora_ops.inspect.spectra import spectra_work
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.linalg.ranks.rules import parse_rank
from lorakit.lora_ops.operations.add.add import add_work
from lorakit.lora_ops.operations.add.based import with_base
from lorakit.lora_ops.operations.add.layer import Adding
from lorakit.lora_ops.operations.convert.layer import Converting, convert_work
from lorakit.lora_ops.operations.convert.to_lora import plan_to_lora
from lorakit.lora_ops.operations.extract.extract import extraction_work, summarise
from lorakit.lora_ops.operations.extract.plan import plan_extraction
from lorakit.lora_ops.operations.methods import (
    FACTORED,
    MERGE_METHODS,
    Element,
    Task,
    check_adding,
    choose_method,
)
from lorakit.lora_ops.operations.resize.layer import Resizing
from lorakit.lora_ops.operations.resize.resize import resize_work
from lorakit.lora_ops.run.devices import Placement, place
from lorakit.lora_ops.run.job import Work
from lorakit.lora_ops.run.stream import stream

RULES = [
    "8",
    "energy=0.9",
    "fro=0.9",
    "cumulative=0.7",
    "ratio=4",
    "threshold=0.05",
    "knee",
    "error=0.3,max=40",
    "rank=8,conv=4",
    "noise,max=16",
]
LAYERS = 3


def _models() -> tuple[DictSource, DictSource]:
    generator = torch.Generator().manual_seed(0)
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for index in range(LAYERS):
        for name, shape in (("q", (400, 384)), ("ff", (200, 600)), ("conv", (64, 32, 3, 3))):
            key = f"blocks.{index}.{name}.weight"
            base[key] = torch.randn(shape, generator=generator).mul_(0.05)
            rows, columns = shape[0], base[key][0].numel()
            change = with_spectrum(rows, columns, power(0.3, min(rows, columns)), seed=index)
            tuned[key] = base[key] + 0.01 * change.reshape(shape).float()
    return DictSource(base), DictSource(tuned)


MODELS = _models()


def _models_of(count: int) -> tuple[DictSource, DictSource]:
    """Those weights of the models that so many blocks have."""
    base, tuned = (
        DictSource({k: one.tensor(k) for k in one.keys() if int(k.split(".")[1]) < count})  # noqa: SIM118
        for one in MODELS
    )
    return base, tuned


def _extract(where: Placement, rule: str, *, exact: bool) -> tuple[Adapter, Report]:
    plan = plan_extraction(*MODELS, rule, dtype=torch.float32)
    outcomes = list(stream(extraction_work(plan, exact=exact), where))
    layers = {one.name: one.value for one in outcomes if one.value}
    return Adapter(layers, {}, {}, "comfy"), summarise(plan, (one.report for one in outcomes))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_extraction(rule: str, exact: bool) -> None:
    where = placed()
    adapter, report = _extract(where, rule, exact=exact)
    expected, told = _extract(place("cpu"), rule, exact=exact)
    assert adapter.layers.keys() == expected.layers.keys()
    for target, layer in adapter.layers.items():
        other = expected.layers[target]
        assert layer.rank == other.rank
        assert torch.allclose(layer.delta(), other.delta(), atol=1e-4)
    assert report.error == pytest.approx(told.error, rel=1e-4)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rule", ["8", "energy=0.9", "knee"])
def test_a_larger_batch_waits_no_more_often(rule: str, exact: bool) -> None:
    """Of a device each wait empties the pipeline; a batch of one shape has a handful, whatever its size."""
    asked: list[Counter[str]] = []
    for count in (1, LAYERS):
        where = DoublePlacement(DEVICE, 1, 1 << 30)
        plan = plan_extraction(*_models_of(count), rule, dtype=torch.float32)
        list(stream(extraction_work(plan, exact=exact), where))
        asked.append(where.double.counts)
    few, many = asked
    batches = 3
    assert few["wait"] <= 17 * batches
    assert (
        many["wait"] <= few["wait"] + 3 * batches
    )  # the slowest layer of several may take a step more
    assert many["download"] == few["download"] <= 3 * batches
    assert few["upload"] <= 2 * batches + 1  # the weights, and the random start where there is one
    assert many["upload"] - few["upload"] == 2 * batches * (LAYERS - 1)  # the weights themselves


def check_near(one: object, other: object) -> None:
    """Equal, but for the last digits of numbers; and all of it on the CPU."""

    def near(mine: Tensor, theirs: Tensor) -> None:
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)

    check_alike(one, other, near, lambda number: pytest.approx(number, rel=1e-4, abs=1e-5))


# --- What edits adapters -------------------------------------------------------------------------

SEVERAL = [
    *EVERY_FORM,
    *(Part("linear", seed=20 + seed) for seed in range(4)),
]


def check_on_device(make: Callable[[Placement], Work[Any, Any]]) -> None:
    """Do the same on either, and compare."""
    where = placed()
    there = list(stream(make(where), where))
    cpu = place("cpu", memory=1 << 30)  # in the same batches, so in the same order
    here = list(stream(make(cpu), cpu))
    assert here
    check_near(there, here)


@pytest.mark.parametrize("rule", ["2", "energy=0.8", "mean=2", "knee"])
def test_resize(rule: str) -> None:
    lora = adapter(SEVERAL)
    check_on_device(lambda where: resize_work(lora, Resizing(parse_rule(rule)), where))


@pytest.mark.parametrize("rule", ["2", "energy=0.8", "ratio=3"])
def test_a_resize_waits_for_what_it_writes(rule: str) -> None:
    """Singular values come for a batch at once; of a layer two factors are waited for, and its error."""
    for count in (1, 4):
        where = DoublePlacement(DEVICE, 1, 1 << 30)
        lora = adapter([Part("linear", seed=i, module=f"lin.{i}") for i in range(count)])
        list(stream(resize_work(lora, Resizing(parse_rule(rule)), where), where))
        asked = where.double.counts
        assert asked["wait"] <= 2 + 3 * count
        assert asked["download"] <= 1 + 2 * count
        assert asked["eigen"] == count


@pytest.mark.parametrize("rank", [None, "2", "energy=0.8"])
@pytest.mark.parametrize("method", ["sum", "average", "slerp", "karcher", "energy"])
def test_add(method: str, rank: str | None) -> None:
    parts = [Part(p.form, 3, 0.7, torch.float16, 9 + p.seed) for p in EVERY_FORM]
    match = match_adapters([Term(adapter(), {}, "a"), Term(adapter(parts), {}, "b")], "kohya")
    rule = None if rank is None else parse_rank(rank)
    check_on_device(lambda _: add_work(match, Adding(rule, method)))


@pytest.mark.parametrize(
    ("method", "rank", "waits"),
    [("sum", None, 2), ("average", None, 3), ("sum", "2", 5), ("slerp", "energy=0.8", 6)],
)
def test_a_sum_waits_a_few_times_a_layer(method: str, rank: str | None, waits: int) -> None:
    """For inner products, once in each precision, for singular values, the factors, and what they miss."""
    one, other = (
        adapter([Part("linear", seed=seed + i, module=f"lin.{i}") for i in range(4)])
        for seed in (0, 50)
    )
    match = match_adapters([Term(one, {}, "a"), Term(other, {}, "b")], "kohya")
    where = DoublePlacement(DEVICE, 1, 1 << 30)
    adding = Adding(None if rank is None else parse_rank(rank), method)
    assert len(list(stream(add_work(match, adding), where))) == 4
    assert where.double.counts["wait"] <= 4 * waits
    assert where.double.counts["eigen"] == (0 if rank is None else 4)


@pytest.mark.parametrize("kept", [(), (1,)])
@pytest.mark.parametrize(
    ("method", "scope"), [*((name, None) for name in FACTORED), ("ties", "element")]
)
def test_add_by_methods_that_make_factors(
    method: str, scope: str | None, kept: tuple[int, ...]
) -> None:
    if kept and FACTORED[method].most == 2:
        kept = ()
    others = [
        [Part(p.form, 3, 0.7, torch.float16, at + p.seed) for p in EVERY_FORM] for at in (9, 30)
    ]
    terms = [
        Term(adapter(), {}, "a"),
        *(Term(adapter(one), {}, "b") for one in others[: 1 + len(kept)]),
    ]
    match = match_adapters(terms, "kohya")
    given = {} if scope is None else {"scope": scope}
    told = check_adding(method, len(terms) - len(kept), given)
    adding = Adding(parse_rank("4"), method, told, kept=frozenset(kept))
    check_on_device(lambda _: add_work(match, adding))


@pytest.mark.parametrize("rank", ["2", "error=0.3"])
@pytest.mark.parametrize(
    ("method", "scope"), [("sum", None), ("karcher", None), ("ties", "element")]
)
def test_add_of_what_is_made_from_the_weight(method: str, scope: str | None, rank: str) -> None:
    name = "diffusion_model.blocks.0.q"
    found = {f"{name}.{role}": one for role, one in kinds("linear")["lora, DoRA"].items()}
    plain = {f"{name}.{role}": one for role, one in kinds("linear")["loha"].items()}
    terms = [Term(decode(DictSource(one)), {name: 0.7}, "one") for one in (found, plain)]
    base = DictSource({"blocks.0.q.weight": weight("linear")})
    match = match_adapters([with_base(term, base, "paper", None) for term in terms])
    told = {} if scope is None else check_adding(method, 2, {"scope": scope})
    check_on_device(lambda _: add_work(match, Adding(parse_rank(rank), method, told, based=True)))


def test_convert_of_names() -> None:
    lora, scheme = adapter(), format_named("kohya")
    names = names_for(lora, None, (), scheme)
    converting = Converting(scheme, names, measures=True)
    check_on_device(lambda _: convert_work(lora, planned(lora, scheme, names), converting))


@pytest.mark.parametrize("rule", ["energy=1", "2", "mean=1"])
def test_convert_to_lora(rule: str) -> None:
    found, weights = every_kind()
    lora = read(found)
    lowering = plan_to_lora(lora, lora.layers, rule, base=DictSource(weights))
    check_on_device(lambda where: lowering.work(where))


def test_spectra() -> None:
    check_on_device(lambda _: spectra_work(read(every_kind()[0])))


# --- Methods that go element by element ----------------------------------------------------------

ELEMENTS = [name for name, method in MERGE_METHODS.items() if isinstance(method.how, Element)]


@pytest.mark.parametrize("name", ELEMENTS)
def test_element_methods(name: str) -> None:
    """Tiles on the device, as they would come from an engine that works there."""
    method = MERGE_METHODS[name]
    generator = torch.Generator().manual_seed(0)
    assert isinstance(method.how, Element)
    count = method.terms[0]
    terms = torch.randn(count, 12, 17, generator=generator)
    base = None if method.base == "none" else torch.randn(12, 17, generator=generator)
    parameters = choose_method(name, count, base is not None, {}).parameters
    survey = torch.tensor([-1.0, 1.0], dtype=torch.float64) if method.how.survey else None
    begun = method.how.begin(Task((12, 17), (0.3, 0.4)[:count], parameters, "w", 3, survey))
    here = _merged(begun, terms.clone(), base)
    where = placed()
    with where.scope():
        below = None if base is None else base.to(where.device)
        there = _merged(begun, terms.to(where.device), below).cpu()
    torch.testing.assert_close(there, here)


def _merged(work: Any, terms: Tensor, base: Tensor | None) -> Tensor:
    while work.passes:
        work = work.settle(work.observe(terms, base, 0))
    return work.combine(terms, base, 0)
