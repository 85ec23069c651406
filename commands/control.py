"""Control-LoRAs on the command line: what extract and bake do where one is asked for, or given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..version import __version__
from .division import tell_all
from .options import foretell

if TYPE_CHECKING:
    from ..lora_ops import Division, Element, FileSource, Placement, Report


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ends, as its options have it.

    Attributes:
        force: Whether the output may replace a file.
        dry_run: Whether the plan is printed, and nothing done.
        verbose: Whether every layer is shown.
        json_to: As --json has it.
        asked: How the work is divided; None: it is done at once.
    """

    force: bool
    dry_run: bool
    verbose: bool
    json_to: str | None
    asked: Division | None = None

    def tell(self, report: Report, show: Callable[..., None], output: Path) -> None:
        """Print what became of it; see `tell_all`."""
        tell_all(
            *(report, show),
            asked=self.asked,
            output=output,
            json_to=self.json_to,
            verbose=self.verbose,
        )


def refuse_beside_control(given: Mapping[str, bool]) -> None:
    """Refuse what has no meaning for a Control-LoRA.

    Args:
        given: By what people call it, whether it was given.

    Raises:
        ArgumentError: One of them was.
    """
    from ..lora_ops import ArgumentError

    for what in (name for name, is_given in given.items() if is_given):
        raise ArgumentError(f"{what} does not go with a Control-LoRA; leave it out")


def extract_control(
    base: Path,
    controlnet: Path,
    output: Path,
    rule: str | None,
    *,
    dtype: Element | None,
    include: Sequence[str],
    exclude: Sequence[str],
    exact: bool,
    placement: Placement,
    seed: int,
    ending: Ending,
) -> None:
    """Write the Control-LoRA of a ControlNet, and say how near it comes.

    Args:
        base: The checkpoint with the UNet.
        controlnet: The ControlNet.
        output: Where to.
        rule: The rank rule; None: the usual one.
        dtype: Of all that is written.
        include: Patterns of matrices that become factors.
        exclude: Patterns of those that do not.
        exact: Compute the exact truncation.
        placement: Where to compute.
        seed: Of the random start.
        ending: How the command ends.

    Raises:
        LoraOpsError: See `extract_control_file`.
    """
    from ..lora_ops import extract_control_file, open_source, plan_control_file, preview_control
    from ..terminal.as_json import check_json
    from ..terminal.progress import progress_bar
    from ..terminal.tables import show_report

    with open_source(base) as base_source, open_source(controlnet) as control_source:
        check_json(ending.json_to, [*base_source.paths, *control_source.paths], output)
        planned = plan_control_file(
            base_source,
            control_source,
            rule,
            output=output,
            force=ending.force,
            dtype=dtype,
            include=include,
            exclude=exclude,
        )
        if ending.dry_run:
            foretell(preview_control(planned, output), json_to=ending.json_to)
            return
        with progress_bar("extracting") as progress:
            report = extract_control_file(
                *(planned, base_source, control_source, output),
                force=ending.force,
                exact=exact,
                placement=placement,
                seed=seed,
                version=__version__,
                progress=progress,
                division=ending.asked,
            )
    ending.tell(report, show_report, output)


def bake_control(
    base: FileSource,
    control: FileSource,
    output: Path,
    dtype: Element | None,
    ending: Ending,
) -> None:
    """Write the ControlNet of a Control-LoRA.

    Args:
        base: The checkpoint with the UNet, opened.
        control: The Control-LoRA, opened.
        output: Where to.
        dtype: Of the ControlNet; None: that of the UNet.
        ending: How the command ends.

    Raises:
        LoraOpsError: See `bake_control_file`.
    """
    from ..lora_ops import bake_control_file, plan_control_bake_file, preview_control_bake
    from ..terminal.as_json import check_json
    from ..terminal.edits import show_baked
    from ..terminal.progress import progress_bar

    check_json(ending.json_to, [*base.paths, *control.paths], output)
    plan = plan_control_bake_file(base, control, output=output, force=ending.force, dtype=dtype)
    if ending.dry_run:
        foretell(preview_control_bake(plan, base, output), json_to=ending.json_to)
        return
    with progress_bar("baking") as progress:
        report = bake_control_file(
            *(plan, base, control, output),
            force=ending.force,
            version=__version__,
            progress=progress,
            division=ending.asked,
        )
    ending.tell(report, show_baked, output)
