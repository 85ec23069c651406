"""Experts' layers as they come, gathered into the stacks that PEFT stores."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import Tensor

from ..adapters.formats import PEFT, Written
from ..adapters.layers import Layer, LoraLayer
from ..adapters.peft.stacked import stacked_factors, wrapped_names
from ..errors import ArgumentError, UnsupportedLayerError
from ..linalg.ranks.budgets import Budget
from ..linalg.ranks.rules import RankRule
from ..models.modules import expert_of, stack_order


def check_budget(rule: RankRule | Budget) -> None:
    """Refuse a budget that cannot be kept where experts are stacked.

    Raises:
        ArgumentError: It is a size.
    """
    if isinstance(rule, Budget) and rule.kind == "size":
        raise ArgumentError(
            f"`{rule}`: PEFT stores the experts of a stack with one rank for all, so what they take is not "
            "what their ranks say; give mean= or total_error="
        )


class ExpertStacks:
    """The stacks of a folder, whose tensors are made once all experts are there.

    Args:
        targets: Of the model: all layers that it may have, from which the number of experts is known.
    """

    def __init__(self, targets: Iterable[str]) -> None:
        found = (expert_of(target) for target in targets)
        self._counts = Counter(expert[0] for expert in found if expert is not None)
        self._layers: dict[str, dict[int, LoraLayer]] = defaultdict(dict)

    def takes(self, target: str, layer: Layer) -> bool:
        """Take a layer if it is an expert's, and say so.

        Raises:
            UnsupportedLayerError: It is no plain LoRA, or of another scale than others of its stack.
        """
        expert = expert_of(target)
        if expert is None or expert[0] not in self._counts:
            return False
        stack, number = expert
        others = self._layers[stack]
        if not isinstance(layer, LoraLayer) or not layer.is_pair:
            why = f"is of kind {layer.title}, and PEFT has plain LoRAs of experts alone"
            raise UnsupportedLayerError(
                f'layer `{target}` {why}; convert it `to="lora"` first', target=target
            )
        scale = next((one.scale for one in others.values()), layer.scale)
        if not math.isclose(scale, layer.scale, rel_tol=1e-9):
            raise UnsupportedLayerError(
                f"layer `{target}` has scale {layer.scale:g}, and other experts of `{stack}` {scale:g}: PEFT has one "
                "for a stack; give all of its experts the same strength",
                target=target,
            )
        others[number] = layer
        return True

    def written(self) -> dict[str, Written]:
        """What the configuration says of each stack."""
        return {
            stack: Written("LORA", _rank(layers), next(iter(layers.values())).scale)
            for stack, layers in self._layers.items()
        }

    def factors(self, module: Callable[[str], str]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Yield the key of each factor, and what makes it.

        Args:
            module: Gives the name in the file of the module that has a stack.
        """
        by_module: dict[str, list[str]] = defaultdict(list)
        for stack in sorted(self._layers, key=stack_order):
            by_module[stack.rpartition(".")[0]].append(stack)
        for stacks in by_module.values():
            for stack, name in wrapped_names(stacks).items():
                for end, side in ((PEFT.down, 0), (PEFT.up, 1)):
                    yield module(name) + end, partial(self._factor, stack, side)

    def _factor(self, stack: str, side: int) -> Tensor:
        factors = {number: (one.up, one.down) for number, one in self._layers[stack].items()}
        return stacked_factors(factors, self._counts[stack])[side]


def _rank(layers: Mapping[int, LoraLayer]) -> int:
    """The rank of a stack: the largest of its experts'."""
    return max(one.rank for one in layers.values())
