"""Factors of a stack of experts as PEFT stores them, and what it calls them.

PEFT adapts a parameter without a module of its own (`target_parameters`) by a wrapper around the module that
has it, and a second one by a wrapper around that. All experts of a stack have one rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

_WITHIN = ".base_layer"


def stacked_factors(
    factors: Mapping[int, tuple[Tensor, Tensor]], experts: int
) -> tuple[Tensor, Tensor]:
    """Return the two factors of a stack; experts without a change get zeros.

    Args:
        factors: Up (out, rank) and down (rank, in) by number of expert, each of any rank.
        experts: How many there are.

    Returns:
        `lora_A` (experts * rank, in), an expert's rows beside each other, and `lora_B` (out, rank * experts),
        where the experts' columns alternate.
    """
    rank = max(down.shape[0] for _, down in factors.values())
    first_up, first_down = next(iter(factors.values()))
    downs = first_down.new_zeros(experts, rank, first_down.shape[1])
    ups = first_up.new_zeros(first_up.shape[0], rank, experts)
    for number, (up, down) in factors.items():
        downs[number, : down.shape[0]] = down
        ups[:, : up.shape[1], number] = up
    return downs.flatten(0, 1), ups.flatten(1)


def one_of(stack: Tensor, role: str, number: int, experts: int) -> Tensor:
    """Return one expert's part of a factor of `stacked_factors`.

    Args:
        stack: `lora_A` or `lora_B`.
        role: Which: down, or up.
        number: Of the expert.
        experts: How many there are.

    Returns:
        down (rank, in), or up (out, rank).
    """
    if role == "down":
        return stack.unflatten(0, (experts, -1))[number].contiguous()
    return stack.unflatten(1, (-1, experts))[:, :, number].contiguous()


def wrapped_names(stacks: Sequence[str]) -> dict[str, str]:
    """Return what stands before `.lora_A.weight` for each of the stacks of one module.

    Args:
        stacks: Names of those that are adapted, in the order in which the model has them: the last one's wrapper
            is the outermost.
    """
    module = stacks[0].rpartition(".")[0]
    return {one: module + _WITHIN * (len(stacks) - 1 - at) for at, one in enumerate(stacks)}
