"""Names that programs of the past, or one alone, gave the tensors of an adapter: today's instead.

Each scheme looks at all names of a file at once and either knows them or does not. What it knows
gets the names that loaders of today read, which is where a changed file is written, too. Sources:
the programs themselves (cloneofsimo/lora 0.1.7, XLabs x-flux) and ComfyUI's `lora_convert.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ...errors import FormatError

Shape = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Modern:
    """A file's tensors under names of today.

    Attributes:
        spelling: Whose the old names are, for people.
        names: The file's own key by the new one; every key of the file is there once.
        added: What the old names imply and no tensor says.
        metadata: Entries that the names do not make superfluous.
    """

    spelling: str
    names: Mapping[str, str]
    metadata: Mapping[str, str]
    added: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def modern(keys: Sequence[str], shape: Shape, metadata: Mapping[str, str]) -> Modern | None:
    """Return today's names of an adapter file; None where it has them already.

    Args:
        keys: All of its keys.
        shape: Gives the shape of one of its tensors.
        metadata: Its string map.

    Raises:
        FormatError: The layers are numbered, and not those of a model that is known.
    """
    for scheme in (_numbered, _processors, _control):
        found = scheme(keys, shape, metadata)
        if found is not None:
            return found
    return None


# --- cloneofsimo's trainer: layers are numbered in the order in which diffusers built them

_PAIR = re.compile(r"(\w+):(\d{1,6}):(up|down)")
_PLACE = re.compile(r"\d{1,6}")
# What its list in a .pt file stands for.
_UNTOLD = "the list"
_UNET_CLASSES = {"CrossAttention", "Attention", "GEGLU"}
_RESNETS = "ResnetBlock2D"
# Sets of classes that the trainer's scripts adapt; a list in a .pt file does not say which.
_SETS = ({"CrossAttention"}, _UNET_CLASSES, {*_UNET_CLASSES, _RESNETS})
_PARTS = ("to_q", "to_k", "to_v", "to_out_0")
_CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")
_GATED = "ff_net_0_proj"
# Of diffusers' first versions, and of later ones.
_ORDERS = (("attn1", _GATED, "attn2"), ("attn1", "attn2", _GATED))
# The levels with their number of transformers and of residual blocks; those of the latter whose
# width changes, so that they have a shortcut. The middle was registered last.
_LEVELS = (
    *((f"down_blocks_{level}", 2 * (level < 3), 2, (0,) * (level in (1, 2))) for level in range(4)),
    *((f"up_blocks_{level}", 3 * (level > 0), 3, (0, 1, 2)) for level in range(4)),
    ("mid_block", 1, 2, ()),
)


def _unet_modules(classes: Collection[str], order: Sequence[str]) -> Iterator[str]:
    attention = _PARTS if {"CrossAttention", "Attention"} & set(classes) else ()
    for level, transformers, resnets, shortcuts in _LEVELS:
        for number in range(transformers):
            block = f"lora_unet_{level}_attentions_{number}_transformer_blocks_0"
            for name in order:
                if name != _GATED:
                    yield from (f"{block}_{name}_{part}" for part in attention)
                elif "GEGLU" in classes:
                    yield f"{block}_{name}"
        for number in range(resnets) if _RESNETS in classes else ():
            last = ("conv_shortcut",) if number in shortcuts else ()
            for part in ("conv1", "time_emb_proj", "conv2", *last):
                yield f"lora_unet_{level}_resnets_{number}_{part}"


def _clip_modules(layers: int) -> Iterator[str]:
    for layer in range(layers):
        yield from (f"lora_te_text_model_encoder_layers_{layer}_self_attn_{p}" for p in _CLIP)


def _numbered(keys: Sequence[str], shape: Shape, metadata: Mapping[str, str]) -> Modern | None:
    """`unet:0:up`; or a list in a .pt file, `0`, `1`, …: an up, its down, the next up."""
    if keys and all(_PLACE.fullmatch(key) for key in keys):
        found = {key: (_UNTOLD, int(key) // 2, ("up", "down")[int(key) % 2]) for key in keys}
    else:
        matches = {key: match for key in keys if (match := _PAIR.fullmatch(key)) is not None}
        found = {key: (match[1], int(match[2]), match[3]) for key, match in matches.items()}
    if not found:
        return None
    held = {place: key for key, place in found.items()}
    numbers: dict[str, int] = {}
    for part, number, _ in held:
        numbers[part] = max(numbers.get(part, 0), number + 1)
    names: dict[str, str] = {}
    for part, count in numbers.items():
        pairs = [(held.get((part, n, "up")), held.get((part, n, "down"))) for n in range(count)]
        whole = [(up, down) for up, down in pairs if up is not None and down is not None]
        if len(whole) < count:
            raise FormatError(
                f"{count - len(whole)} of its {count} numbered layers of `{part}` lack a half; "
                "the file is incomplete"
            )
        sizes = [_size(shape(up), shape(down)) for up, down in whole]
        for module, (up, down) in zip(_listed(part, sizes, metadata), whole, strict=True):
            names |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
    names |= {key: key for key in keys if key not in found}  # vectors of new words
    told = re.compile("|".join(rf"{re.escape(part)}(:\d+:rank)?" for part in numbers))
    kept = {key: text for key, text in metadata.items() if not told.fullmatch(key)}
    return Modern("cloneofsimo's trainer", names, kept)


def _size(up: tuple[int, ...], down: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a weight; zeros where its factors have no such axes."""
    return (up[0], down[1]) if up and len(down) > 1 else (0, 0)


