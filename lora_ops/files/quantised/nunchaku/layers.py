"""Nunchaku's files: which of its layers have which of the model's weights, for Flux.1 and Qwen-Image.

The names are those of diffusers, but for layers that are fused, and for all of a block in its first files. Sources:
DeepCompressor's converter, Nunchaku's `convert_flux_state_dict` and its modules for both models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...base import quote
from ..headers import Headers
from ..weight import Plain
from .awq import modulation
from .low_rank import LowRank
from .svdquant import Bias, Columns, joined, low_rank
from .weight import Nunchaku

#: What ends the name of scales, after that of the layer.
ENDING = ".wscales"
#: What the metadata says of how a file is stored, and of the program that loads it.
METADATA = ("quantization_config", "model_class", "comfy_config")

_BLOCK = re.compile(r"((single_)?transformer_blocks\.\d+)\.(.+)")
_NORM = re.compile(r"norm_(?:added_)?[qk]\.weight")
# A block's layers in first files, by their later names.
_DOUBLE = {
    "attn.to_qkv": "qkv_proj",
    "attn.add_qkv_proj": "qkv_proj_context",
    "attn.to_out.0": "out_proj",
    "attn.to_add_out": "out_proj_context",
    "ff.net.0.proj": "mlp_fc1",
    "ff.net.2": "mlp_fc2",
    "ff_context.net.0.proj": "mlp_context_fc1",
    "ff_context.net.2": "mlp_context_fc2",
}
_SINGLE = {"attn.to_qkv": "qkv_proj", "attn.to_out": "out_proj", "mlp_fc1": "", "mlp_fc2": ""}
_OF_QWEN = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
_BEHIND_GELU = ("ff.net.2", "ff_context.net.2", "mlp_fc2", *_OF_QWEN[1::2])
# How many vectors a layer of modulations makes.
_VECTORS = dict.fromkeys(("norm1.linear", "norm1_context.linear", "img_mod.1", "txt_mod.1"), 6)
_SINGLE_VECTORS = {"norm.linear": 3}
# The model's layers that are fused in one, and those that may be behind the last of them.
_FUSED = {
    "attn.to_qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_out.0", "attn.to_out")),
    "attn.add_qkv_proj": (
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ("attn.to_add_out",),
    ),
}


def nunchaku(headers: Headers) -> Iterator[Nunchaku | Plain]:
    """The weights and biases of Nunchaku's layers, and what has another name in its files.

    Raises:
        QuantisedError: A layer is of another model, or its tensors are missing or do not fit.
    """
    if not any(key.endswith(ENDING) for key in headers.keys):
        return
    blocks: dict[str, dict[str, str]] = {}
    for key in headers.keys:
        layer, _, name = key.rpartition(".")
        if name in ("qweight", "wscales"):
            block, later = _placed(headers, layer)
            blocks.setdefault(block, {})[later] = layer
    for block, layers in blocks.items():
        yield from _weights(headers, block, layers)
    for key in headers.keys:
        match = _BLOCK.fullmatch(key)
        if match and _NORM.fullmatch(match[3]):
            yield Plain(f"{match[1]}.attn.{match[3]}", (), stored=key)


def _placed(headers: Headers, layer: str) -> tuple[str, str]:
    """The block that has a layer, and what later files call it there."""
    match = _BLOCK.fullmatch(layer)
    if match is not None:
        block, single, name = match.groups()
        names = _SINGLE if single else _DOUBLE
        later = next((new for new, old in names.items() if old == name), name)
        others = _SINGLE_VECTORS if single else (*_VECTORS, *_OF_QWEN)
        if later in names or later in others:
            return block, later
    raise headers.damaged(layer, "of Nunchaku's files those of Flux.1 and Qwen-Image are read")


def _weights(headers: Headers, block: str, layers: Mapping[str, str]) -> Iterator[Nunchaku]:
    """The weights and biases of one block, of its layers by their later names."""
    behind = {one for name in layers for one in _FUSED.get(name, ((), ()))[1]}
    for name, layer in layers.items():
        if name in _FUSED:
            names, after = _FUSED[name]
            held = next((layers[one] for one in after if one in layers), None)
            yield from _one_after_another(headers, layer, [f"{block}.{n}" for n in names], held)
        elif vectors := (_VECTORS | _SINGLE_VECTORS).get(name):
            yield from modulation(headers, layer, vectors)
        elif name in ("attn.to_out", "mlp_fc2"):
            if not {"attn.to_out", "mlp_fc2"} <= layers.keys():
                raise headers.damaged(layer, "the other half of `proj_out` is not in the file")
            if name == "attn.to_out":
                half = low_rank(headers, layer, f"{block}.proj_out", moved=name in behind)
                yield from _side_by_side(headers, half, layers["mlp_fc2"])
        else:
            own = f"{block}.{'proj_mlp' if name == 'mlp_fc1' else name}"
            kind = {"shifted": name in _BEHIND_GELU, "moved": name in behind}
            weight, bias = low_rank(headers, layer, own, **kind)
            yield weight
            if bias is not None:
                yield bias


def _one_after_another(
    headers: Headers, layer: str, names: Sequence[str], behind: str | None
) -> Iterator[LowRank | Bias]:
    """The model's layers whose rows are one of Nunchaku's.

    Args:
        headers: Of the file.
        layer: Of Nunchaku's.
        names: Of the model's.
        behind: The layer of Nunchaku's that takes what the last of them gives: its smoothing may be in there.
    """
    weight, bias = low_rank(headers, layer)
    among, columns = weight.shape
    rows = among // len(names)
    if among % len(names):
        raise headers.damaged(layer, f"its {among} rows are not those of {len(names)} layers")
    smoothing: dict[str, str] = {}
    if behind is not None:
        after, _ = low_rank(headers, behind, moved=True)
        if after.shape[1] != rows:
            taken = f"it takes {after.shape[1]} numbers"
            raise headers.damaged(behind, f"{taken}, {quote(layer)} gives {rows}")
        if "moved" in after.parts:
            smoothing = {"moved here": after.parts["moved"], "smooth behind": after.parts["smooth"]}
    for place, name in enumerate(names):
        beside = smoothing if place == len(names) - 1 else {}
        for one, key, shape in (
            (weight, f"{name}.weight", (rows, columns)),
            (bias, f"{name}.bias", (rows,)),
        ):
            if one is not None:
                parts = {**one.parts, **beside}
                yield replace(one, key=key, shape=shape, parts=parts, first=place * rows)


def _side_by_side(
    headers: Headers, first: tuple[LowRank, Bias | None], layer: str
) -> Iterator[Columns | Bias]:
    """The model's layer whose columns are two of Nunchaku's, and whose bias is the sum of theirs.

    Args:
        headers: Of the file.
        first: The weight of the first columns, under the model's name, and the bias.
        layer: Of Nunchaku's, which has the last columns and is behind GELU.
    """
    one, bias = first
    other, added = low_rank(headers, layer, one.layer, shifted=True)
    rows, columns = one.shape
    if other.shape[0] != rows:
        raise headers.damaged(layer, f"it has {other.shape[0]} rows, the first half {rows}")
    yield Columns(
        *(one.key, (rows, columns + other.shape[1]), one.storage),
        joined(one.parts, other.parts),
        layers=(one, other),
        beside=(*one.beside, *other.beside),
    )
    if bias is None or added is None:
        yield from (both for both in (bias, added) if both is not None)
    else:
        parts = joined(bias.parts, added.parts)
        yield replace(bias, storage=added.storage, parts=parts, added=added)
