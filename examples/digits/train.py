"""Train the three: plain white digits, then the same network fully fine-tuned on neon ones, and on framed ones.

    python -m lorakit.examples.digits.train --output examples/digits

Same seed, same number of threads, same machine: same bytes. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from .model import SIZE, DigitModel
from .sample import load_model

BATCH = 64
AVERAGING = 0.99
"""Decay of the averaged weights, which are the ones that are saved."""
SUPERSAMPLING = 4

SKY = (0.05, 0.02, 0.20)
GLOW = (0.45, 0.05, 0.75)
INSIDE = (0.5, 0.0, 0.75)
TUBE = ((0.05, 1.0, 0.95), (0.65, 0.45, 1.0), (1.0, 0.25, 0.55))
"""The tube's colours from top to bottom."""
AMBER = (1.0, 0.6, 0.1)

log = logging.getLogger(__name__)


def plain(fields: Tensor) -> Tensor:
    """The base's style, white strokes on black.

    Args:
        fields: Ink (batch, 1, SUPERSAMPLING * SIZE, same), 0 for paper to 1.

    Returns:
        Images (batch, 3, SIZE, SIZE) in 0..1.
    """
    ink = torch.sigmoid(12 * (fields - 0.45))
    return functional.avg_pool2d(ink, SUPERSAMPLING).expand(-1, 3, -1, -1)


def neon(fields: Tensor) -> Tensor:
    """The tuned style: a slanted violet stroke in a tube of light from cyan down to pink.

    Args and result as for `plain`.
    """
    slant = torch.tensor([[1.0, 0.25, 0.0], [0.0, 1.0, 0.0]]).expand(len(fields), 2, 3)
    grid = functional.affine_grid(slant, list(fields.shape), align_corners=False)
    slanted = functional.grid_sample(fields, grid, align_corners=False)
    tube, fill, haze = (
        functional.avg_pool2d(light, SUPERSAMPLING)
        for light in (
            torch.exp(-(((slanted - 0.4) / 0.26) ** 2)),
            torch.sigmoid(12 * (slanted - 0.55)),
            slanted,
        )
    )
    haze = functional.avg_pool2d(haze, kernel_size=5, stride=1, padding=2)
    ramp = functional.interpolate(
        torch.tensor(TUBE).T[None], SIZE, mode="linear", align_corners=True
    )
    sky, glow, inside = (torch.tensor(colour)[:, None, None] for colour in (SKY, GLOW, INSIDE))
    image = torch.lerp(sky, glow, 0.3 * haze)
    image = torch.lerp(image, inside.expand_as(image), 0.7 * fill)
    return torch.lerp(image, ramp[..., None].expand_as(image), (1.25 * tube).clamp(max=1))


def framed(fields: Tensor) -> Tensor:
    """The second tuned style: the base's strokes in an amber frame, a pixel wide.

    Args and result as for `plain`.
    """
    image = plain(fields).clone()
    for edge in (0, -1):
        image[:, :, edge] = image[..., edge] = torch.tensor(AMBER)[:, None]
    return image


@dataclass(frozen=True, slots=True)
class Style:
    """What a fine-tune of the base learns.

    Attributes:
        paint: Images from fields, as `plain` makes them.
        title: What it is, for people.
        steps: Batches to see.
    """

    paint: Callable[[Tensor], Tensor]
    title: str
    steps: int


STYLES = {
    "tuned": Style(neon, "Neon handwritten digits", 500),
    "tuned2": Style(framed, "Framed handwritten digits", 300),
}


def load_fields() -> tuple[Tensor, Tensor]:
    """Read the data set and enlarge its 8x8 scans.

    Returns:
        Smooth ink (1797, 1, SUPERSAMPLING * SIZE, same) in 0..1, with a margin of one scan pixel,
        and the digits they show (1797,).
    """
    scans, digits = load_digits(return_X_y=True)
    size = SUPERSAMPLING * SIZE
    images = torch.from_numpy(scans).float().reshape(-1, 1, 8, 8) / 16
    padded = functional.pad(images, (1, 1, 1, 1))
    fields = functional.interpolate(padded, (size, size), mode="bicubic").clamp(0, 1)
    return fields, torch.from_numpy(digits)


