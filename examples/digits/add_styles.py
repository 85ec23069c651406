"""Add two styles by several methods, draw the digits with each sum, and say how much of both is left.

    python -m lorakit.examples.digits.add_styles --output /tmp/styles

The neon LoRA is `lora.safetensors`; one of framed digits is trained first, in the same way, in a minute. Needs
scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...lora_ops import Term, add, compare_several, decode, open_source, save_adapter, scale
from ...version import __version__
from .demo import BASE, apply, tensors_of
from .picture import Column, contact_sheet
from .sample import load_model, sample_digits, starting_noise
from .train import framed, load_fields
from .train_lora import train_adapter

NEON = Path(__file__).parent / "lora.safetensors"
METHODS: dict[str, tuple[str, dict[str, float | str]]] = {
    "sum": ("sum", {}),
    **{title: ("sum", {}) for title in ("sum, neon 1.2", "sum, frame 1.2")},
    "average": ("average", {}),
    "energy": ("energy", {}),
    "np": ("np", {"mu": 1e6}),
    "np, mu 0.5": ("np", {}),
    "np, 2 directions": ("np", {"mu": 1e6, "directions": 2}),
    "np, neon gives way": ("np", {"mu": 1e6}),
    "core ties": ("ties", {}),
    "core ties, 0.5": ("ties", {"density": 0.5}),
    "core ties, 1": ("ties", {"density": 1}),
    "core magnitude": ("magnitude", {}),
    "core dare": ("dare", {}),
    "unit dare": ("dare", {"scope": "units"}),
    "core della": ("della", {}),
    "core sce": ("sce", {}),
    "tsv": ("tsv", {}),
    "iso": ("iso", {}),
    "knots": ("knots", {}),
    "ctm": ("ctm", {}),
    "lego": ("lego", {}),
}
"""What each sum is called, its method and what that is given. The frame is first: in `np` the first gives way."""
TURNED = "np, neon gives way"
"""That with the neon one first."""
STRENGTHS = {"sum, neon 1.2": (1.0, 1.2), "sum, frame 1.2": (1.2, 1.0)}
"""Of frame and neon, where they are not 1."""
DRAWN = ("sum", "np", "core ties", "tsv")
"""Those in the picture."""
SEEDS = (11, 12)
"""Of the noise; the picture is of the first."""
PICTURE = "adding.png"

log = logging.getLogger(__name__)


def drawn(tensors: dict[str, Tensor]) -> Tensor:
    """Pictures of the digits from several noises: (seeds, 10, 3, SIZE, SIZE) in 0..1."""
    model = load_model(tensors)
    return torch.stack([sample_digits(model, starting_noise(seed)) for seed in SEEDS])


def distances(images: Tensor, base: Tensor, neon: Tensor, frame: Tensor) -> tuple[float, float]:
    """Return how far pictures are from each style's own: 0 there, 1 as far as the base's are.

    Args:
        images: (..., SIZE, SIZE) of the sum.
        base: Of the base, from the same noise.
        neon: Of the neon LoRA alone; counted inside of the frame.
        frame: Of the framed one alone; counted on the frame, a pixel wide.
    """
    edge = torch.ones(images.shape[-2:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    found: list[float] = []
    for style, where in ((neon, ~edge), (frame, edge)):
        apart, whole = (images - style)[..., where], (base - style)[..., where]
        found.append(float(apart.norm() / whole.norm()))
    return found[0], found[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, add, draw, and print a table of distances.

    Args:
        arguments: The command line's words; None for the program's own.
    """
    parser = argparse.ArgumentParser(description="Add two styles by several methods.")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    trained = options.output / "frame.safetensors"

    with open_source(BASE) as base, open_source(NEON) as neon:
        before = tensors_of(base)
        if not trained.exists():
            fields, digits = load_fields()
            images = 2 * framed(fields) - 1
            adapter, _ = train_adapter("lora", before, images, digits, steps=300, seed=2)
            save_adapter(adapter, trained, version=__version__)
        with open_source(trained) as frame:
            alone = {"base": before, "neon": apply(base, before, neon)}
            alone["frame"] = apply(base, before, frame)
            pictures = {name: drawn(tensors) for name, tensors in alone.items()}
            terms = [Term(decode(one), name=one.name) for one in (frame, neon)]
            total = compare_several([one.adapter for one in terms]).total
            log.info("frame and neon: %s", total.to_dict())
            log.info("| method | neon | frame | norm | at the norm of the sum: neon | frame |")
            log.info("|---|---|---|---|---|---|")
            styles = tuple(pictures[name] for name in alone)
            for title, (method, given) in METHODS.items():
                order = [
                    Term(one.adapter, dict.fromkeys(one.adapter.layers, strength), one.name)
                    for one, strength in zip(terms, STRENGTHS.get(title, (1.0, 1.0)), strict=True)
                ]
                order = order[::-1] if title == TURNED else order
                summed, report = add(order, method=method, parameters=given)
                norm = math.hypot(*(one.norm for one in report.layers)) / total.sum_norm
                path = options.output / f"{title.replace(', ', '_').replace(' ', '_')}.safetensors"
                found: list[float] = []
                for strength in (1 / norm, 1):  # the last one is drawn
                    save_adapter(scale(summed, strength)[0], path, force=True, version=__version__)
                    with open_source(path) as source:
                        pictures[title] = drawn(apply(base, before, source))
                    found = [*distances(pictures[title], *styles), *found]
                log.info(
                    "| %s | %.2f | %.2f | %.2f | %.2f | %.2f |", title, *found[:2], norm, *found[2:]
                )
    columns = [
        Column((title, f"neon {neon_:.2f}", f"frame {frame_:.2f}"), images[0])
        for title, images in pictures.items()
        if title in alone or title in DRAWN
        for neon_, frame_ in [distances(images, *styles)]
    ]
    contact_sheet(columns).save(options.output / PICTURE)
    log.info("wrote %s", options.output / PICTURE)


if __name__ == "__main__":
    main()
