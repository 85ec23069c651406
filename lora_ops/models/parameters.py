"""Canonical names: what the loaded model calls each tensor of a checkpoint, whatever the file does.

The file's keys are sorted by prefix; each prefix stands for one part of the pipeline, and the names
of that part, taken together, tell how to rename them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Literal

from ..source import TensorSource
from .architectures.architecture import UNET
from .architectures.catalogue import detect
from .architectures.encoders import (
    OPENCLIP_MARK,
    TE,
    Rename,
    Shapes,
    clip_text,
    is_text_encoder,
    openclip,
    text_encoder,
)
from .architectures.language import is_language_model, stored_turned
from .architectures.unet_blocks import unet_names
from .native import read_natively
from .parameter import Parameter

OTHER = "other."
VAE = "vae."

# Names that only diffusers uses. Qwen-Image, HiDream and others have the same names everywhere.
_DIFFUSERS = re.compile(
    r"^(down_blocks\.\d+\.(resnets|attentions)\.|conv_norm_out\.|add_embedding\."
    r"|(single|joint)_transformer_blocks\.|transformer_blocks\.\d+\.(norm1_context|ff_context)\."
    r"|blocks\.\d+\.attn1\.to_out\.0\.|layers\.\d+\.(attention|attn)\.to_[qkv]\."
    r"|pos_embed\.proj\.|transformer_blocks\.\d+\.attn1\.norm_q\.|text_fusion\.|audio_proj_in\.|cross_attention_proj\.|time_embed\.(t_embedder|emb|caption_proj)\.)"
)
# A name of OmniGen2, which has diffusers' names in every program.
_NO_DIFFUSERS = "ref_image_refiner."
# Stable Audio's own prefix, in a file of it alone.
_OWN_PREFIX = "transformer.rotary_pos_emb.inv_freq"
_UNET_DIFFUSERS = re.compile(r"^down_blocks\.\d+\.(resnets|attentions)\.|^conv_norm_out\.")
_VAE_MARKS = (
    "decoder.conv_in.",
    "decoder.conv1.",
    "decoder.mid",
    "encoder.conv_in.",
    "encoder.conv1.",
    "encoder.down",
    "quant_conv.",
    "post_quant_conv.",
)
_FUSED = re.compile(r"^(text_encoders\..*\.self_attn\.)in_proj_(weight|bias)$")
# Flux and its kin call the weight of their query and key norms a scale; ComfyUI no longer does.
_OLD_NORM = re.compile(
    r"^(diffusion_model\.(?:.*_norm|distilled_guidance_layer\.norms\.\d+))\.scale$"
)
# OpenCLIP's last linear is a bare parameter, and the other way round.
_PROJECTION = re.compile(r"^(text_encoders\.clip_[gh]\.)text_projection$")
_SPLIT = ("q_proj", "k_proj", "v_proj")


def naming(names: Collection[str]) -> Literal["native", "diffusers"]:
    """Say whose names the diffusion model in these keys or canonical names has."""
    if any(_NO_DIFFUSERS in name for name in names):
        return "native"
    stripped = (name.removeprefix("model.") for name in names)
    for name in stripped:
        for prefix in (UNET, "transformer.", "unet."):
            name = name.removeprefix(prefix)
        if _DIFFUSERS.match(name):
            return "diffusers"
    return "native"


def parameters(source: TensorSource) -> dict[str, Parameter]:
    """Return all parameters of a checkpoint by canonical name, in the source's order.

    A model of diffusers has the native names, and the native shapes: what it splits is joined, in
    the order of its first rows. Every key of the source is there exactly once, or in parts that
    cover its rows exactly; what no rule knows is ``other.<key>``. Only shapes are read.
    """
    return read_natively(own_parameters(source))


def own_parameters(source: TensorSource) -> dict[str, Parameter]:
    """Return all parameters of a checkpoint, each of one key, as its own program splits them.

    Those of diffusers' transformers are ``transformer.…``; all else is as `parameters` has it.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    prefixes: dict[str, str] = {}
    keys = source.keys()
    shapes = {key: source.shape(key) for key in keys}
    if is_language_model(shapes):
        turned = stored_turned(shapes)
        whole = (_of_language(key, shape, key in turned) for key, shape in shapes.items())
        return {one.name: one for one in whole}
    lone = _OWN_PREFIX in keys
    for key in keys:
        prefixes[key] = "" if lone else _prefix(key)
        name = key[len(prefixes[key]) :]
        groups.setdefault(prefixes[key], {})[name] = shapes[key]
    renames = {prefix: _rename(prefix, names, groups) for prefix, names in groups.items()}
    found: dict[str, Parameter] = {}
    for key, prefix in prefixes.items():
        name = _OLD_NORM.sub(r"\1.weight", renames[prefix](key[len(prefix) :]))
        parts = list(_parts(name, key, shapes[key]))
        if any(part.name in found for part in parts):  # two keys for one parameter: both stay
            parts = [Parameter(OTHER + key, key, shapes[key])]
        found.update((part.name, part) for part in parts)
    return found