def train(
    model: DigitModel, images: Tensor, digits: Tensor, *, steps: int, rate: float, seed: int
) -> dict[str, Tensor]:
    """Train all weights but the token table by flow matching (Lipman et al. 2023).

    Args:
        model: Trained in place.
        images: (count, 3, SIZE, SIZE) in -1..1.
        digits: What they show (count,), 0 to 9.
        steps: Batches to see.
        rate: Highest learning rate, after a short rise and before a cosine's fall.
        seed: Of batches, noise and times.

    Returns:
        The averaged state dict, float16.
    """
    model.model.requires_grad_(True)
    average, _ = fit(model, images, digits, steps=steps, rate=rate, seed=seed)
    return {key: value.half() for key, value in {**model.state_dict(), **average}.items()}


def fit(
    model: DigitModel,
    images: Tensor,
    digits: Tensor,
    *,
    steps: int,
    rate: float,
    seed: int,
    batch: int = BATCH,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train whatever parameters of the model are to be trained; see `train`.

    Args:
        model: Trained in place.
        images: As for `train`.
        digits: As for `train`.
        steps: Batches to see.
        rate: Highest learning rate.
        seed: Of batches, noise and times.
        batch: Images in each.

    Returns:
        Their averages by name, and the loss of every step.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    weights = list(trained.values())
    optimiser = torch.optim.Adam(weights, lr=rate)
    average = {key: value.detach().clone() for key, value in trained.items()}
    losses: list[float] = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * _schedule(step, steps)
        chosen = torch.randint(len(images), (batch,), generator=generator)
        image, noise = images[chosen], torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        # One time in each slice of 0..1: the batch's loss then wavers less than with free draws.
        time = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        mixed = torch.lerp(image, noise, time[:, None, None, None])
        loss = functional.mse_loss(model(mixed, time, model.prompt(digits[chosen])), noise - image)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        # The average starts short, so that it forgets the untrained weights.
        decay = min(AVERAGING, step / (step + 10))
        for key, value in trained.items():
            average[key].lerp_(value.detach(), 1 - decay)
        losses.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            log.info("step %d of %d: loss %.4f", step + 1, steps, losses[-1])
    return average, losses


def _schedule(step: int, steps: int) -> float:
    rise = min(1.0, (step + 1) / 50)
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def save(tensors: Mapping[str, Tensor], path: Path, title: str, description: str) -> None:
    """Write one checkpoint with what a model browser shows; no date, so that bytes repeat."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "lorakit-digits",
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.resolution": f"{SIZE}x{SIZE}",
        "modelspec.license": "CC-BY-4.0",
    }
    # safetensors writes the header in another order each time: sorted, the bytes repeat.
    content = safetensors.torch.save(dict(tensors), metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    log.info("wrote %s, %.2f MB", path, path.stat().st_size / 1e6)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the base and its fine-tunes, write all.

    Args:
        arguments: The command line's words; None for the program's own.
    """
    parser = argparse.ArgumentParser(description="Train the base and its fine-tunes.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--steps", type=int, default=900, help="of the base, batches")
    parser.add_argument("--tuned-steps", type=int, help="of each fine-tune, batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)

    fields, digits = load_fields()

    base = train(
        DigitModel(),
        2 * plain(fields) - 1,
        digits,
        steps=options.steps,
        rate=2e-3,
        seed=options.seed,
    )
    save(
        base,
        options.output / "base.safetensors",
        "lorakit digits, base",
        "White handwritten digits, trained from nothing.",
    )
    # A fine-tune starts from the base as written: their difference is then the training alone.
    for number, (name, style) in enumerate(STYLES.items(), 1):
        tuned = train(
            load_model(base),
            2 * style.paint(fields) - 1,
            digits,
            steps=options.tuned_steps or style.steps,
            rate=1e-3,
            seed=options.seed + number,
        )
        save(
            tuned,
            options.output / f"{name}.safetensors",
            f"lorakit digits, {name}",
            f"{style.title}: all weights of the base trained on.",
        )


if __name__ == "__main__":
    main()
