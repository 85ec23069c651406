"""Several adapters, LoRA and DoRA, merged and switched in any order: against loops in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_models import model, tokens, trained_parameters

from lorakit.lora_ops import (
    collect,
    disable,
    eject,
    enable,
    inject,
    merge_into,
    set_strength,
    unmerge,
)
from lorakit.lora_ops.errors import UnsupportedLayerError

LAYERS = ["attn.*", "conv", "proj"]
KINDS = {"one": "dora", "two": "lora", "three": "dora"}


def dented(dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with three adapters that all change it, in the dtype."""
    module = model().to(dtype)
    for seed, (name, kind) in enumerate(KINDS.items()):
        generator = torch.Generator().manual_seed(seed)
        inject(module, LAYERS, 3, alpha=2, kind=kind, name=name, dtype=dtype, generator=generator)
    generator = torch.Generator().manual_seed(7)
    for name, one in trained_parameters(module).items():
        start = one.data if name.endswith("magnitude") else torch.zeros_like(one)
        one.data = start + 0.3 * torch.randn(one.shape, generator=generator, dtype=dtype)
    return module


def change(layer: object, weight: Tensor) -> Tensor:
    """What a layer of strength 1 adds to a weight: each row by itself, from the definitions."""
    thin = getattr(layer, "inner", layer)
    up, down = thin.up.flatten(1), thin.down.flatten(1)
    rows = []
    for index, row in enumerate(weight.flatten(1)):
        moved = row + (thin.alpha / thin.rank) * (up[index] @ down)
        if hasattr(layer, "magnitude"):
            moved = moved * (layer.magnitude.flatten()[index] / moved.square().sum().sqrt())
        rows.append(moved - row)
    return torch.stack(rows).reshape(weight.shape)


def expected(adapters: dict, strengths: dict[str, float]) -> nn.Module:
    plain = model().double()
    changes = {name: torch.zeros_like(one) for name, one in plain.state_dict().items()}
    for name, strength in strengths.items():
        for target, layer in adapters[name].layers.items():
            weight = plain.get_submodule(target).weight
            changes[f"{target}.weight"] += strength * change(layer, weight)
    plain.load_state_dict({key: one + changes[key] for key, one in plain.state_dict().items()})
    return plain


STEPS = st.tuples(
    st.sampled_from(["merge", "unmerge", "off", "on", "strength", "eject"]),
    st.sampled_from([*KINDS, None]),
    st.sampled_from([-0.5, 0.4, 1.7]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=7))
def test_any_order_gives_what_the_definitions_say(steps: list) -> None:
    module = dented()
    adapters = {name: collect(module, name) for name in KINDS}
    held = dict.fromkeys(KINDS, (1.0, True, False))  # strength, on, merged
    for what, wanted, number in steps:
        names = [name for name in held if wanted in (None, name)]
        if not names or (what in ("off", "on", "strength") and any(held[n][2] for n in names)):
            continue
        call = {
            "merge": merge_into,
            "unmerge": unmerge,
            "off": disable,
            "on": enable,
            "eject": eject,
            "strength": lambda m, n, number=number: set_strength(m, number, n),
        }[what]
        call(module, wanted)
        for name in names:
            strength, on, merged = held.pop(name) if what == "eject" else held[name]
            if what != "eject":
                held[name] = {
                    "merge": (strength, on, merged or on),
                    "unmerge": (strength, on, False),
                    "off": (strength, False, merged),
                    "on": (strength, True, merged),
                    "strength": (number, on, merged),
                }[what]
        active = {name: strength for name, (strength, on, _) in held.items() if on}
        # Merged weights are computed in float32.
        right = expected(adapters, active)(tokens())
        torch.testing.assert_close(module(tokens()), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merged", [["two"], ["three"], ["two", "three"]])
def test_dora_beside_merged_weights(merged: list[str]) -> None:
    module = dented(torch.float32)
    live = module(tokens())
    live.square().mean().backward()
    beside = {k: one.grad.clone() for k, one in trained_parameters(module).items() if ".one." in k}
    module.zero_grad()
    for name in merged:
        merge_into(module, name)
    torch.testing.assert_close(module(tokens()), live, rtol=1e-4, atol=1e-5)
    module(tokens()).square().mean().backward()
    for key, gradient in beside.items():
        found = dict(module.named_parameters())[key].grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)


def test_a_new_dora_beside_merged_weights_changes_nothing() -> None:
    module = dented(torch.float32)
    merge_into(module, "two")
    live = module(tokens())
    inject(module, LAYERS, 2, kind="dora", name="new")
    torch.testing.assert_close(module(tokens()), live, rtol=1e-4, atol=1e-5)


def test_a_module_may_be_moved_while_it_is_merged() -> None:
    module = dented(torch.float32)
    merge_into(module, "two")
    module.double()
    live = module(tokens())
    unmerge(module)
    torch.testing.assert_close(module(tokens()), live, rtol=1e-4, atol=1e-5)
    assert torch.equal(module.attn.to_q.weight, model().attn.to_q.weight.double())


class Tied(nn.Module):
    """Rows in, and the same rows out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(x)))


@pytest.mark.parametrize("target", ["table", "head"])
def test_tied_weights_are_not_merged_into(target: str) -> None:
    module = Tied()
    inject(module, ["body", target], 2)
    for one in trained_parameters(module).values():
        nn.init.normal_(one)
    before = copy.deepcopy(module.state_dict())
    other = {"table": "head", "head": "table"}[target]
    with pytest.raises(UnsupportedLayerError, match=f"weight of `{target}` is that of `{other}`"):
        merge_into(module)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
    disable(module)  # nothing is left half merged
