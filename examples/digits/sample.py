"""Pictures from the network: load a checkpoint, draw noise, follow the velocity to the image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .model import DIGITS, SIZE, DigitModel


def load_model(tensors: Mapping[str, Tensor]) -> DigitModel:
    """Build the network around a checkpoint's tensors.

    Args:
        tensors: Every tensor of `base.safetensors` or of a fine-tune under its own name, any
            float dtype; not changed.

    Returns:
        The network, float32, on the CPU, ready to sample and not to train.

    Raises:
        RuntimeError: A name is missing, unknown, or has another shape (torch's own message).
    """
    with torch.device("meta"):
        model = DigitModel()
    model.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return model.requires_grad_(False)


def starting_noise(seed: int = 11) -> Tensor:
    """Noise to start from, one picture a digit: float32 (10, 3, SIZE, SIZE), standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(DIGITS, 3, SIZE, SIZE, generator=generator)


def sample_digits(model: DigitModel, noise: Tensor, steps: int = 24) -> Tensor:
    """Sample the ten digits, each from its own noise; nothing is drawn here.

    Args:
        model: From `load_model`.
        noise: (10, 3, SIZE, SIZE), from `starting_noise`; row i becomes digit i.
        steps: Euler steps from noise to image.

    Returns:
        Images (10, 3, SIZE, SIZE), float32 in 0..1.
    """
    with torch.inference_mode():
        context = model.prompt(torch.arange(DIGITS))
        x = noise
        for time in torch.linspace(1, 0, steps + 1)[:-1]:
            x = x - model(x, time.expand(DIGITS), context) / steps
        return ((x + 1) / 2).clamp(0, 1)
