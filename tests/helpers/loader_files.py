"""Adapters for diffusers' loaders: every name, ending and subset of small models of true width.

The models are on the meta device: they have shapes and no numbers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lorakit.lora_ops.models.architectures import architecture_named, module_renames

_TWO = {"num_layers": 2}
#: By architecture: the class of the loader, that of the model, what it is made with.
LOADERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "flux": ("Flux", "FluxTransformer2DModel", {**_TWO, "num_single_layers": 2, "guidance_embeds": True}),
    "chroma": ("Flux", "ChromaTransformer2DModel", {**_TWO, "num_single_layers": 2}),
    "flux2": ("Flux2", "Flux2Transformer2DModel", {**_TWO, "num_single_layers": 2}),
    "sd3": ("SD3", "SD3Transformer2DModel", {**_TWO, "num_attention_heads": 24}),
    "auraflow": ("AuraFlow", "AuraFlowTransformer2DModel", {"num_mmdit_layers": 2, "num_single_dit_layers": 2}),
    "lumina2": ("Lumina2", "Lumina2Transformer2DModel", {**_TWO, "num_refiner_layers": 2, "cap_feat_dim": 2304}),
    "z_image": ("ZImage", "ZImageTransformer2DModel", {"n_layers": 2, "n_refiner_layers": 2}),
    "wan": ("Wan", "WanTransformer3DModel", _TWO),
    "qwen_image": ("QwenImage", "QwenImageTransformer2DModel", _TWO),
    "hunyuan_video": ("HunyuanVideo", "HunyuanVideoTransformer3DModel", {**_TWO, "num_single_layers": 2, "guidance_embeds": True}),
    "ltxv": ("LTXVideo", "LTXVideoTransformer3DModel", _TWO),
    "hidream": ("HiDreamImage", "HiDreamImageTransformer2DModel", {**_TWO, "num_single_layers": 2, "caption_channels": (4096, 4096), "in_channels": 16, "patch_size": 2, "llama_layers": (0, 1)}),
    "kandinsky5": ("Kandinsky", "Kandinsky5Transformer3DModel", {"num_text_blocks": 2, "num_visual_blocks": 2}),
    "krea2": ("Krea2", "Krea2Transformer2DModel", _TWO),
    "anima": ("Anima", "CosmosTransformer3DModel", _TWO),
    "cosmos": ("Cosmos", "CosmosTransformer3DModel", _TWO),
    "sd1": ("StableDiffusion", "UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sdxl": ("StableDiffusionXL", "UNet2DConditionModel", {
        "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True}),
}  # fmt: skip
ENDS = {
    "A": (".lora_B.weight", ".lora_A.weight"),
    "down": (".lora_up.weight", ".lora_down.weight"),
    "dotted": (".lora.up.weight", ".lora.down.weight"),
}
#: Prefix, and whether what follows is flat.
PREFIXES = {
    "diffusion_model.": False,
    "lora_unet_": True,
    "transformer.": False,
    "unet.": False,
    "base_model.model.": False,
    "lora_transformer_": True,
    "lycoris_": True,
    "": False,
}
_UNETS = ("sd1", "sdxl")
_ODD = ("lycoris_", "unet.")
#: Which modules are there, by a name of each.
SUBSETS = {
    "all": ".",
    "attention": r"attn|attention|\bto_[qkv]\b|add_[qkv]",
    "double": r"^(double|transformer|joint|joint_transformer|double_stream)_?(blocks|layers)\.",
    "block 0": r"(blocks|layers)\.0\.",
    "block 1": r"(blocks|layers)\.1\.",
    "outside": r"^(?!.*(blocks|layers|refiner)\.)",
}


def model_of(name: str, blocks: tuple[int, int] | None = None) -> torch.nn.Module:
    """The model, on the meta device; `blocks` are the numbers of double and single ones."""
    import diffusers

    _, kind, arguments = LOADERS[name]
    if blocks is not None:
        arguments = arguments | {"num_layers": blocks[0], "num_single_layers": blocks[1]}
    with torch.device("meta"):
        return getattr(diffusers, kind)(**arguments)


def sizes(name: str, model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """(out, in) of each linear layer: by the model's own names, and by those of diffusers."""
    table = module_renames(architecture_named(name))
    foreign = {
        key.removesuffix(".weight"): tuple(one.shape)
        for key, one in model.state_dict().items()
        if key.endswith(".weight") and one.ndim == 2 and table.find(key.removesuffix(".weight"))
    }
    native: dict[str, Any] = {}
    for module in foreign:
        own = table.find(module).native
        parts = [part for part, _ in table.foreign_parts(own)]
        if all(part in foreign for part in parts):
            native[own] = (sum(foreign[part][0] for part in parts), foreign[parts[0]][1])
    return native, foreign


