"""Tensors of any bit pattern, compared bit for bit: NaNs equal themselves here."""

from __future__ import annotations

import torch
from torch import Tensor


def raw(tensor: Tensor) -> bytes:
    """The elements' bytes, in C order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def noise(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bit pattern that the dtype has, so NaN and infinity too."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).bool()
    like = torch.empty(shape, dtype=dtype)
    size = like.numel() * like.element_size()
    random = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
    return random.view(dtype).reshape(shape)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal in shape, dtype and every bit."""
    assert (ours.shape, ours.dtype, raw(ours)) == (theirs.shape, theirs.dtype, raw(theirs))
