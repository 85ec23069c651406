"""The record of a merge: its recipe with the hashes of all inputs, in a model or in a LoRA of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...run.inputs import Input, paths_of
from ...source import TensorSource
from ..weights.storing_plan import kept_metadata
from .plan import MergePlan
from .recipes.ancestry import PARENTS, Parent, merged_metadata
from .recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class MergeRecord:
    """What a file says of the merge that made it.

    Attributes:
        plan: The merge.
        recipe: What was asked for, output included: that of the plan, or of a LoRA of it.
        version: Of lorakit.
    """

    plan: MergePlan
    recipe: Recipe
    version: str = ""

    @property
    def names(self) -> list[str]:
        """The recipe's names of what is read."""
        return [name for name in self.recipe.files if name in self.plan.sources]

    @property
    def sources(self) -> list[TensorSource]:
        """What is read, of which the hashes are recorded."""
        return [self.plan.sources[name] for name in self.names]

    def of_model(self, inputs: Sequence[Input], measured: Mapping[str, float]) -> dict[str, str]:
        """The string map of a merged checkpoint.

        Args:
            inputs: The record of `sources`.
            measured: What the merge did, by name.
        """
        plan = self.plan
        *first, last = self.recipe.steps
        shown = {name: float(f"{value:.6g}") for name, value in measured.items()}
        files = {
            name: replace(file, bytes=_bytes(plan.sources[name])) if name in self.names else file
            for name, file in self.recipe.files.items()
        }
        steps = (*first, replace(last, measured=shown))
        recipe = replace(self.recipe, steps=steps, files=files)
        parents = {
            name: Parent(one, plan.sources[name].metadata)
            for name, one in zip(self.names, inputs, strict=True)
        }
        base = next(name for name in self.names if plan.sources[name] is plan.base)
        predicts_v = True if "v_pred" in plan.tensors else None
        found = merged_metadata(recipe, parents, self.version, base=base, v_prediction=predicts_v)
        return {**found, **kept_metadata(plan.tensors, plan.base)}

    def entries(self, inputs: Sequence[Input], rank: str) -> dict[str, str]:
        """What a LoRA of the merge says of it: the recipe, and its ancestors.

        Args:
            inputs: The record of `sources`.
            rank: The rank rule of the LoRA.
        """
        output = replace(self.recipe.output, kind="lora", rank=rank)
        asked = replace(self, recipe=replace(self.recipe, output=output))
        found = asked.of_model(inputs, {})
        return {key: found[key] for key in PARENTS}


def _bytes(source: TensorSource) -> int | None:
    """Size of a file, by which it is found under another name; None for several files, or none."""
    paths = paths_of(source)
    return paths[0].stat().st_size if len(paths) == 1 else None
