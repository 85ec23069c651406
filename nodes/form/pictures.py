"""From a picture to the host's IMAGE, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def as_image(picture: Image) -> Tensor:
    """Return an RGB picture as (1, height, width, 3), float32, 0 to 1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).unsqueeze(0)


def from_image(image: Tensor) -> Image:
    """Return the first picture of an IMAGE, (count, height, width, channels), 0 to 1, as RGB."""
    from PIL import Image as Pictures

    numbers = (image[0].detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Pictures.fromarray(numbers[..., :3].copy())
