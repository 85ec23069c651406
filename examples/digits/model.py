"""The network: Stable Diffusion's UNet in miniature, on pixels instead of latents.

The modules are nested so that ``state_dict()`` gives exactly the names of a Stable Diffusion 1
checkpoint (``model.diffusion_model.input_blocks.1.0.in_layers.2.weight``): whatever works on this
file has met the names, the kernels and the linears of the real one. Two levels, 16 and 8 pixels
wide; transformers, between 1x1 convolutions, where the picture is 8 pixels wide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 16
"""Height and width of an image, pixels."""
DIGITS = 10
TOKENS = 4
"""Tokens of one digit's prompt; rows ``TOKENS * digit`` onwards of the token table."""

_CHANNELS = (32, 64)
_TIME = 128
_CONTEXT = 64
_HEADS = 2
_GROUPS = 8


class DigitModel(nn.Module):
    """UNet and token table under the names of a Stable Diffusion checkpoint.

    The table takes the text encoder's place: random, never trained, the same in every fine-tune.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": UNet()})
        tokens = nn.Embedding(DIGITS * TOKENS, _CONTEXT).requires_grad_(False)
        self.cond_stage_model = _nested("transformer.text_model.embeddings.token_embedding", tokens)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict the velocity ``noise - image`` at time ``t``.

        Args:
            x: Noisy images (batch, 3, SIZE, SIZE), ``(1 - t) * image + t * noise``.
            t: Times (batch,), 0 for the image to 1 for pure noise.
            context: Prompts (batch, TOKENS, width), from `prompt`.

        Returns:
            Velocities, shaped like ``x``.
        """
        return self.model["diffusion_model"](x, t, context)

    def prompt(self, digits: Tensor) -> Tensor:
        """Look the digits' tokens up.

        Args:
            digits: Integers 0 to 9 (batch,).

        Returns:
            Context (batch, TOKENS, width).
        """
        rows = digits[:, None] * TOKENS + torch.arange(TOKENS, device=digits.device)
        table = self.get_submodule("cond_stage_model.transformer.text_model.embeddings")
        return table.get_submodule("token_embedding")(rows)


class UNet(nn.Module):
    """Residual blocks and transformers down and up again, with skips across."""

    def __init__(self) -> None:
        super().__init__()
        fine, coarse = _CHANNELS
        self.time_embed = nn.Sequential(nn.Linear(fine, _TIME), nn.SiLU(), nn.Linear(_TIME, _TIME))
        self.input_blocks = nn.ModuleList(
            [
                Block(nn.Conv2d(3, fine, 3, padding=1)),
                Block(ResBlock(fine, fine)),
                Block(Downsample(fine)),
                Block(ResBlock(fine, coarse), Transformer(coarse)),
            ]
        )
        self.middle_block = Block(
            ResBlock(coarse, coarse), Transformer(coarse), ResBlock(coarse, coarse)
        )
        self.output_blocks = nn.ModuleList(
            [
                Block(ResBlock(coarse + coarse, coarse), Transformer(coarse)),
                Block(ResBlock(coarse + fine, coarse), Transformer(coarse), Upsample(coarse)),
                Block(ResBlock(coarse + fine, fine)),
                Block(ResBlock(fine + fine, fine)),
            ]
        )
        self.out = nn.Sequential(
            nn.GroupNorm(_GROUPS, fine), nn.SiLU(), _zeroed(nn.Conv2d(fine, 3, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Velocities (batch, 3, SIZE, SIZE); the arguments are `DigitModel.forward`'s."""
        time = self.time_embed(_sinusoids(t, _CHANNELS[0]))
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, time, context)
            skips.append(x)
        x = self.middle_block(x, time, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time, context)
        return self.out(x)


class Block(nn.ModuleList):
    """One numbered block: hands each part what it takes."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(parts)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Run the parts on features (batch, channels, height, width)."""
        for part in self:
            if isinstance(part, ResBlock):
                x = part(x, time)
            elif isinstance(part, Transformer):
                x = part(x, context)
            else:
                x = part(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions, the time's shift between them, and a skip."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(_TIME, outer))
        # The Identity is Stable Diffusion's dropout: it makes the convolution number 3.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, outer),
            nn.SiLU(),
            nn.Identity(),
            _zeroed(nn.Conv2d(outer, outer, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Features (batch, outer, height, width) from ``x`` and the time's (batch, width)."""
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Transformer(nn.Module):
    """One transformer block over the pixels, between 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels)])
        self.proj_out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features like ``x`` (batch, channels, height, width)."""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, _CONTEXT)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens like ``x`` (batch, pixels, channels)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention from ``x`` to ``context``."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens like ``x`` (batch, pixels, channels); ``context`` is (batch, tokens, width)."""
        q, k, v = (
            layer(source).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        heads = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A gated hidden layer, four times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens like ``x`` (batch, pixels, channels)."""
        return self.net(x)


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pixels, outer) from (batch, pixels, inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height / 2, width / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 2 * height, 2 * width)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """Cosines and sines (batch, width) of times in 0..1, spread over Stable Diffusion's 0..1000."""
    steps = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    angles = 1000 * t[:, None] * torch.exp(-math.log(10_000) * steps / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that starts as zero, so that its branch starts as the identity."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _nested(path: str, module: nn.Module) -> nn.Module:
    """The module at the end of a dotted path of plain containers."""
    for name in reversed(path.split(".")):
        module = nn.ModuleDict({name: module})
    return module
