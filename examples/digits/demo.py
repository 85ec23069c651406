"""The demo: LoRAs of several ranks from the digits pair, two trained ones and a merge, all of them drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from ...lora_ops import (
    Adapter,
    FileSource,
    WriteError,
    decode,
    extract_file,
    merge_file,
    open_source,
    parse_line,
    plan_file,
    plan_merge_file,
    record,
    verify,
)
from ...lora_ops.files import write_whole
from ...lora_ops.models.architectures import parameters
from ...lora_ops.run.workers import ordered_map
from .picture import Column, contact_sheet
from .sample import load_model, sample_digits, starting_noise

BASE = Path(__file__).parent / "base.safetensors"
TUNED = Path(__file__).parent / "tuned.safetensors"
TUNED2 = Path(__file__).parent / "tuned2.safetensors"
RULES = {
    "rank 1": "1",
    "rank 2": "2",
    "rank 4": "4",
    "rank 4, by outputs": "4",
    "rank 8": "8",
    "rank 16": "16",
    "energy 0.9": "energy=0.9",
}
BY_OUTPUTS = ", by outputs"
"""Ends the title of a LoRA that is cut by what the tuned model uses; see docs/activations.md."""
ACTIVATIONS = "activations.safetensors"
_RECORDED = 100  # seed of the noise while that is recorded: not that of the pictures
TRAINED = {
    f"{kind}, trained": Path(__file__).parent / f"{kind.lower()}.safetensors"
    for kind in ("LoRA", "DoRA")
}
"""What `train_lora` trained from the frozen base."""
MERGE = "base + (tuned - base) + (tuned2 - base)"
"""What both fine-tunes learned, in one model."""
MERGED = "both.safetensors"
PICTURE = "digits.png"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One LoRA of the demo.

    Attributes:
        title: Its rule, for people.
        path: Where it is.
        numbers: How many there are in its factors.
        ranks: Smallest and largest rank of a layer.
        size: Bytes of the file.
        error: Relative Frobenius error, from the extraction's report; None for one that was trained.
        verified: The same, recomputed from the files; None likewise.
        distance: Root mean square difference of its pictures from the tuned model's, as a share
            of the base's.
    """

    title: str
    path: Path
    numbers: int
    ranks: tuple[int, int]
    size: int
    error: float | None = None
    verified: float | None = None
    distance: float = math.nan


