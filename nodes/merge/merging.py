"""From a recipe and its files to a merged file, or tensors: what the nodes share, and what they say."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..form.schema import reported
from ..form.texts import WARNS, headed
from ..form.wording import inputs_of, worded
from ..host import host
from ..host.api import io
from ..host.checkpoint_path import checkpoint_path

if TYPE_CHECKING:
    from ...lora_ops import FileSource, MergePlan, MergeReport, Recipe

FOLDERS = (host.CHECKPOINTS, host.DIFFUSION_MODELS)
PREFIX = "checkpoints/merged"
PREFIX_HINT = " In output/checkpoints or output/diffusion_models the loaders list it."
# Blocks that are named as the most changed.
_MOST = 5


def name_output() -> io.AnyType.Output:
    """The output with the name by which loaders list the file.

    Of any type: the host's loaders ask for one of a list of names, which no other type fits.
    """
    return io.AnyType.Output(
        display_name="name",
        tooltip="The file's name in the lists, for Load Checkpoint and other nodes that take one.",
    )


def nonfinite_input() -> io.Boolean.Input:
    """What becomes of numbers that are none."""
    return io.Boolean.Input(
        "allow_nonfinite",
        default=False,
        optional=True,
        tooltip="Where a weight of some model is NaN or infinite, keep that of the base, the first "
        "model. Off: that is an error.",
    )


@contextlib.contextmanager
def opened(paths: Mapping[str, Path]) -> Generator[dict[str, FileSource]]:
    """The files of a recipe, opened, by the recipe's names."""
    from ...lora_ops import open_source

    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_source(path)) for name, path in paths.items()}


def written(
    node: type[io.ComfyNode],
    recipe: Recipe,
    paths: Mapping[str, Path],
    prefix: str,
    notes: Sequence[str] = (),
    **options: Any,
) -> io.NodeOutput:
    """Merge into a file below the output folder; the outputs are its name, its path and the report.

    Args:
        node: Whose outputs they are.
        recipe: With numbers for all names.
        paths: The files by the recipe's names.
        prefix: Folder and beginning of the name.
        notes: What else the report says.
        **options: As `plan_merge` takes them.

    Raises:
        LoraOpsError: The models do not belong together, the recipe cannot be done, the disk is full.
    """
    from ...lora_ops import merge_file, plan_merge, plan_merge_file
    from ...lora_ops.operations.weights.gguf_file_plan import gguf_file
    from ...version import __version__

    asked = recipe.output
    with opened(paths) as sources:
        like = None
        if not asked.to and not asked.dtype and any(map(gguf_file, sources.values())):
            like = plan_merge(recipe, sources, **options).base
        path = checkpoint_path(prefix, PREFIX, to=asked.to, dtype=asked.dtype, like=like)
        plan = plan_merge_file(recipe, sources, output=path, **options)
        report = merge_file(plan, path, version=__version__, progress=host.progress())
    told = report_text(path.name, report, plan, notes, inputs_of(node))
    return reported(told, host.listed_name(path, *FOLDERS), str(path))


def report_text(
    name: str,
    report: MergeReport,
    plan: MergePlan,
    notes: Sequence[str],
    inputs: Collection[str],
) -> str:
    """What a merge did: how much of it is merged, where it changed, what rounding took."""
    from ...lora_ops.operations.weights.gguf_file_plan import NOT_HELD
    from ...lora_ops.report import counted
    from ...lora_ops.text import human_error, human_size, plain

    size = f"{human_size(report.size)}, " if report.size else ""
    taken = f"{report.taken} taken from another, " if report.taken else ""
    headline = (
        f"{plain(name)}: {counted(report.merged, 'weight')} merged, {taken}"
        f"{counted(report.copied, 'tensor')} copied, {size}"
        f"lost to rounding: {human_error(report.error)} of the change"
    )
    base = plain(Path(plan.base.name).name)
    lines: list[str] = []
    if report.sizes:
        sizes = ", ".join(f"{part} {size:.2%}" for part, size in report.sizes.items())
        lines.append(f"change as a share of {base}: {sizes}")
    most = sorted(report.blocks.items(), key=lambda one: -one[1])[:_MOST]
    if most:
        lines.append(f"most in {', '.join(f'{block} {size:.2%}' for block, size in most)}")
    lines += [
        f"{counted(count, 'tensor')} left out ({kind}): {reason}"
        for (reason, kind), (count, _) in report.reasons().items()
        if reason in NOT_HELD
    ]
    for note in (*notes, *report.notes):
        mark = WARNS if note in report.notes and note not in plan.notes else "note: "
        lines.append(mark + worded(plain(note), inputs))
    return headed(headline, *lines)
