"""The two names of a Stable Diffusion UNet's blocks: the original ones and those of diffusers.

The original numbers blocks through (``input_blocks.4.1``), diffusers by level and kind
(``down_blocks.1.attentions.0``): which is which depends on the residual blocks of each level.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from .renames import Packing, renamed, same, within

STANDARD = (2, 2, 2, 2)
"""Residual blocks per level of Stable Diffusion 1 and 2; SDXL has the first three."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a UNet.

    Attributes:
        residual: Number of residual blocks in each level on the way down; the way up has one more.
        attention: Levels whose residual blocks have an attention each.
    """

    residual: tuple[int, ...]
    attention: tuple[int, ...]


_EDGES = (
    ("input_blocks.0.0", "conv_in"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "class_embedding.linear_1"),
    ("label_emb.0.2", "class_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)

# Within a block of attention both names are the same.
_ATTENTION = (
    *("norm", "proj_in", "proj_out"),
    *(
        f"transformer_blocks.{{}}.{attention}.to_{part}"
        for attention in ("attn1", "attn2")
        for part in ("q", "k", "v", "out.0")
    ),
    *(f"transformer_blocks.{{}}.{part}" for part in ("ff.net.0.proj", "ff.net.2")),
    *(f"transformer_blocks.{{}}.norm{number}" for number in (1, 2, 3)),
)


@dataclass(frozen=True, slots=True)
class UnetNames:
    """Translates module and parameter names of one UNet, without any prefix, both ways."""

    native: Mapping[str, str]
    diffusers: Mapping[str, str]

    def to_diffusers(self, name: str) -> str | None:
        """The name in diffusers, or None for what diffusers' UNet does not have."""
        return _translate(name, self.native)

    def to_native(self, name: str) -> str | None:
        """The original name, or None for what the original UNet does not have."""
        return _translate(name, self.diffusers)


def unet_names(names: Collection[str] = ()) -> UnetNames:
    """Return the table of the UNet whose parameters are called ``names``, in either scheme.

    Args:
        names: All parameter names of the UNet, without prefix. An incomplete list (one without the
            first convolution) does not tell the layout: then it is that of Stable Diffusion.
    """
    residual = _residual_blocks(names)
    return _table([*_EDGES, *_levels(residual, _attended(residual, names))])


@cache
def layout_names(layout: Layout) -> UnetNames:
    """Return the table of a UNet of this depth; also of attentions in levels that have none."""
    depth = len(layout.residual)
    attended = {depth - 1 - level for level in layout.attention}
    return _table([*_EDGES, *_levels(layout.residual, attended)])


def _table(pairs: Sequence[tuple[str, str]]) -> UnetNames:
    return UnetNames(
        native=dict(pairs),
        diffusers={diffusers: native for native, diffusers in pairs},
    )


def is_in_layout(diffusers: str, layout: Layout) -> bool:
    """Whether a module is there: the level of an attention may have none."""
    side, level, kind = (diffusers.split(".") + [""] * 3)[:3]
    if kind != "attentions" or side not in ("down_blocks", "up_blocks"):
        return True
    depth = int(level) if side == "down_blocks" else len(layout.residual) - 1 - int(level)
    return depth in layout.attention


def unet_packings(table: UnetNames) -> tuple[Packing, ...]:
    """Return the modules of a UNet of this layout, each by itself, as a kohya name needs them."""
    there = list(table.native.items())
    back = [(native, diffusers) for diffusers, native in table.diffusers.items()]
    # Where a module has two names on the other side, the pair that both tables have comes first.
    known = set(back)
    mutual = [pair for pair in there if pair in known]
    pairs = dict.fromkeys((*mutual, *there, *back))
    return tuple(one for pair in pairs for one in _modules(*pair))


def _modules(native: str, diffusers: str) -> tuple[Packing, ...]:
    if ".resnets." in diffusers:
        return within(f"{native}.", f"{diffusers}.", renamed(*_RESNET))
    if ".attentions." in diffusers:
        return within(f"{native}.", f"{diffusers}.", same(*_ATTENTION))
    return renamed((native, diffusers))


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        block = ".".join(parts[:length])
        if block in table:
            rest = ".".join(parts[length:])
            other = table[block] if not rest else f"{table[block]}.{rest}"
            return _inside(other, block)
    return None


def _inside(name: str, block: str) -> str:
    """Rename the layers of a residual block; only diffusers says that a block is one."""
    if ".resnets." in name:
        for native, diffusers in _RESNET:
            name = re.sub(rf"\.{re.escape(native)}(?=\.|$)", f".{diffusers}", name)
    elif ".resnets." in block:
        for native, diffusers in _RESNET:
            name = re.sub(rf"\.{diffusers}(?=\.|$)", f".{native}", name)
    return name


def _levels(residual: Sequence[int], attended: Collection[int]) -> list[tuple[str, str]]:
    """The blocks of all levels; ``attended`` are those of the way up that end with an attention."""
    pairs: list[tuple[str, str]] = []
    index = 1
    for level, blocks in enumerate(residual):
        for block in range(blocks):
            pairs.append((f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{block}"))
            pairs.append((f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{block}"))
            index += 1
        pairs.append((f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
        index += 1
    index = 0
    for level, blocks in enumerate(reversed(residual)):
        for block in range(blocks + 1):
            pairs.append((f"output_blocks.{index}.0", f"up_blocks.{level}.resnets.{block}"))
            pairs.append((f"output_blocks.{index}.1", f"up_blocks.{level}.attentions.{block}"))
            index += 1
        pairs += _upsampler(index - 1, level, attended=level in attended)
    return pairs


def _upsampler(index: int, level: int, *, attended: bool) -> list[tuple[str, str]]:
    """The upsampler stands behind the attention, where its block has one."""
    # In the table from diffusers the last of two pairs counts; in the other one both names differ.
    order = (1, 2) if attended else (2, 1)
    diffusers = f"up_blocks.{level}.upsamplers.0.conv"
    return [(f"output_blocks.{index}.{place}.conv", diffusers) for place in order]


def _attended(residual: Sequence[int], names: Collection[str]) -> set[int]:
    """The levels of the way up whose last block has an attention."""
    found: set[int] = set()
    last = -1
    for level, blocks in enumerate(reversed(residual)):
        last += blocks + 1
        marks = (f"output_blocks.{last}.1.norm.", f"up_blocks.{level}.attentions.{blocks}.")
        if any(name.startswith(marks) for name in names):
            found.add(level)
    return found


def _residual_blocks(names: Collection[str]) -> tuple[int, ...]:
    if any(f"{name}.".startswith("input_blocks.0.0.") for name in names):
        indices = _numbers(names, r"input_blocks\.(\d+)\.")
        ends = sorted(_numbers(names, r"input_blocks\.(\d+)\.0\.op(\.|$)") | {max(indices) + 1})
        starts = [0, *ends]
        return tuple(end - start - 1 for start, end in zip(starts, ends, strict=False))
    if any(f"{name}.".startswith("conv_in.") for name in names):
        levels = sorted(_numbers(names, r"down_blocks\.(\d+)\."))
        return tuple(
            len(_numbers(names, rf"down_blocks\.{level}\.resnets\.(\d+)\.")) for level in levels
        )
    return STANDARD


def _numbers(names: Collection[str], pattern: str) -> set[int]:
    found = re.compile(pattern)
    return {int(match[1]) for name in names if (match := found.match(name))}
