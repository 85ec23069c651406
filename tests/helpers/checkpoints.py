"""Small checkpoints with data: real files' names, tiny shapes, changes that are known exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from oracles import power, with_spectrum
from torch import Tensor

from lorakit.lora_ops import DictSource

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def _module(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


_BLOCK = "input_blocks.1.1.transformer_blocks.0"
_SD1_UNET = {
    **_module("time_embed.0", 64, 40),
    **_module("input_blocks.0.0", 320, 4, 3, 3),
    **_module("input_blocks.1.0.in_layers.0", 40),
    **_module("input_blocks.1.0.in_layers.2", 48, 40, 3, 3),
    **_module("input_blocks.1.1.proj_in", 48, 40, 1, 1),
    f"{_BLOCK}.attn1.to_q.weight": (48, 48),
    f"{_BLOCK}.attn2.to_k.weight": (48, 768),
    **_module(f"{_BLOCK}.norm1", 48),
    **_module(f"{_BLOCK}.ff.net.0.proj", 96, 48),
}
_CLIP = {
    "embeddings.token_embedding.weight": (60, 768),
    "embeddings.position_embedding.weight": (7, 768),
    **_module("encoder.layers.0.self_attn.q_proj", 56, 768),
    **_module("encoder.layers.0.layer_norm1", 768),
    **_module("encoder.layers.0.mlp.fc1", 72, 768),
}
_OPENCLIP = {
    "positional_embedding": (7, 1280),
    "token_embedding.weight": (50, 1280),
    "transformer.resblocks.0.attn.in_proj_weight": (96, 1280),
    "transformer.resblocks.0.attn.in_proj_bias": (96,),
    **_module("transformer.resblocks.0.attn.out_proj", 40, 32),
    **_module("transformer.resblocks.0.ln_1", 1280),
    **_module("transformer.resblocks.0.mlp.c_fc", 64, 1280),
    "text_projection": (40, 40),
    "logit_scale": (),
}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


_UNET = "model.diffusion_model."
_TEXT = "cond_stage_model.transformer.text_model."

SD1: Shapes = {
    **_under(_UNET, _SD1_UNET),
    **_under(_TEXT, _CLIP),
    **_module("first_stage_model.decoder.conv_in", 24, 16, 3, 3),
    "betas": (10,),
}
OPENCLIP: Shapes = {
    **_under(
        _UNET,
        {
            **_SD1_UNET,
            f"{_BLOCK}.attn2.to_k.weight": (48, 2048),
            **_module("label_emb.0.0", 64, 40),
        },
    ),
    **_under("conditioner.embedders.0.transformer.text_model.", _CLIP),
    **_under("conditioner.embedders.1.model.", _OPENCLIP),
}
FLUX: Shapes = {
    **_module("img_in", 48, 64),
    **_module("txt_in", 48, 80),
    **_module("guidance_in.in_layer", 48, 40),
    **_module("vector_in.in_layer", 48, 40),
    **_module("double_blocks.0.img_attn.qkv", 144, 48),
    "double_blocks.0.img_attn.norm.query_norm.scale": (16,),
    **_module("double_blocks.0.img_mlp.0", 192, 48),
    **_module("single_blocks.0.linear1", 336, 48),
    **_module("final_layer.linear", 64, 48),
}
WAN: Shapes = {
    **_module("patch_embedding", 48, 16, 1, 2, 2),
    "head.modulation": (1, 2, 48),
    "blocks.0.modulation": (1, 6, 48),
    **_module("blocks.0.self_attn.q", 48, 48),
    **_module("blocks.0.self_attn.norm_q", 48),
    **_module("blocks.0.ffn.0", 96, 48),
    **_module("time_conv", 32, 16, 3, 1, 1),
}
MODELS: dict[str, Shapes] = {"sd1": SD1, "openclip": OPENCLIP, "flux": FLUX, "wan": WAN}

# What ComfyUI calls the parts of the files above; Flux and Wan files have no prefix.
_CANONICAL = {
    "model.diffusion_model.": "diffusion_model.",
    "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",
    "conditioner.embedders.0.transformer.": "text_encoders.clip_l.transformer.",
    "first_stage_model.": "vae.",
    "betas": "other.betas",
}


def target(key: str) -> str:
    """What the parameter of that key is called; not for OpenCLIP's names, which change within."""
    for prefix, canonical in _CANONICAL.items():
        if key.startswith(prefix):
            return (canonical + key.removeprefix(prefix)).removesuffix(".weight")
    return f"diffusion_model.{key}".removesuffix(".weight")


def is_matrix(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a LoRA can change it: a `.weight` with two axes or more that is not a table."""
    return key.endswith(".weight") and len(shape) >= 2 and "embeddings." not in key


def grid(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> Tensors:
    """Weights on a grid of sixteenths, -2/16 to 2/16: exact in every float dtype, fp8 too."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randint(-2, 3, shape, generator=generator) / 16).to(dtype)
        for key, shape in shapes.items()
    }


def planted(base: Mapping[str, Tensor], rank: int = 3, seed: int = 1) -> Tensors:
    """The same with a change of exactly that rank in each matrix, of one sixteenth in the rest.

    Factors of -1, 0 and 1 keep sums below 6/16, so that no dtype rounds anything.
    """
    generator = torch.Generator().manual_seed(seed)

    def sign(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).float()

    tuned: Tensors = {}
    for key, weight in base.items():
        shape = tuple(weight.shape)
        if is_matrix(key, shape):
            delta = sign(shape[0], rank) @ sign(rank, math.prod(shape[1:]))
        else:
            delta = sign(*shape)
        tuned[key] = (weight.float() + delta.reshape(shape) / 16).to(weight.dtype)
    return tuned


def trained(base: Mapping[str, Tensor], size: float = 0.02, seed: int = 1) -> Tensors:
    """The same with a change of full rank whose singular values fall, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    tuned: Tensors = {}
    for key, weight in base.items():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim >= 2:
            out, rest = weight.shape[0], math.prod(weight.shape[1:])
            falling = torch.arange(1, min(out, rest) + 1) ** -0.7
            left = torch.randn(out, len(falling), generator=generator) * falling
            noise = (left @ torch.randn(len(falling), rest, generator=generator)).reshape(
                weight.shape
            )
        tuned[key] = (weight.float() + size * noise).to(weight.dtype)
    return tuned


def large() -> tuple[Tensors, Tensors]:
    """Two layers so large that the default is an iteration, and a small one."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (600, 512), "b": (600, 512), "c": (50, 40)}
    base = {
        f"blocks.0.{key}.weight": torch.randn(s, generator=generator) for key, s in shapes.items()
    }
    tuned = dict(base)
    for (key, weight), exponent in zip(base.items(), (0.8, 0.3, 0.5), strict=True):
        spectrum = power(min(weight.shape), exponent)
        tuned[key] = weight + with_spectrum(*weight.shape, spectrum, seed=len(tuned)).float()
    return base, tuned


def source(tensors: Mapping[str, Tensor], name: str = "model.safetensors") -> DictSource:
    """The tensors as a checkpoint of that name."""
    return DictSource(tensors, name=name)


def delta(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], key: str) -> Tensor:
    """The change of one parameter, in float64."""
    return tuned[key].double() - base[key].double()


class Counting(DictSource):
    """Counts how often each tensor is read."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        name: str = "tensors",
    ) -> None:
        super().__init__(tensors, metadata, name)
        self.read = Counter[str]()

    def tensor(self, key: str) -> Tensor:
        self.read[key] += 1
        return super().tensor(key)
