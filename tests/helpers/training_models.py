"""A small model with every kind of layer that a path can run beside, and what is done to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Queries and keys, as models call them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.to_q(x)) * self.to_k(x)


class Model(nn.Module):
    """Token numbers (batch, 16) to (batch, 6, 2, 4, 4)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.table = nn.Embedding(20, width, padding_idx=0)
        self.attn = Attention(width)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, 10, 3, stride=2, padding=1, padding_mode="circular")
        self.proj = nn.Conv2d(10, 8, 1, bias=False)
        self.space = nn.Conv3d(4, 6, (1, 2, 2), padding=(0, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.attn(self.table(tokens)))
        image = x.mT.reshape(len(tokens), -1, 4, 4)
        image = self.proj(torch.relu(self.conv(image)))
        return self.space(image.reshape(len(tokens), 4, 2, 2, 2))


def model(seed: int = 0) -> Model:
    """The model with weights of a seed."""
    torch.manual_seed(seed)
    return Model()


def tokens(seed: int = 1, batch: int = 5) -> Tensor:
    """What goes into it."""
    return torch.randint(0, 20, (batch, 16), generator=torch.Generator().manual_seed(seed))


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name."""
    return {name: one for name, one in module.named_parameters() if one.requires_grad}


def train(module: nn.Module, steps: int = 6, rate: float = 0.05) -> list[float]:
    """Descend on a target that is always the same; return the losses."""
    inputs = tokens()
    wanted = torch.randn(module(inputs).shape, generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.Adam(trained_parameters(module).values(), rate)
    losses: list[float] = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (module(inputs) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses
