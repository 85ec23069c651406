"""Frozen linear layers in 4 or 8 bits: stored narrow, multiplied out each time they are used.

NF4, block by block and with the blocks' sizes quantised in turn, as in QLoRA (Dettmers et al., 2023,
arXiv:2305.14314, sections 3 and appendix E); and integers of 8 bits by row. In torch alone, on any
device.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Quantiles of the normal distribution with an exact zero, from -1 to 1 (QLoRA, appendix E).
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_BLOCK = 64  # numbers that share a size
_SIZES = 256  # sizes that share a scale


class StoredLinear(nn.Module):
    """A frozen linear layer whose weight is stored in 4 or 8 bits.

    Its output is that of the stored numbers, in the input's dtype; gradients reach the input and
    the bias, never the weight, which is multiplied out again on the way back instead of kept.

    Attributes:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: The bias of the layer that it replaces; None if that has none.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias

    def dequantised(self) -> Tensor:
        """The weight (out, in) that the stored numbers stand for, float32."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """Input (…, in) to output (…, out)."""
        output = cast("Tensor", _Product.apply(input, self))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the weight takes."""
        return sum(one.numel() * one.element_size() for one in self.buffers())

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Nf4Linear(StoredLinear):
    """4 bits a number and 8.1 bits for every 64 of them: 0.517 bytes a number."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        flat = weight.detach().float().flatten()
        flat = functional.pad(flat, (0, -len(flat) % _BLOCK)).reshape(-1, _BLOCK)
        sizes = flat.abs().amax(dim=1)
        mean = sizes.mean()
        spread = functional.pad(sizes - mean, (0, -len(sizes) % _SIZES)).reshape(-1, _SIZES)
        steps = spread.abs().amax(dim=1) / 127
        self.register_buffer("mean", mean)
        self.register_buffer("steps", steps)
        self.register_buffer("sizes", _rounded(spread, steps).flatten()[: len(sizes)].clone())
        self.register_buffer("levels", torch.tensor(_NF4, device=weight.device))
        # Codes are relative to the sizes as stored, which are rounded.
        self.register_buffer("codes", self._coded(flat / self._block_sizes()[:, None]))

    def dequantised(self) -> Tensor:
        """The weight (out, in) that the stored numbers stand for, float32."""
        codes, levels = self.get_buffer("codes"), self.get_buffer("levels")
        pairs = torch.stack([codes >> 4, codes & 15], dim=-1).int()
        flat = levels.index_select(0, pairs.flatten()).reshape(-1, _BLOCK)
        flat = flat * self._block_sizes()[:, None]
        count = self.out_features * self.in_features
        return flat.flatten()[:count].reshape(self.out_features, self.in_features)

    def _block_sizes(self) -> Tensor:
        sizes = self.get_buffer("sizes").float()
        steps = self.get_buffer("steps").repeat_interleave(_SIZES)[: len(sizes)]
        sizes = sizes * steps + self.get_buffer("mean")
        return torch.where(sizes > 0, sizes, torch.ones_like(sizes))

    def _coded(self, shares: Tensor) -> Tensor:
        """The nearest level of each number, two of them in a byte."""
        levels = self.get_buffer("levels")
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(shares.flatten(), between).to(torch.uint8)
        return (codes[0::2] << 4) | codes[1::2]


class Int8Linear(StoredLinear):
    """8 bits a number and one size for each row."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        wide = weight.detach().float()
        steps = wide.abs().amax(dim=1) / 127
        self.register_buffer("steps", steps)
        self.register_buffer("codes", _rounded(wide, steps))

    def dequantised(self) -> Tensor:
        """The weight (out, in) that the stored numbers stand for, float32."""
        return self.get_buffer("codes").float() * self.get_buffer("steps")[:, None]


class _Product(torch.autograd.Function):
    """Input times the weight, which is not kept for the way back."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: StoredLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.dequantised().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.dequantised().to(gradient.dtype), None


STORES: dict[str, type[StoredLinear]] = {"nf4": Nf4Linear, "int8": Int8Linear}


def _rounded(numbers: Tensor, steps: Tensor) -> Tensor:
    """Whole steps, -127 to 127, by row; a row of zeros has steps of 0."""
    whole = numbers / torch.where(steps > 0, steps, torch.ones_like(steps))[:, None]
    return whole.round().clamp(-127, 127).to(torch.int8)
