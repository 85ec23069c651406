"""Stacks of experts as PEFT stores them, read apart: the layers of each expert, against its sums in float64."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from lorakit.lora_ops import DictSource, decode
from lorakit.lora_ops.adapters.formats import PEFT_CONFIG, experts_apart
from lorakit.lora_ops.adapters.outline import HeaderOnlySource
from lorakit.lora_ops.adapters.peft.stacked import stacked_factors
from lorakit.lora_ops.errors import LayerShapeError, UnsupportedLayerError
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.models.grids import parameter_grid
from lorakit.lora_ops.models.modules import modules_of

MODULE = "base_model.model.model.layers.0.mlp.experts"
EXPERTS, OUT, INTO = 3, 10, 6


def source(config: dict[str, object] | None = None, rank: int = 2) -> DictSource:
    """A stack of the inner wrapper, gate_up_proj, and one of the outer, down_proj; and a plain layer."""
    draw = torch.Generator().manual_seed(1)
    shapes = {
        f"{MODULE}.base_layer.lora_A.weight": (EXPERTS * rank, INTO),
        f"{MODULE}.base_layer.lora_B.weight": (OUT, rank * EXPERTS),
        f"{MODULE}.lora_A.weight": (EXPERTS * 4, OUT // 2),
        f"{MODULE}.lora_B.weight": (INTO, 4 * EXPERTS),
        "base_model.model.model.layers.0.mlp.gate.lora_A.weight": (1, INTO),
        "base_model.model.model.layers.0.mlp.gate.lora_B.weight": (EXPERTS, 1),
    }
    told = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 3,
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"],
        "rank_pattern": {"experts.down_proj": 4, "mlp.gate.weight": 1},
        **(config or {}),
    }
    tensors = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    return DictSource(tensors, {PEFT_CONFIG: json.dumps(told)})


def summed(file: DictSource, module: str, expert: int, rank: int) -> Tensor:
    """What PEFT adds to one expert, number by number: its rows of A, and every n-th column of B."""
    down, up = (file.tensor(f"{module}.lora_{side}.weight").double() for side in "AB")
    found = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            for one in range(rank):
                at = up[row, one * EXPERTS + expert] * down[expert * rank + one, column]
                found[row, column] += at
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_each_expert_is_a_layer(rslora: bool) -> None:
    file = source({"use_rslora": rslora})
    layers = decode(file).layers
    assert len(layers) == 2 * EXPERTS + 1
    for expert in range(EXPERTS):
        for name, module, rank in (
            ("gate_up_proj", f"{MODULE}.base_layer", 2),
            ("down_proj", MODULE, 4),
        ):
            layer = layers[f"{MODULE}.{name}.{expert}"]
            scale = 3 / (math.sqrt(rank) if rslora else rank)
            assert (layer.rank, layer.scale) == (rank, pytest.approx(scale))
            wanted = scale * summed(file, module, expert, rank)
            torch.testing.assert_close(layer.delta(torch.float64), wanted)
    assert layers["base_model.model.model.layers.0.mlp.gate"].scale == 3


def test_headers_tell_it_without_data_and_the_other_way_gives_the_stack_again() -> None:
    file = source()
    apart = experts_apart(file)
    assert experts_apart(apart) is apart
    outline = decode(HeaderOnlySource(file)).layers
    layers = decode(file).layers
    assert {name: one.shape for name, one in outline.items()} == {
        name: one.shape for name, one in layers.items()
    }
    factors = {
        number: (layers[name].up, layers[name].down)
        for number in range(EXPERTS)
        for name in [f"{MODULE}.down_proj.{number}"]
    }
    for side, made in zip("AB", stacked_factors(factors, EXPERTS), strict=True):
        assert torch.equal(made, file.tensor(f"{MODULE}.lora_{side}.weight"))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"r": 4}, LayerShapeError, "rank 4: these do not divide"),
        (
            {"target_parameters": ["experts.a", "experts.b", "mlp.gate.weight"]},
            UnsupportedLayerError,
            "`a`, `b` of .*whose is not known",
        ),
        (
            {"target_parameters": ["experts.down_proj", "mlp.gate.weight"]},
            UnsupportedLayerError,
            "`down_proj` of .*factors of others",
        ),
        (
            {"target_parameters": ["mlp.gate.table"]},
            UnsupportedLayerError,
            "neither a module's weight nor a stack",
        ),
        ({"target_parameters": ["x.down"]}, UnsupportedLayerError, "`x.down`, and the file no"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(config, error, message: str) -> None:
    with pytest.raises(error, match=message):
        decode(source(config))


def test_of_another_method_the_field_means_nothing() -> None:
    assert experts_apart(source({"peft_type": "LOHA"})).keys() == source().keys()


def test_a_turned_expert_has_the_grid_of_its_own_numbers() -> None:
    """Spacings of bfloat16 differ from number to number: each has that of its own place."""
    draw = torch.Generator().manual_seed(2)
    stack = (torch.randn(EXPERTS, 5, 7, generator=draw) * 4).exp().bfloat16()
    file = DictSource({"model.layers.0.mlp.experts.gate_up_proj": stack})
    found = modules_of(file, {"model_type": "gpt_oss"}).parameters
    for number, one in enumerate(found.values()):
        weight = read_parameter(file, one)
        assert torch.equal(weight, stack[number].mT)
        grid = parameter_grid(Placed(stack), one)(weight, 0)
        assert torch.equal(grid, Placed.told(stack)[number].mT)


class Placed(DictSource):
    """A source whose spacing depends on the place alone."""

    def __init__(self, stack: Tensor) -> None:
        super().__init__({"model.layers.0.mlp.experts.gate_up_proj": stack})

    @staticmethod
    def told(stack: Tensor) -> Tensor:
        return torch.arange(stack.numel(), dtype=torch.float64).reshape(stack.shape)

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        run = torch.arange(start, start + values.numel(), dtype=torch.float64)
        return run.reshape(values.shape)