def _listed(
    part: str, sizes: Sequence[tuple[int, int]], metadata: Mapping[str, str]
) -> Sequence[str]:
    """The modules of one component in the order of their numbers, told by sizes."""
    by_fours, rest = divmod(len(sizes), len(_CLIP))
    if part == _UNTOLD:  # all layers of CLIP's attention are of one size
        part = "text_encoder" if len(set(sizes)) == 1 and not rest else "unet"
    known: list[list[str]] = []
    if part == "unet":
        sets = (*_classes(metadata), *_SETS)
        known = [list(_unet_modules(classes, order)) for classes in sets for order in _ORDERS]
    elif part == "text_encoder" and not rest:
        known = [list(_clip_modules(by_fours))]
    for modules in known:
        if len(modules) == len(sizes) and all(
            out == 8 * into
            for module, (out, into) in zip(modules, sizes, strict=True)
            if module.endswith(_GATED)
        ):
            return modules
    raise FormatError(
        f"its {len(sizes)} layers of `{part}` have numbers for names, as cloneofsimo's trainer "
        "gave them, but neither as many nor of the sizes that it trained of Stable Diffusion 1 "
        "or 2; give them names with the program that wrote the file"
    )


def _classes(metadata: Mapping[str, str]) -> Iterator[set[str]]:
    """The classes of layers that the file says were adapted, if it says so."""
    try:
        read: object = json.loads(metadata.get("unet", "null"))
    except (ValueError, RecursionError):
        return
    if isinstance(read, list):
        yield {one for one in cast("list[object]", read) if isinstance(one, str)}


# --- XLabs and USO: Flux under the names of attention processors

_PROCESSOR = re.compile(
    r"(?:diffusion_model\.)?((?:double|single)_blocks\.\d+)\.processor\.(\w+)\.(up|down)\.weight"
)
_PROCESSED = {
    "qkv_lora1": "img_attn.qkv",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1_qkv",
    "proj_lora": "linear2",
}


def _processors(keys: Sequence[str], shape: Shape, metadata: Mapping[str, str]) -> Modern | None:
    names: dict[str, str] = {}
    for key in keys:
        match = _PROCESSOR.fullmatch(key)
        if match is None or match[2] not in _PROCESSED:
            return None
        block, part, factor = match.groups()
        names[f"diffusion_model.{block}.{_PROCESSED[part]}.lora_{factor}.weight"] = key
    return Modern("XLabs", names, metadata) if names else None


# --- Black Forest Labs' control LoRAs: bare names, biases of up, norms to be replaced, a wider input

_INPUT = "img_in"
_CHANGED = (
    (re.compile(r"\.lora_B\.bias$"), ".diff_b"),
    (re.compile(r"_norm\.scale$"), "_norm.set_weight"),
)


def _control(keys: Sequence[str], shape: Shape, metadata: Mapping[str, str]) -> Modern | None:
    up, down = f"{_INPUT}.lora_B.weight", f"{_INPUT}.lora_A.weight"
    if not {up, down} <= set(keys) or not any(key.endswith("_norm.scale") for key in keys):
        return None
    names: dict[str, str] = {}
    for key in keys:
        name = f"diffusion_model.{key}"
        for pattern, to in _CHANGED:
            name = pattern.sub(to, name)
        names[name] = key
    size = torch.tensor([shape(up)[0], shape(down)[1]])
    added = {f"diffusion_model.{_INPUT}.reshape_weight": size}
    return Modern("Black Forest Labs' control LoRAs", names, metadata, added)