def run_demo(
    folder: Path,
    *,
    version: str = "",
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[DemoRow], Path]:
    """Write seven LoRAs, a record of activations, a merge, and a picture of them and the trained ones into a folder, made if need be.

    Args:
        folder: Files of an earlier demo in it are replaced.
        version: Of lorakit, for the files' record.
        progress: Called with models sampled, models in all, and what is being done.

    Returns:
        A row for each LoRA, and where the picture is.

    Raises:
        WriteError: The folder or a file in it could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the folder could not be made: {error.strerror}; choose another with --output"
        raise WriteError(message, path=folder) from error
    rows: list[DemoRow] = []
    with open_source(BASE) as base, open_source(TUNED) as tuned:
        before, after = tensors_of(base), tensors_of(tuned)
        models = [before]
        used = record_activations(after, folder / ACTIVATIONS)
        for title in RULES:
            path, error = extract_row(title, base, tuned, used, folder, version=version)
            with open_source(path) as lora:
                verified = verify(base, tuned, lora).error
                models.append(apply(base, before, lora))
                row = _row(title, path, decode(lora))
            rows.append(replace(row, error=error, verified=verified))
        for title, path in TRAINED.items():
            with open_source(path) as lora:
                models.append(apply(base, before, lora))
                rows.append(_row(title, path, decode(lora)))
    models.append(after)
    for path in (TUNED2, merge_styles(folder / MERGED, version=version)):
        with open_source(path) as source:
            models.append(tensors_of(source))
    samples: list[Tensor] = []
    # Side by side, a core each: the network is too small for threads inside it.
    for images in ordered_map(_samples, models, torch.get_num_threads()):
        samples.append(images)
        if progress is not None:
            progress(len(samples), len(models), "samples")
    start, goal = samples[0], samples[1 + len(rows)]
    span = float((start - goal).norm())
    rows = [
        replace(row, distance=float((images - goal).norm()) / span)
        for row, images in zip(rows, samples[1:], strict=False)
    ]
    picture = folder / PICTURE
    content = io.BytesIO()
    _sheet(rows, samples, sum(one.numel() for one in before.values())).save(content, format="png")
    write_whole(picture, content.getvalue(), replace=True)
    return rows, picture


def extract_row(
    title: str,
    base: FileSource,
    tuned: FileSource,
    used: Path,
    folder: Path,
    *,
    version: str = "",
) -> tuple[Path, float]:
    """Extract one of the demo's LoRAs.

    Args:
        title: Of `RULES`.
        base: The base.
        tuned: The fine-tune.
        used: The record of activations, for a LoRA by outputs.
        folder: Where it goes.
        version: Of lorakit, for the file's record.

    Returns:
        Where it is, and its relative error.
    """
    path = folder / f"{title.replace(',', '').replace(' ', '_')}.safetensors"
    with open_source(used) as known:
        plan = plan_file(
            *(base, tuned, RULES[title]),
            output=path,
            force=True,
            activations=known if title.endswith(BY_OUTPUTS) else None,
        )
        return path, extract_file(plan, base, tuned, path, force=True, version=version).error


def record_activations(tensors: Mapping[str, Tensor], output: Path) -> Path:
    """Record what goes into the layers of a model while it draws the ten digits once.

    Args:
        tensors: Of the model.
        output: Where to; an earlier record there is replaced.

    Returns:
        Where it is.
    """
    model = load_model(tensors)
    with record(model) as recorder:
        sample_digits(model, starting_noise(_RECORDED))
    recorder.save(output, replace=True)
    return output


def merge_styles(output: Path, *, version: str = "") -> Path:
    """Add what both fine-tunes changed to the base, and write that.

    Args:
        output: Where to; an earlier one there is replaced.
        version: Of lorakit, for the file's record.

    Returns:
        Where it is.
    """
    with ExitStack() as stack:
        paths = {"base": BASE, "tuned": TUNED, "tuned2": TUNED2}
        sources = {name: stack.enter_context(open_source(path)) for name, path in paths.items()}
        plan = plan_merge_file(parse_line(MERGE), sources, output=output, force=True)
        merge_file(plan, output, force=True, version=version)
    return output


def tensors_of(source: FileSource) -> dict[str, Tensor]:
    """All tensors of a file, as stored."""
    return {key: source.tensor(key) for key in source.keys()}  # noqa: SIM118 - not a mapping


def apply(base: FileSource, tensors: Mapping[str, Tensor], lora: FileSource) -> dict[str, Tensor]:
    """Return the checkpoint's tensors with an adapter added, in float32.

    Args:
        base: The checkpoint, for its names.
        tensors: All of its tensors; not changed.
        lora: The adapter file.
    """
    known = parameters(base)
    targets = {parameter.target: parameter.key for parameter in known.values()}
    result = dict(tensors)
    for target, layer in decode(lora, targets).layers.items():
        key = targets[target]
        weight = tensors[key].float()
        result[key] = weight + layer.change(weight)
    return result


def _row(title: str, path: Path, adapter: Adapter) -> DemoRow:
    layers = list(adapter.layers.values())
    ranks = [layer.rank for layer in layers]
    numbers = sum(
        tensor.numel()
        for layer in layers
        for role, tensor in layer.tensors().items()
        if role != "alpha"
    )
    return DemoRow(title, path, numbers, (min(ranks), max(ranks)), path.stat().st_size)


def _samples(tensors: Mapping[str, Tensor]) -> Tensor:
    return sample_digits(load_model(tensors), starting_noise())


def _sheet(rows: list[DemoRow], samples: list[Tensor], numbers: int) -> Image:
    whole = f"{numbers / 1e6:.2f} M"
    titles = [
        ("base", whole),
        *(
            (
                row.title.partition(", ")[0],
                f"{row.numbers / 1e3:.0f} k",
                row.title.partition(", ")[2] or f"error {row.verified:.2f}",
            )
            for row in rows
        ),
        ("tuned", whole),
        ("tuned2", whole),
        ("both", whole, "merged"),
    ]
    return contact_sheet([Column(*column) for column in zip(titles, samples, strict=True)])
