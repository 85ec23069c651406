"""Nunchaku's files: which of its layers have which of the model's weights, for Flux.1, Qwen-Image and Z-Image.

The names are those of diffusers, but for layers that are fused, and for all of a block in its first files. Sources:
DeepCompressor's converter and those of others for newer models, Nunchaku's modules and its `convert_flux_state_dict`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..headers import Headers
from ..weight import Plain
from .awq import modulation
from .low_rank import LowRank
from .svdquant import Bias, Columns, joined, low_rank
from .weight import Nunchaku, Rows

#: What ends the name of scales, after that of the layer.
ENDING = ".wscales"
#: What the metadata says of how a file is stored, and of the program that loads it.
METADATA = ("quantization_config", "model_class", "comfy_config")


@dataclass(frozen=True, eq=False)
class _Kind:
    """A kind of block.

    Attributes:
        names: What keys look like: the block, and what is in it.
        older: Its layers by their later names, and what first files call them, where there are any.
        vectors: Its layers of modulations, and how many vectors each makes.
        biased: Whether the model's layers have biases. Where not, the file may have zeros.
    """

    names: re.Pattern[str]
    older: Mapping[str, str]
    vectors: Mapping[str, int] = field(default_factory=dict[str, int])
    biased: bool = True


_OF_QWEN = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
_OF_Z_IMAGE = (
    "attention.to_qkv",
    "attention.to_out.0",
    "feed_forward.net.0.proj",
    "feed_forward.net.2",
)
_KINDS = (
    _Kind(
        re.compile(r"(transformer_blocks\.\d+)\.(.+)"),
        {
            "attn.to_qkv": "qkv_proj",
            "attn.add_qkv_proj": "qkv_proj_context",
            "attn.to_out.0": "out_proj",
            "attn.to_add_out": "out_proj_context",
            "ff.net.0.proj": "mlp_fc1",
            "ff.net.2": "mlp_fc2",
            "ff_context.net.0.proj": "mlp_context_fc1",
            "ff_context.net.2": "mlp_context_fc2",
            **dict.fromkeys(_OF_QWEN, ""),
        },
        dict.fromkeys(("norm1.linear", "norm1_context.linear", "img_mod.1", "txt_mod.1"), 6),
    ),
    _Kind(
        re.compile(r"(single_transformer_blocks\.\d+)\.(.+)"),
        {"attn.to_qkv": "qkv_proj", "attn.to_out": "out_proj", "mlp_fc1": "", "mlp_fc2": ""},
        {"norm.linear": 3},
    ),
    _Kind(
        re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+)\.(.+)"),
        dict.fromkeys(_OF_Z_IMAGE, ""),
        biased=False,
    ),
)
_NORM = re.compile(r"norm_(?:added_)?[qk]\.weight")
_BEHIND_GELU = ("ff.net.2", "ff_context.net.2", "mlp_fc2", *_OF_QWEN[1::2])
# The model's layers that are fused in one, and those that may be behind the last of them.
_FUSED = {
    "attn.to_qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_out.0", "attn.to_out")),
    "attn.add_qkv_proj": (
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ("attn.to_add_out",),
    ),
    "attention.to_qkv": (
        ("attention.to_q", "attention.to_k", "attention.to_v"),
        ("attention.to_out.0",),
    ),
    "feed_forward.net.0.proj": (("feed_forward.w3", "feed_forward.w1"), ()),
}
_RENAMED = {"mlp_fc1": "proj_mlp", "feed_forward.net.2": "feed_forward.w2"}


def nunchaku(headers: Headers) -> Iterator[Nunchaku | Plain]:
    """The weights and biases of Nunchaku's layers, and what has another name in its files.

    Raises:
        QuantisedError: A layer is of another model, or its tensors are missing or do not fit.
    """
    if not any(key.endswith(ENDING) for key in headers.keys):
        return
    blocks: dict[tuple[str, _Kind], dict[str, str]] = {}
    for key in headers.keys:
        layer, _, name = key.rpartition(".")
        if name in ("qweight", "wscales"):
            block, kind, later = _placed(headers, layer)
            blocks.setdefault((block, kind), {})[later] = layer
    for (block, kind), layers in blocks.items():
        yield from _weights(headers, block, kind, layers)
    for key in headers.keys:
        yield from _plain(headers, key)


def _placed(headers: Headers, layer: str) -> tuple[str, _Kind, str]:
    """The block that has a layer, its kind, and what later files call the layer there."""
    for kind in _KINDS:
        match = kind.names.fullmatch(layer)
        if match is not None:
            later = next((new for new, old in kind.older.items() if old == match[2]), match[2])
            if later in kind.older or later in kind.vectors:
                return match[1], kind, later
    models = "of Nunchaku's files those of Flux.1, Qwen-Image and Z-Image are read"
    raise headers.damaged(layer, models)


def _plain(headers: Headers, key: str) -> Iterator[Plain | Rows]:
    """What has another name than the model's, or is fused, without being packed."""
    for kind in _KINDS:
        match = kind.names.fullmatch(key)
        if match is None:
            continue
        block, (name, _, part) = match[1], match[2].rpartition(".")
        if kind.biased and _NORM.fullmatch(match[2]):
            yield Plain(f"{block}.attn.{match[2]}", (), stored=key)
        elif not kind.biased and part == "weight" and name in _RENAMED:
            yield Plain(f"{block}.{_RENAMED[name]}.weight", (), stored=key)
        elif not kind.biased and part == "weight" and name in _FUSED:
            yield from Rows.of(headers, key, [f"{block}.{one}.weight" for one in _FUSED[name][0]])