def pair(
    module: str, shape: tuple[int, int], ends: tuple[str, str], alpha: bool
) -> dict[str, Tensor]:
    """A layer of rank 1."""
    up, down = ends
    found = {module + up: torch.ones(shape[0], 1), module + down: torch.ones(1, shape[1])}
    return found | ({f"{module}.alpha": torch.tensor(1.0)} if alpha else {})


def files(
    name: str, named: tuple[dict[str, Any], dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Titles and tensors; none twice. Odd endings and prefixes are for whole files and attention."""
    other = "transformer." if name in _UNETS else "unet."
    seen: set[frozenset[str]] = set()
    for (spelling, modules), (subset, pattern) in itertools.product(
        zip(("native", "foreign"), named, strict=True), SUBSETS.items()
    ):
        chosen = {one: shape for one, shape in modules.items() if re.search(pattern, one)}
        every = subset in ("all", "attention")
        ways = itertools.product(ENDS, (False, True)) if every else (("A", False), ("down", True))
        for prefix, (ending, alpha) in itertools.product(PREFIXES, tuple(ways)):
            if not chosen or prefix == other or (not every and prefix in _ODD):
                continue
            found: dict[str, Tensor] = {}
            for module, shape in chosen.items():
                inner = module.replace(".", "_") if PREFIXES[prefix] else module
                found |= pair(prefix + inner, shape, ENDS[ending], alpha)
            if frozenset(found) not in seen:
                seen.add(frozenset(found))
                words = (spelling, prefix or "bare", ending, subset, "alpha" if alpha else "")
                yield " ".join(words).rstrip(), found


def loads(
    name: str, tensors: Mapping[str, Tensor], blocks: tuple[int, int] | None = None
) -> tuple[set[str], str]:
    """The modules that the real loader changes, and its error where it stops."""
    import peft
    from diffusers.loaders import lora_pipeline

    model = model_of(name, blocks)
    part = "unet" if name in _UNETS else "transformer"
    mixin = getattr(lora_pipeline, f"{LOADERS[name][0]}LoraLoaderMixin")
    stub = type("Stub", (mixin,), {"__init__": lambda _: None})()
    setattr(stub, part, model)
    for other in (
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "transformer_2",
        "text_conditioner",
    ):
        setattr(stub, other, None)
    stub.hf_device_map = None
    stub.components = {part: model}
    changed: set[str] = set()

    def spy(to: torch.nn.Module, given: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        result = handed_over(to, given, *args, **options)
        ends = (".lora_B.weight", ".lora_B.bias")
        unexpected = {one.replace(".default_0.", ".") for one in result.unexpected_keys}
        held = {key for key, one in given.items() if key.endswith(ends) and bool(one.any())}
        changed.update(key.rpartition(".lora_B.")[0] for key in held - unexpected)
        lokr = {key for key in given if ".lokr_w2" in key}
        changed.update(key.rpartition(".lokr_")[0] for key in lokr - unexpected)
        return result

    handed_over = peft.set_peft_model_state_dict
    with mock.patch.object(peft, "set_peft_model_state_dict", spy):
        try:
            stub.load_lora_weights(dict(tensors), low_cpu_mem_usage=True)
        except Exception as error:  # noqa: BLE001  whatever it says, nothing was loaded
            return set(), f"{type(error).__name__}: {error}"
    return changed, ""
