"""Which block of its model each module of a file lies in, read off the names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ....models.architectures import recognise_layers, unet_names
from ...formats import component, flat_name
from .layouts import ANY_STACK, LAYOUTS, Layout, Section

_TE = re.compile(r"te\d?:")
_CLIP_H = "text_encoders.clip_h."
_NATIVE = {to.replace(".", "_"): of.replace(".", "_") for to, of in unet_names().diffusers.items()}


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a model that has a strength of its own.

    Attributes:
        order: Index of its section in the layout.
        index: Its number within the section.
        section: The section itself.
    """

    order: int
    index: int
    section: Section

    @property
    def label(self) -> str:
        """What it is called: `IN04`, `D12`, `BASE`."""
        return self.section.label + (f"{self.index:02}" if self.section.numbered else "")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the modules of a file lie.

    Attributes:
        layout: Of the file's model.
        modules: The names of the modules in each block that the file has, in order of execution.
            Modules outside of all blocks are in none.
    """

    layout: Layout
    modules: Mapping[Block, frozenset[str]]

    @property
    def labels(self) -> dict[str, Block]:
        """The file's blocks by label, in order of execution."""
        return {block.label: block for block in self.modules}

    def __str__(self) -> str:
        runs: list[list[Block]] = []
        for block in self.modules:
            last = runs[-1][-1] if runs else None
            if last and (last.order, last.index + 1) == (block.order, block.index):
                runs[-1].append(block)
            else:
                runs.append([block])
        return ", ".join("-".join(dict.fromkeys((run[0].label, run[-1].label))) for run in runs)


def locate(names: Iterable[str]) -> Blocks | None:
    """Find the layout of a file's model and the block of each of its modules.

    Args:
        names: All module names of an adapter of any format, or targets. Blocks with diffusers'
            names are numbered as in Stable Diffusion 1, 2 and XL.

    Returns:
        None where the names show no numbered block, or several stacks of them that no layout knows.
    """
    flats = {name: flat(name) for name in names}
    # What tells models apart are their modules: not biases beside them, nor a VAE, as checkpoints have.
    layers = [
        flat_name(name).removesuffix("_bias") for name in flats if not name.startswith("vae.")
    ]
    likeliest = recognise_layers(dict.fromkeys(layers)).possible[:1]
    known = {one.name for one in likeliest}
    for layout in (*LAYOUTS, *_lone_stack(flats.values())):
        of = {name: block for name, plain in flats.items() if (block := _block(plain, layout))}
        blocks = sorted({*of.values()}, key=lambda block: (block.order, block.index))
        if any(one.section.numbered for one in blocks) and _is_possible(layout, blocks, known):
            modules: dict[Block, set[str]] = {block: set() for block in blocks}
            for name, block in of.items():
                modules[block].add(name)
            return Blocks(layout, {block: frozenset(held) for block, held in modules.items()})
    return None


def flat(name: str) -> str:
    """`formats.flat_name`, with the blocks of a UNet by their original names.

    Names of text encoders begin with `te1:`, `te2:` or `te3:`, or `te:` if which is not known.
    """
    if name.startswith(_CLIP_H):  # the only encoder of Stable Diffusion 2
        name = name.replace("clip_h", "clip_l", 1)
    plain = flat_name(name)
    if component(name) == "te":
        return plain if _TE.match(plain) else f"te:{plain}"
    ends = (at for at in range(len(plain), 0, -1) if plain[at : at + 1] in ("_", ""))
    known = next((end for end in ends if plain[:end] in _NATIVE), None)
    return plain if known is None else _NATIVE[plain[:known]] + plain[known:]


def _is_possible(layout: Layout, blocks: Iterable[Block], known: Collection[str]) -> bool:
    if layout.known_by is None:
        return True
    within = all(block.index < (block.section.count or math.inf) for block in blocks)
    return within and layout.known_by in known


def _block(plain: str, layout: Layout) -> Block | None:
    for order, section in enumerate(layout.sections):
        if match := re.match(section.pattern, plain):
            number = match[1] if match.re.groups else None
            return Block(order, section.rest if number is None else int(number), section)
    return None


def _lone_stack(flats: Iterable[str]) -> list[Layout]:
    """The layout of an unknown model, if it has a single stack of blocks."""
    stacks = {match[1] for plain in flats if (match := re.match(ANY_STACK, plain))}
    if len(stacks) != 1:
        return []
    return [Layout("a model unknown here", (Section("B", rf"{stacks.pop()}_(\d+)(?:_|$)"),))]
