"""Measure what activations are worth on the digits: `python docs/make_activations.py` prints the table, draws the picture.

LoRAs of several ranks, cut by the weights and by the outputs, at the same ranks: how far their pictures are from the
tuned model's, over noise that the record has not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lorakit.examples.digits.demo import BASE, TUNED, apply, tensors_of
from lorakit.examples.digits.picture import Column, contact_sheet
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import FileSource, Report, extract_file, open_source, plan_file, record

PICTURE = Path(__file__).with_name("activations.png")
RANKS = (1, 2, 4, 8, 16)
RECORDED = 100
"""The seed of the noise that is recorded."""
SEEDS = (11, 12, 13)
SHOWN = 5


def main() -> None:
    """Record, extract, sample, and say how far it is."""
    with TemporaryDirectory() as folder, open_source(BASE) as base, open_source(TUNED) as tuned:
        before, after = tensors_of(base), tensors_of(tuned)
        known = Path(folder) / "activations.safetensors"
        model = load_model(after)
        with record(model) as recorder:
            sample_digits(model, starting_noise(RECORDED))
        recorder.save(known)
        start, goal = drawn(before), drawn(after)
        columns = [Column(("base",), start[0][:SHOWN])]
        say("| rank | cut by | error | error of outputs | distance of pictures | with each noise |")
        say("|---|---|---|---|---|---|")
        for rank in RANKS:
            for title, path in (("by weights", None), ("by outputs", known)):
                report, tensors = made(
                    base, tuned, before, rank, path, Path(folder) / "lora.safetensors"
                )
                images = drawn(tensors)
                far = [
                    float((one - two).square().sum().sqrt() / (old - two).square().sum().sqrt())
                    for one, two, old in zip(images, goal, start, strict=True)
                ]
                by_output = report.weighted_error
                told = "" if by_output is None else f"{by_output:.3f}"
                each = ", ".join(f"{one:.3f}" for one in far)
                mean = f"{sum(far) / len(far):.3f}"
                say(f"| {rank} | {title[3:]} | {report.error:.3f} | {told} | {mean} | {each} |")
                lines = (f"rank {rank}", title, f"distance {sum(far) / len(far):.2f}")
                columns.append(Column(lines, images[0][:SHOWN]))
        columns.append(Column(("tuned",), goal[0][:SHOWN]))
    contact_sheet(columns).save(PICTURE, optimize=True)


def say(line: str) -> None:
    """A line of the table, as soon as it is known."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def made(
    base: FileSource,
    tuned: FileSource,
    before: Mapping[str, Tensor],
    rank: int,
    activations: Path | None,
    output: Path,
) -> tuple[Report, dict[str, Tensor]]:
    """Return the report of an extraction, and the base's tensors with its LoRA added."""
    if activations is None:
        plan = plan_file(base, tuned, rank, output=output, force=True)
        report = extract_file(plan, base, tuned, output, force=True)
    else:
        with open_source(activations) as known:
            plan = plan_file(base, tuned, rank, output=output, force=True, activations=known)
            report = extract_file(plan, base, tuned, output, force=True)
    with open_source(output) as lora:
        return report, apply(base, before, lora)


def drawn(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The ten digits, from the noise of each seed."""
    model = load_model(tensors)
    return [sample_digits(model, starting_noise(seed)) for seed in SEEDS]


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
