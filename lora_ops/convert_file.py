"""Convert from file to file, and to the folder that PEFT reads."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from .architectures import Architecture, architecture_named, detect, parameters
from .convert import Converting, convert_notes, run_convert
from .convert_plan import names_for, planned
from .devices import Placement
from .errors import ArgumentError, WriteError
from .files import FileSource, check_output
from .formats import PEFT, adapter_config, decode, format_named
from .metadata import Input, Operation, Result, Source, edited_metadata
from .parallel import Progress
from .ranks import RankRule, parse_rank
from .report import Report
from .writing import Draft, write_adapter

# The names that PEFT gives and asks for.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def convert_file(
    source: FileSource,
    output: Path,
    format: str,
    *,
    architecture: str | None = None,
    reference: FileSource | None = None,
    rule: str | int | RankRule | None = None,
    dtype: torch.dtype | None = None,
    placement: Placement | None = None,
    force: bool = False,
    version: str = "",
    progress: Progress | None = None,
) -> Report:
    """Write an adapter in another format; see `convert`.

    Args:
        source: The adapter file.
        output: Where to; for `peft` a folder, which is made.
        format: kohya, comfy, diffusers or peft.
        architecture: Short name of the model's; None: that of the reference, or told by the names.
        reference: The checkpoint that it is for, to find dotted names by.
        rule: How many directions a layer gets that is joined from several; None: all, exactly.
        dtype: Of the factors; None: each layer's own.
        placement: Where to compute; None: the CPU.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.
        progress: Called after each layer.

    Raises:
        LoraOpsError: As `convert`; or the output cannot, or must not, be written.
    """
    scheme = format_named(format)
    read = [path for one in (source, reference) if one is not None for path in one.paths]
    if scheme == PEFT:
        _check_folder(output, read, force=force)
    else:
        check_output(output, read, force=force)
    adapter = decode(source)
    known = None if architecture is None else architecture_named(architecture)
    targets, model = _referred(reference)
    names = names_for(adapter, known or model, targets)
    converting = Converting(scheme, names, None if rule is None else parse_rank(rule), dtype)
    pieces = planned(adapter, scheme, names)
    keys = {piece.module: piece.keys for piece in pieces}

    def describe(inputs: Sequence[Input], result: Result) -> dict[str, str]:
        told = {"format": scheme.name}
        told |= {} if converting.rule is None else {"rank": str(converting.rule)}
        operation = Operation("convert", version, f"converted to {scheme.name}", told)
        titled = replace(result, title=output.stem)
        return edited_metadata(Source(inputs[0], source.metadata), operation, titled)

    def written(path: Path) -> Report:
        results = run_convert(adapter, pieces, converting, placement=placement, progress=progress)
        draft = Draft(path, scheme.name, [source], keys, adapter.extras, names.architecture)
        notes = tuple(convert_notes(adapter, pieces, converting))
        return write_adapter(draft, results, describe, notes=lambda _: notes)

    if scheme != PEFT:
        return written(output)
    with _folder(output) as folder:
        report = written(folder / WEIGHTS)
        ranks = {layer.target: layer.rank for layer in report.layers}
        use_dora = any("magnitude" in keys[layer.target] for layer in report.layers)
        (folder / CONFIG).write_text(adapter_config(ranks, use_dora=use_dora), "utf-8")
    return report


def _referred(reference: FileSource | None) -> tuple[list[str], Architecture | None]:
    """The targets and the architecture of a checkpoint."""
    if reference is None:
        return [], None
    found = parameters(reference)
    return [one.target for one in found.values()], detect(found)


def _check_folder(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse a folder that cannot, or must not, be written.

    Raises:
        ArgumentError: As `check_output` of the weights in it; or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(
            "is a file, and format `peft` is a folder; give another name", path=output
        )
    inside = output / WEIGHTS if output.is_dir() else output.with_suffix(".safetensors")
    check_output(inside, inputs, force=force or not output.is_dir())


@contextmanager
def _folder(output: Path) -> Generator[Path, None, None]:
    """A hidden sibling, which becomes the output, or whose files do, when all is well.

    Raises:
        WriteError: It cannot be made, or not be renamed.
    """
    hidden = output.with_name(f".{output.name}.partial")
    try:
        hidden.mkdir()
        yield hidden
        if not output.is_dir():
            hidden.rename(output)
            return
        for file in sorted(
            hidden.iterdir(), reverse=True
        ):  # the weights before what is said of them
            file.replace(output / file.name)
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", path=output) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