def _of_language(key: str, shape: tuple[int, ...], transposed: bool) -> Parameter:
    """A parameter of a language model, if it is one: all of its name stays."""
    return Parameter(
        f"{TE}transformer.{key}", key, shape[::-1] if transposed else shape, transposed=transposed
    )


def _parts(name: str, key: str, shape: tuple[int, ...]) -> Iterator[Parameter]:
    projection = _PROJECTION.match(name)
    if projection is not None and len(shape) == 2:
        loaded = f"{projection[1]}transformer.text_projection.weight"
        yield Parameter(loaded, key, shape[::-1], transposed=True)
        return
    fused = _FUSED.match(name)
    if fused is None or not shape or shape[0] % len(_SPLIT):
        yield Parameter(name, key, shape)
        return
    rows = shape[0] // len(_SPLIT)
    for index, part in enumerate(_SPLIT):
        yield Parameter(
            name=f"{fused[1]}{part}.{fused[2]}",
            key=key,
            shape=(rows, *shape[1:]),
            rows=(index * rows, (index + 1) * rows),
        )


def _as(root: str) -> Callable[[Shapes], Rename]:
    return lambda _: lambda name: root + name


def _unet(names: Shapes) -> Rename:
    """The renaming of a diffusion model: a UNet's diffusers names become the original ones."""
    if not any(_UNET_DIFFUSERS.match(name) for name in names):
        root = "transformer." if naming(names) == "diffusers" else UNET
        return lambda name: root + name
    table = unet_names(names)

    def rename(name: str) -> str:
        native = table.to_native(name)
        return f"unet.{name}" if native is None else UNET + native

    return rename


# The first prefix that a key begins with is its own. Encoders without a name of their own in the
# key are told by their width.
_PREFIXES: dict[str, Callable[[Shapes], Rename]] = {
    "model.diffusion_model.": _as(UNET),
    "diffusion_model.": _as(UNET),
    "model.model.": _as(UNET),
    "unet.": _unet,
    "transformer.": _unet,
    "transformer_2.": _as("transformer_2."),
    "model_ema.": _as(OTHER + "model_ema."),
    "cond_stage_model.transformer.": lambda names: clip_text(names, "clip_l"),
    "cond_stage_model.model.": lambda names: openclip(names, "clip_h"),
    "cond_stage_model.": _as(TE + "clip_l."),
    "conditioner.embedders.0.transformer.": lambda names: clip_text(names, "clip_l"),
    "conditioner.embedders.0.model.": lambda names: openclip(names, "clip_h"),
    "conditioner.embedders.1.model.": lambda names: openclip(names, "clip_g"),
    "text_encoders.": _as(TE),
    "text_encoder.": lambda names: text_encoder(names, "clip_l"),
    "text_encoder_2.": lambda names: text_encoder(names, "clip_g"),
    "text_encoder_3.": lambda names: text_encoder(names, "clip_g"),
    "text_encoder_4.": lambda names: text_encoder(names, "clip_g"),
    "clip_l.": _as(TE + "clip_l."),
    "clip_g.": _as(TE + "clip_g."),
    "clip_h.": _as(TE + "clip_h."),
    "t5xxl.": _as(TE + "t5xxl."),
    "first_stage_model.": _as(VAE),
    "vae.": _as(VAE),
}
_OF_UNET = ("model.diffusion_model.", "diffusion_model.", "model.model.", "unet.", "transformer.")
# Prefixes that some files put before all their names; taken off if the rest is then known.
_WRAPPERS = ("net.", "model.", "module.")


def _prefix(key: str) -> str:
    if key.startswith(OPENCLIP_MARK):
        return ""
    return next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")


def _rename(prefix: str, names: Shapes, groups: Collection[str]) -> Rename:
    if prefix:
        return _PREFIXES[prefix](names)
    if any(unet in groups for unet in _OF_UNET):
        return lambda name: OTHER + name
    if any(name.startswith(_VAE_MARKS) for name in names):
        return lambda name: VAE + name
    for wrapper in _WRAPPERS:
        rest = {name.removeprefix(wrapper): shape for name, shape in names.items()}
        if rest.keys() != names.keys() and len(rest) == len(names) and _is_known(rest):
            inner = _unet(rest)
            return lambda name, wrapper=wrapper: inner(name.removeprefix(wrapper))
    if is_text_encoder(names):
        return text_encoder(names)
    # A lone file without prefixes holds a diffusion model, also one that no table knows yet.
    return _unet(names) if len(groups) == 1 or _is_known(names) else lambda name: OTHER + name


def _is_known(names: Shapes) -> bool:
    known = {UNET + name: Parameter(UNET + name, name, shape) for name, shape in names.items()}
    return detect(known) is not None or naming(names) == "diffusers"
