"""lorakit extract, of several tuned checkpoints against one base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from ..version import __version__

if TYPE_CHECKING:
    from ..lora_ops import (
        Division,
        Embeddings,
        FileSource,
        LoraOpsError,
        Placement,
        PlanOptions,
        Preview,
        Report,
        TensorSource,
    )


class How(TypedDict):
    """How an extraction is done, beside its plan."""

    exact: bool
    placement: Placement
    seed: int


def extract_each(
    base: FileSource,
    tuned: Sequence[Path],
    folder: Path,
    rule: str | None,
    how: How,
    options: PlanOptions,
    *,
    format: str,
    embeddings: Embeddings | None,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
    asked: Division | None,
) -> None:
    """Extract, or say what would be; one table for all, and status 1 if one could not be."""
    from ..lora_ops import LoraOpsError, extract_files, preview_files
    from ..lora_ops.operations.extract.many import outputs_of
    from ..lora_ops.text import plain
    from ..terminal.as_json import check_json, write_json
    from ..terminal.many import show_extractions
    from ..terminal.progress import progress_bar

    check_json(json_to, [*base.paths, *tuned], folder)
    found: Mapping[Path, Report | Preview | LoraOpsError]
    if dry_run:
        found = preview_files(
            *(base, tuned, folder, rule),
            format=format,
            embeddings=embeddings,
            force=force,
            **options,
        )
    else:
        with progress_bar("extracting") as progress:
            make = partial(
                extract_files,
                base,
                folder=folder,
                rule=rule,
                format=format,
                embeddings=embeddings,
                force=force,
                version=__version__,
                progress=progress,
                **how,
                **options,
            )
            if asked is None:
                found = make(tuned)
            else:
                read = (base, options.get("activations"))
                found = _share(make, outputs_of(tuned, folder, format), folder, read, asked)
    failed = sum(isinstance(one, LoraOpsError) for one in found.values())
    if not write_json({"files": _as_json(found)}, json_to):
        show_extractions(found, verbose=verbose)
        if not dry_run and failed < len(found):
            click.echo(f"wrote {len(found) - failed} of {len(found)} into {plain(folder)}")
    if failed:
        raise click.ClickException(f"{failed} of {len(found)} could not be extracted")


def _share(
    make: Callable[[Sequence[Path]], Mapping[Path, Report | LoraOpsError]],
    outputs: Mapping[Path, Path],
    folder: Path,
    read: Sequence[TensorSource | None],
    asked: Division,
) -> dict[Path, Report | LoraOpsError]:
    """Extract those that are of this part, or all, and are not there yet; say how many are."""
    from ..lora_ops import ArgumentError
    from ..lora_ops.operations.extract.many_parts import TOGETHER, Ledger

    if asked.plan is not None or asked.verify:
        raise ArgumentError(
            "several tuned checkpoints have no plan of their own, and no parts of files; leave --plan and "
            "--verify out"
        )
    number, count = asked.part or (1, 1)
    mine = list(outputs)[number - 1 :: count]
    ledger = Ledger(folder, outputs, read, asked)
    left = [tuned for tuned in mine if not ledger.is_done(tuned)]
    if len(left) < len(mine):
        click.echo(f"{len(mine) - len(left)} of {len(mine)} were there already", err=True)
    found: dict[Path, Report | LoraOpsError] = {}
    for at in range(0, len(left), TOGETHER):
        some = left[at : at + TOGETHER]
        for tuned in some:
            ledger.begin(tuned)
        found.update(make(some))
    ledger.close()
    return found


def _as_json(found: Mapping[Path, Report | Preview | LoraOpsError]) -> dict[str, object]:
    from ..lora_ops import LoraOpsError
    from ..terminal.as_json import worded_report
    from ..terminal.wording import worded

    return {
        str(path): {"error": worded(str(one))}
        if isinstance(one, LoraOpsError)
        else worded_report(one.to_dict())
        for path, one in found.items()
    }
