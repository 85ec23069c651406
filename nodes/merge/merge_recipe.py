"""Merge Recipe: from the text of a recipe to a file, streamed, or to a loaded model."""

from __future__ import annotations

from ..form.schema import path_output, prefix_input, report_output, reported, schema
from ..form.wording import explained, inputs_of
from ..host import host
from ..host.api import io
from ..host.model_files import loaded
from .merging import PREFIX, PREFIX_HINT, name_output, opened, report_text, written
from .recipes import finding_inputs, fingerprint, ready, recipe_inputs

_ALIASES = [
    *("merge recipe", "replay merge", "merge checkpoints", "mergekit", "mecha", "supermerger"),
    *("ties", "dare", "della"),
]


class MergeRecipe(io.ComfyNode):
    """Writes the checkpoint that a recipe gives."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "MergeRecipe",
            "Merge Recipe",
            description="Writes the checkpoint that a recipe gives: any number of checkpoints and "
            "LoRAs, in any steps, in one pass and with one rounding. No model is loaded.",
            search_aliases=_ALIASES,
            is_output_node=True,
            inputs=[*recipe_inputs(), prefix_input(PREFIX, PREFIX_HINT), *finding_inputs()],
            outputs=[name_output(), path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, recipe: str | None, **rest: object) -> str:
        """A value that changes with the files that the recipe names."""
        del rest
        return fingerprint(recipe)

    @classmethod
    @explained
    def execute(
        cls,
        recipe: str,
        prefix: str,
        values: str = "",
        by_hash: bool = False,
        allow_partial: bool = False,
        allow_nonfinite: bool = False,
    ) -> io.NodeOutput:
        """Merge into a file.

        Raises:
            LoraOpsError: The recipe means nothing or cannot be done, a file of it is missing, or the
                disk is full.
        """
        one = ready(recipe, values, by_hash)
        options = {"allow_partial": allow_partial, "allow_nonfinite": allow_nonfinite}
        return written(cls, one.recipe, one.paths, prefix, one.notes, **options)


class LoadMergeRecipe(io.ComfyNode):
    """Loads the model that a recipe gives, without a file of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "LoadMergeRecipe",
            "Load Merge Recipe",
            description="Loads the model that a recipe gives, and writes no file: to try a merge "
            "before it is saved.",
            search_aliases=[*_ALIASES, "load merge", "preview merge"],
            inputs=[*recipe_inputs(), *finding_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The merged diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoders, if it has any."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, if it has one."),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, recipe: str | None, **rest: object) -> str:
        """A value that changes with the files that the recipe names."""
        del rest
        return fingerprint(recipe)

    @classmethod
    @explained
    def execute(
        cls,
        recipe: str,
        values: str = "",
        by_hash: bool = False,
        allow_partial: bool = False,
        allow_nonfinite: bool = False,
    ) -> io.NodeOutput:
        """Merge in memory.

        Raises:
            LoraOpsError: The recipe means nothing or cannot be done, a file of it is missing, or the
                host knows no such model.
        """
        from ...lora_ops import MergeOptions, plan_merge
        from ...lora_ops.operations.merge.merge import run_merge

        one = ready(recipe, values, by_hash)
        options: MergeOptions = {"allow_partial": allow_partial, "allow_nonfinite": allow_nonfinite}
        with opened(one.paths) as sources:
            plan = plan_merge(one.recipe, sources, **options)
            tensors, report = run_merge(plan, host.progress())
        told = report_text("the merge", report, plan, one.notes, inputs_of(cls))
        return reported(told, *loaded(tensors, plan.base.metadata))
