"""Which parameters of the checkpoints of a merge belong together, by canonical name, from headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...adapters.strengths.rules import parse_rules
from ...errors import WeightShapeError
from ...models.architectures import Parameter, parameters
from ...source import TensorSource

# The first layer, which inpainting models have wider: they see more channels.
_INPUT = re.compile(
    r"(input_blocks\.0\.0|conv_in|x_embedder(\.proj)?|img_in|patch_embedding)\.weight$"
)
#: Averages that training kept beside the weights: of no use to who generates, and half the file.
EMA = "other.model_ema."


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint and its parameters by canonical name."""

    source: TensorSource
    parameters: Mapping[str, Parameter]

    @staticmethod
    def of(source: TensorSource, part: str = "") -> Model:
        """Read the headers.

        Args:
            source: A checkpoint.
            part: The one component to look at, as `parts` of a recipe has it; empty for all.
        """
        found = parameters(source)
        if part:
            rules = parse_rules([one.target for one in found.values()], where=[f"{part}=1"])
            found = {key: one for key, one in found.items() if one.target in rules[0].names}
        return Model(source, found)

    def matching(self, one: Parameter, base: TensorSource) -> Parameter | None:
        """Return the parameter here that belongs to one of the base; None where there is none.

        Raises:
            WeightShapeError: It has another shape, and is not the narrower first layer of a model
                that the base is the inpainting model of.
        """
        other = self.parameters.get(one.name)
        if other is None or other.shape == one.shape:
            return other
        rest = (one.shape[:1] + one.shape[2:], other.shape[:1] + other.shape[2:])
        if _INPUT.search(one.name) and len(one.shape) > 1 and rest[0] == rest[1]:
            if other.shape[1] < one.shape[1] and not (one.transposed or other.transposed):
                return other
            raise WeightShapeError(
                f"`{other.key}` of {self.source.name} has {other.shape[1]} input channels, that of "
                f"{base.name} {one.shape[1]}: an inpainting model has more; give the wider one as base",
                target=one.target,
            )
        raise WeightShapeError(
            f"`{other.key}` of {self.source.name} has shape {list(other.shape)}, `{one.key}` of "
            f"{base.name} {list(one.shape)}: they are models of different kinds",
            target=one.target,
        )
