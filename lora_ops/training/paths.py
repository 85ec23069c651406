"""What is trained: a low-rank path beside a frozen layer, and DoRA's magnitudes over it.

LoRA (Hu et al., 2021, arXiv:2106.09685): h = W x + (alpha / rank) up down x. DoRA (Liu et al., 2024,
arXiv:2402.09353): h = m * (W + delta) x / |W + delta|, the length by output channel and, as the
paper's section 4.3 has it, without a gradient of its own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..adapters.layers import DoraLayer, Layer, LoraLayer


class Frozen(Protocol):
    """What a path needs of the frozen layer that it runs beside."""

    def own(self, input: Tensor, plain: Tensor | None = None) -> Tensor:
        """What the weight without any path makes of an input, without the bias."""
        ...

    def low_rank(self, input: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
        """The output of a change factor * up @ down of the weight."""
        ...

    def by_channel(self, numbers: Tensor) -> Tensor:
        """One number an output channel, in a shape that multiplies the output."""
        ...

    def dense(self) -> Tensor:
        """The weight without any path, float32, without a gradient."""
        ...


class LoraPath(nn.Module):
    """scale * up(down(x)), with a strength that may change at any time.

    Attributes:
        up: (out, rank, 1...); trained.
        down: (rank, in, *kernel); trained.
        alpha: The number behind the scale, alpha / rank; None: scale 1.
        strength: Factor on the path, any finite number.
        enabled: Whether the path adds anything.
        merged: Whether the change is in the weight instead of beside it.
    """

    def __init__(
        self, up: Tensor, down: Tensor, alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Parameter(up)
        self.down = nn.Parameter(down)
        self.alpha = alpha
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.strength = 1.0
        self.enabled = True
        self.merged = False

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]

    @property
    def is_active(self) -> bool:
        """Whether it has to be added to the layer's output."""
        return self.enabled and not self.merged

    def factors(self) -> tuple[Tensor, Tensor]:
        """The factors (out, r, 1...) and (r, in, *kernel) whose product, times scale, is the change."""
        return self.up, self.down

    def contribution(self, frozen: Frozen, input: Tensor, plain: Tensor) -> Tensor:
        """Return what the path adds to the layer's output at its strength, in the factors' dtype.

        Args:
            frozen: The layer.
            input: Its input.
            plain: The layer's own output.
        """
        del plain
        return self._product(frozen, self.dropout(self._wide(input)))

    def change(self, weight: Tensor) -> Tensor:
        """Return what the path adds to the weight at its strength; has a gradient.

        Args:
            weight: (out, in), without any path, float32.
        """
        del weight
        return self._delta() * self.strength

    def layer(self) -> Layer:
        """What the path is in a file; detached, sharing memory."""
        up, down = self.factors()
        scale = None if self.alpha is None else self.scale * down.shape[0]
        return LoraLayer(up.detach(), down.detach(), scale)

    def _delta(self) -> Tensor:
        """Scale * up @ down, (out, in * kernel), float32."""
        up, down = self.factors()
        return up.float().flatten(1) @ down.float().flatten(1) * self.scale

    def _product(self, frozen: Frozen, input: Tensor) -> Tensor:
        return frozen.low_rank(input, *self.factors(), self.scale * self.strength)

    def _wide(self, input: Tensor) -> Tensor:
        """The input in the factors' dtype, unless autocast decides; indices stay as they are."""
        if torch.is_autocast_enabled(input.device.type) or not input.is_floating_point():
            return input
        return input.to(self.down.dtype)


class DifferencePath(LoraPath):
    """A path that starts from factors which are not zero and adds what they have become since.

    PiSSA (Meng et al., 2024, arXiv:2404.02948) starts from the weight's own leading directions and
    takes them off the weight; here the weight is not touched, and they are taken off the path.
    """

    def __init__(
        self, up: Tensor, down: Tensor, alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__(up.clone(), down.clone(), alpha, dropout)
        self.register_buffer("start_up", up, persistent=False)
        self.register_buffer("start_down", down, persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both products side by side: twice the rank."""
        up = torch.cat([self.up, -self.get_buffer("start_up")], dim=1)
        return up, torch.cat([self.down, self.get_buffer("start_down")], dim=0)


class DoraPath(LoraPath):
    """The low-rank path, and a magnitude by output channel.

    Attributes:
        magnitude: (out,); trained.
    """

    def __init__(
        self,
        magnitude: Tensor,
        up: Tensor,
        down: Tensor,
        alpha: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(up, down, alpha, dropout)
        self.magnitude = nn.Parameter(magnitude)

    def contribution(self, frozen: Frozen, input: Tensor, plain: Tensor) -> Tensor:
        """Return what takes the layer's output towards DoRA's, at its strength."""
        dropped = self.dropout(self._wide(input))
        is_dropping = self.training and not isinstance(self.dropout, nn.Identity)
        own = frozen.own(dropped.to(input.dtype)) if is_dropping else frozen.own(input, plain)
        ratio = self.magnitude / self._length(frozen.dense())
        turned = frozen.by_channel(self.strength * (ratio - 1)) * own
        return turned + frozen.by_channel(ratio) * self._product(frozen, dropped)

    def change(self, weight: Tensor) -> Tensor:
        """Return what takes the weight towards DoRA's, at its strength; has a gradient."""
        ratio = (self.magnitude.float() / self._length(weight))[:, None]
        return self.strength * (ratio * (weight + self._delta()) - weight)

    def layer(self) -> Layer:
        """What the path is in a file; detached, sharing memory."""
        shape = [-1, *(1 for _ in self.down.shape[1:])]
        return DoraLayer(super().layer(), self.magnitude.detach().reshape(shape))

    def _length(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.linalg.vector_norm(weight.flatten(1) + self._delta(), dim=1)
