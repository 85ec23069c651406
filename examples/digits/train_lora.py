"""Train a LoRA and a DoRA of the digits' base on neon digits, and draw how they learn.

    python -m lorakit.examples.digits.train_lora --output examples/digits

The base is frozen: what is trained is a low-rank path beside each layer, a fraction of the numbers
that the full fine-tune moves. The files are ordinary ones; `lorakit demo` draws with them. Needs
scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...lora_ops import Adapter, Layer, LoraLayer, collect, inject, open_source, save_adapter
from ...lora_ops.adapters.layers import DoraLayer
from ...version import __version__
from .demo import BASE, TUNED, tensors_of
from .learning import Course, learning_picture
from .sample import load_model
from .train import fit, load_fields, neon

RANK = 8
TARGETS = ("*.time_embed.*", "*_blocks.*")
"""All linear and convolution layers but the last, which has three channels."""
BATCH = 32
RATES = {"full": 1e-3, "lora": 5e-3, "dora": 5e-3}
"""Highest learning rates: paths that start at zero bear more than trained weights."""
TITLES = {"lora": "LoRA", "dora": "DoRA"}
PICTURE = "training.png"

log = logging.getLogger(__name__)


def train_full(base: Mapping[str, Tensor], images: Tensor, digits: Tensor, **how: int) -> Course:
    """Train all weights, as the tuned file was, for the course alone."""
    model = load_model(base)
    model.model.requires_grad_(True)
    _, losses = fit(model, images, digits, rate=RATES["full"], batch=BATCH, **how)
    return Course("all weights", _trained(model), losses)


def train_adapter(
    kind: str, base: Mapping[str, Tensor], images: Tensor, digits: Tensor, *, steps: int, seed: int
) -> tuple[Adapter, Course]:
    """Train a path beside each layer of the frozen base.

    Args:
        kind: lora or dora.
        base: The checkpoint's tensors.
        images: (count, 3, SIZE, SIZE) in -1..1.
        digits: What they show (count,), 0 to 9.
        steps: Batches to see.
        seed: Of the paths' start, of batches, noise and times.

    Returns:
        The averaged adapter, float16, and how it came about.
    """
    model = load_model(base)
    generator = torch.Generator().manual_seed(seed)
    inject(model.model, TARGETS, RANK, kind=kind, init="kaiming", generator=generator)
    course = Course(f"{TITLES[kind]}, rank {RANK}", _trained(model), [])
    average, losses = fit(
        model, images, digits, steps=steps, rate=RATES[kind], seed=seed, batch=BATCH
    )
    with torch.no_grad():
        for key, value in average.items():
            model.get_parameter(key).copy_(value)
    adapter = collect(model.model)
    halves = {target: _half(layer) for target, layer in adapter.layers.items()}
    return replace(adapter, layers=halves), replace(course, losses=losses)


def _trained(model: torch.nn.Module) -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


def _half(layer: Layer) -> Layer:
    if isinstance(layer, DoraLayer):
        return replace(layer, inner=_half(layer.inner), magnitude=layer.magnitude.half())
    assert isinstance(layer, LoraLayer)  # noqa: S101  what `collect` gives beside DoRA
    return replace(layer, up=layer.up.half(), down=layer.down.half())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both, write both, and draw how they learned beside the full fine-tune.

    Args:
        arguments: The command line's words; None for the program's own.
    """
    parser = argparse.ArgumentParser(description="Train lora.safetensors and dora.safetensors.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--steps", type=int, default=300, help="batches, each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)

    fields, digits = load_fields()
    images = 2 * neon(fields) - 1
    with open_source(BASE) as base, open_source(TUNED) as tuned:
        before, after = tensors_of(base), tensors_of(tuned)
    how = {"steps": options.steps, "seed": options.seed}
    courses = [train_full(before, images, digits, **how)]
    for kind in TITLES:
        adapter, course = train_adapter(kind, before, images, digits, **how)
        courses.append(course)
        path = options.output / f"{kind}.safetensors"
        save_adapter(adapter, path, force=True, version=__version__)
        log.info("wrote %s, %d of %d numbers", path, course.parameters, courses[0].parameters)
    picture = options.output / PICTURE
    learning_picture(courses, before, after).save(picture)
    log.info("wrote %s", picture)


if __name__ == "__main__":
    main()
