"""Loaded models beside each other: which of their weights belong together, and what is patched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..form.texts import WARNS
from ..host import host
from ..host.computed import Compute, replaced
from .mixing import Read

if TYPE_CHECKING:
    from ...lora_ops.operations.merge.matched import Model
    from ..host.model_source import ModelSource

#: What the models are called.
LETTERS = "ABCDEFGH"


def connected(given: Mapping[str, Any] | None, what: str) -> list[Any]:
    """Return what arrives at the sockets `model_A`, `model_B`, …, in order.

    Args:
        given: By the socket's name.
        what: The sockets' name before the letter.

    Raises:
        ArgumentError: One before another is empty.
    """
    from ...lora_ops import ArgumentError

    held = {name: one for name, one in (given or {}).items() if one is not None}
    names = [f"{what}_{letter}" for letter in LETTERS[: len(held)]]
    for name in names:
        if name not in held:
            raise ArgumentError(f"nothing arrives at `{name}`, and something at `{max(held)}`")
    return [held[name] for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """What loaded models have in common.

    Attributes:
        models: A and the others, with their parameters.
        others: By A's key, that of each other model; None where it has none.
    """

    models: Sequence[Model]
    others: Mapping[str, tuple[str | None, ...]]

    @staticmethod
    def of(sources: Sequence[ModelSource]) -> Matched:
        """Match them.

        Raises:
            MismatchError: They are of different architectures.
            WeightShapeError: Or of different sizes.
        """
        from ...lora_ops.operations.merge.matched import Model

        models = [Model.of(source) for source in sources]
        base = models[0]
        for other in models[1:]:
            _check_alike(base, other)
        others: dict[str, tuple[str | None, ...]] = {}
        for name, one in base.parameters.items():
            found = [other.matching(one, base.source) for other in models[1:]]
            others[name] = tuple(None if at is None else at.key for at in found)
        return Matched(models, others)

    @property
    def sources(self) -> list[Any]:
        """The models themselves."""
        return [one.source for one in self.models]

    def names(self) -> dict[str, str]:
        """A's weights: what rules call each, by key."""
        return {key: one.target for key, one in self.models[0].parameters.items()}

    def reads(self, key: str) -> list[Read]:
        """The weight of each model; of one that lacks it A's."""
        first, *rest = self.sources
        own: Read = partial(first.tensor_on, key)
        found = [own]
        for other, at in zip(rest, self.others[key], strict=True):
            if at is None:
                found.append(own)
            elif other.shape(at) != first.shape(key):
                found.append(partial(_filled, partial(other.tensor_on, at), own))
            else:
                found.append(partial(other.tensor_on, at))
        return found

    def patched(self, patcher: Any, weights: Mapping[str, Compute]) -> Any:
        """A clone of A's MODEL or CLIP in which weights are computed.

        Args:
            patcher: The MODEL or CLIP.
            weights: How, by key; those of the other one are left out.
        """
        inner = getattr(patcher, "patcher", patcher)
        places = {key: self.sources[0].place(key) for key in weights}
        return replaced(
            patcher, {own: weights[key] for key, (held, own) in places.items() if held is inner}
        )

    def notes(self) -> Iterator[str]:
        """What is to be said of the models, a line each."""
        from ...lora_ops.report import counted

        base, *rest = self.models
        alone = [key for key, found in self.others.items() if not any(found)]
        if alone:
            yield f"{counted(len(alone), 'weight')} only in A, the first `{alone[0]}`: kept"
        for other in rest:
            missing = [name for name in other.parameters if name not in base.parameters]
            if missing:
                name = other.source.name
                yield f"{counted(len(missing), 'weight')} only in {name}, the first `{missing[0]}`: left out"
        for source in self.sources[1:]:
            for name in source.injections:
                yield f"{WARNS}`{name}` of {source.name} acts as its layers run and is in no weight: left out"


def predictions(models: Sequence[Any]) -> Iterator[str]:
    """A line where MODELs do not predict the same: A decides how the merge is sampled."""
    told = [host.prediction(one) for one in models]
    for letter, other in zip(LETTERS[1:], told[1:], strict=False):
        if other != told[0]:
            yield f"{WARNS}A predicts {told[0]}, {letter} {other}: the result is sampled as A"


def _check_alike(base: Model, other: Model) -> None:
    from ...lora_ops import MismatchError
    from ...lora_ops.models.architectures import detect
    from ...lora_ops.models.pairing import ENOUGH

    kinds = [detect(one.parameters) for one in (base, other)]
    names = [one.source.name for one in (base, other)]
    if kinds[0] is not None and kinds[1] is not None and kinds[0] != kinds[1]:
        raise MismatchError(
            f"{names[0]} is {kinds[0].title} and {names[1]} is {kinds[1].title}: only models of one "
            "architecture can be merged"
        )
    shared = len(base.parameters.keys() & other.parameters.keys())
    if shared < ENOUGH * len(base.parameters):
        lacking = next(name for name in base.parameters if name not in other.parameters)
        raise MismatchError(
            f"{names[1]} has {shared} of the {len(base.parameters)} weights of {names[0]}, and lacks "
            f"`{lacking}`: only models of one architecture can be merged"
        )


def _filled(read: Read, base: Read, device: torch.device) -> Tensor:
    """A first layer that sees fewer channels than A's, as that of an inpainting model: the rest is A's."""
    narrow, whole = read(device), base(device)
    whole[:, : narrow.shape[1]] = narrow
    return whole