def _weights(
    headers: Headers, block: str, kind: _Kind, layers: Mapping[str, str]
) -> Iterator[Nunchaku]:
    """The weights and biases of one block, of its layers by their later names."""
    behind = {one for name in layers for one in _FUSED.get(name, ((), ()))[1]}
    for name, layer in layers.items():
        if name in kind.vectors:
            yield from modulation(headers, layer, kind.vectors[name])
            continue
        if name == "mlp_fc2" and "attn.to_out" in layers:
            continue  # the other half of it
        own = f"{block}.{_RENAMED.get(name, name)}"
        shifted, moved = name in _BEHIND_GELU, name in behind
        found = low_rank(headers, layer, own, shifted=shifted, moved=moved, biased=kind.biased)
        if name in _FUSED:
            names, after = _FUSED[name]
            held = next((layers[one] for one in after if one in layers), None)
            inner = [f"{block}.{one}" for one in names]
            yield from _one_after_another(headers, layer, found, inner, held)
        elif name in ("attn.to_out", "mlp_fc2"):
            if not {"attn.to_out", "mlp_fc2"} <= layers.keys():
                raise headers.damaged(layer, "the other half of `proj_out` is not in the file")
            other = low_rank(headers, layers["mlp_fc2"], shifted=True)
            yield from _side_by_side(headers, found, other, f"{block}.proj_out")
        else:
            yield from (one for one in found if one is not None)


def _one_after_another(
    headers: Headers,
    layer: str,
    found: tuple[LowRank, Bias | None],
    names: Sequence[str],
    behind: str | None,
) -> Iterator[LowRank | Bias]:
    """The model's layers whose rows are one of Nunchaku's.

    Args:
        headers: Of the file.
        layer: Of Nunchaku's.
        found: Its weight and bias.
        names: Of the model's.
        behind: The layer of Nunchaku's that takes what the last of them gives: its smoothing may be in there.
    """
    among, columns = found[0].shape
    rows = among // len(names)
    if among % len(names):
        raise headers.damaged(layer, f"its {among} rows are not those of {len(names)} layers")
    smoothing: dict[str, str] = {}
    if behind is not None:
        after, _ = low_rank(headers, behind, moved=True)
        if after.shape[1] != rows:
            taken = f"it takes {after.shape[1]} numbers, and gets {rows}"
            raise headers.damaged(behind, taken)
        if "moved" in after.parts:
            smoothing = {"moved here": after.parts["moved"], "smooth behind": after.parts["smooth"]}
    for place, name in enumerate(names):
        beside = smoothing if place == len(names) - 1 else {}
        for one, key, shape in zip(
            found, (f"{name}.weight", f"{name}.bias"), ((rows, columns), (rows,)), strict=True
        ):
            if one is not None:
                parts = {**one.parts, **beside}
                yield replace(one, key=key, shape=shape, parts=parts, first=place * rows)


def _side_by_side(
    headers: Headers,
    first: tuple[LowRank, Bias | None],
    last: tuple[LowRank, Bias | None],
    name: str,
) -> Iterator[Columns | Bias]:
    """The model's layer whose columns are two of Nunchaku's, and whose bias is the sum of theirs.

    Args:
        headers: Of the file.
        first: The weight of the first columns, and the bias.
        last: Those of the last.
        name: Of the model's.
    """
    (one, bias), (other, added) = first, last
    rows, columns = one.shape
    if other.shape[0] != rows:
        raise headers.damaged(name, f"one half has {rows} rows, the other {other.shape[0]}")
    yield Columns(
        *(f"{name}.weight", (rows, columns + other.shape[1]), one.storage),
        joined(one.parts, other.parts),
        layers=(one, other),
        beside=(*one.beside, *other.beside),
    )
    if bias is None or added is None:
        yield from (replace(both, key=f"{name}.bias") for both in (bias, added) if both is not None)
    else:
        parts = joined(bias.parts, added.parts)
        yield replace(bias, key=f"{name}.bias", storage=added.storage, parts=parts, added=added)
