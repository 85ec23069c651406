"""Resize on a device that is not the CPU: it waits for a batch as often as for one layer, and gives the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from adapters import Part, adapter
from alike import check_alike
from device_double import DEVICE, DoublePlacement
from oracles import power, with_spectrum
from torch import Tensor

from lorakit.lora_ops import Adapter, LoraLayer, place
from lorakit.lora_ops.adapters.layers import FullLayer, Layer, MadeLayer
from lorakit.lora_ops.elements import ELEMENTS
from lorakit.lora_ops.linalg.ranks.budgets import parse_rule
from lorakit.lora_ops.operations.resize.layer import Resizing
from lorakit.lora_ops.operations.resize.resize import resize_work
from lorakit.lora_ops.run.job import Outcome
from lorakit.lora_ops.run.stream import stream

RULES = ["2", "energy=0.8", "error=0.3", "ratio=3", "cumulative=0.7", "knee", "2,conv=3"]
BUDGETS = ["mean=2", "total_error=0.3", "size=30kB"]
MANY = 6


def _done(lora: Adapter, rule: str) -> tuple[list[Outcome[Layer]], Counter[str]]:
    where = DoublePlacement(DEVICE, 1, 1 << 30)
    made = list(stream(resize_work(lora, Resizing(parse_rule(rule)), where), where))
    return made, where.double.counts


def _loras(count: int) -> Adapter:
    """The first ones of the same layers; those of the second have columns that depend on each other."""
    lora = adapter([Part("linear", seed=i, rank=6, module=f"lin.{i}") for i in range(count)])
    layers = dict(lora.layers)
    if count > 1:
        name = list(layers)[1]
        layer = layers[name]
        assert isinstance(layer, LoraLayer)
        up = layer.up.clone()
        up[:, 1] = up[:, 0]
        layers[name] = LoraLayer(up, layer.down, layer.alpha)
    return Adapter(layers, lora.keys, {}, lora.format)


def _dense(count: int) -> Adapter:
    """Changes that are multiplied out, as of kinds that are made from a weight."""
    layers: dict[str, Layer] = {}
    for index in range(count):
        full = FullLayer(with_spectrum(300, 280, power(0.7, 280), seed=index).float())
        layers[f"diffusion_model.lin.{index}"] = MadeLayer(
            "LoHa", (300, 280), 20, ELEMENTS["F32"], True, lambda full=full: full
        )
    return Adapter(layers, {}, {}, "comfy")


@pytest.mark.parametrize("rule", [*RULES, *BUDGETS])
def test_a_batch_waits_as_often_as_one_layer(rule: str) -> None:
    passes = 2 if rule in BUDGETS else 1  # spectra first
    for count in (1, MANY):
        made, asked = _done(_loras(count), rule)
        assert sum(one.value is not None for one in made) == count
        # Whether columns depend on each other, the singular values, the factors, and what they miss.
        assert asked["wait"] <= 4 * passes
        assert asked["download"] <= 2 * passes
        assert asked["upload"] <= 2 * count * passes
        assert asked["eigen"] <= passes * (1 if count == 1 else 2 * count)


@pytest.mark.parametrize("rule", RULES)
def test_changes_multiplied_out_are_cut_together(rule: str) -> None:
    (_, few), (made, many) = (_done(_dense(count), rule) for count in (1, MANY))
    assert sum(one.value is not None for one in made) == MANY
    assert few["wait"] <= 25
    # The slowest of several may take a step or two more, and be looked at for more directions.
    assert many["wait"] <= few["wait"] + 6
    assert few["download"] <= 3
    assert many["download"] <= few["download"] + 1
    # The changes themselves, and one more random start.
    assert many["upload"] - few["upload"] in (MANY - 1, MANY)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_layer_does_not_depend_on_its_batch(rule: str, dense: bool) -> None:
    """Also where one of its neighbours is of lower rank than its factors have columns."""
    lora = (_dense if dense else _loras)(MANY)
    together = {one.name: one for one in _done(lora, rule)[0]}
    for name, layer in lora.layers.items():
        keys = {name: lora.keys[name]} if name in lora.keys else {}
        (alone,), _ = _done(Adapter({name: layer}, keys, {}, lora.format), rule)
        check_near(together[name], alone)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rule", [*RULES, "mean=2", "total_error=0.3"])
def test_it_gives_what_the_cpu_gives(rule: str, dense: bool) -> None:
    lora = (_dense if dense else _loras)(MANY)
    cpu = place("cpu")
    here = list(stream(resize_work(lora, Resizing(parse_rule(rule)), cpu), cpu))
    check_near(_done(lora, rule)[0], here)


def check_near(one: object, other: object) -> None:
    """Equal, but for the last digits of numbers; and all of it on the CPU."""

    def near(mine: Tensor, theirs: Tensor) -> None:
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)

    check_alike(one, other, near, lambda number: pytest.approx(number, rel=1e-4, abs=1e-5))
