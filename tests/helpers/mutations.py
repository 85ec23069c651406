"""Adapter files that are nearly right: valid ones of every kind and format, damaged by a seed.

A seed always gives the same file. Damage is what happens to files: keys dropped, renamed, written
twice under another spelling, numbers in another dtype or shape, metadata that say something else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import kinds
import torch
from torch import Tensor

#: By format, what a name has in front, and the ends of a pair.
_FORMATS = {
    "kohya": ("lora_unet_", (".lora_up.weight", ".lora_down.weight")),
    "comfy": ("diffusion_model.", (".lora_B.weight", ".lora_A.weight")),
    "peft": ("base_model.model.", (".lora_B.weight", ".lora_A.weight")),
    "diffusers": ("transformer.", (".lora_B.weight", ".lora_A.weight")),
    "unet": ("unet.", (".lora.up.weight", ".lora.down.weight")),
}
#: Modules of models, as their tables have them; of some the names tell the model.
_MODELS = {
    "sd1": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", "middle_block.1.proj_in"),
    "sd1 in diffusers": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.attentions.0.proj_out"),
    "flux": ("double_blocks.0.img_attn.qkv", "single_blocks.3.linear1", "double_blocks.1.txt_mlp.2"),
    "flux in diffusers": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
    "flux2": ("double_stream_modulation_img.lin", "double_blocks.0.img_attn.qkv"),
    "chroma": ("distilled_guidance_layer.in_proj", "double_blocks.0.img_attn.proj"),
    "wan": ("blocks.0.self_attn.q", "blocks.1.ffn.2", "time_embedding.0"),
    "z_image": ("layers.0.attention.qkv", "context_refiner.0.attention.out"),
    "qwen_image": ("transformer_blocks.0.attn.add_k_proj", "transformer_blocks.1.img_mod.1"),
    "hunyuan_video": ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear2"),
    "krea2": ("blocks.0.attn.wq", "blocks.1.mlp.up"),
    "none": ("mystery.q", "another"),
}  # fmt: skip
_ENCODERS = (
    *("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
    *("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
)  # fmt: skip
_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.float16, torch.bfloat16, torch.float64),
    *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),
)
_ENDS = (
    *(".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".lora_A.weight", ".lora_B.weight"),
    *(".lora_A.default.weight", ".lora_B.default", ".lora_B.bias", "_lora.up.weight", ".lora.down.weight"),
    *(".lora_linear_layer.up.weight", ".alpha", ".dora_scale", ".lora_magnitude_vector", ".reshape_weight"),
    *(".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight", ".hada_w1_a", ".hada_w2_b", ".hada_t1"),
    *(".lokr_w1", ".lokr_w2_a", ".lokr_t2", ".a1.weight", ".b2.weight", ".oft_blocks", ".oft_diag", ".rescale"),
    *(".on_input", ".weight", ".bias", "", ".scale_weight", ".lora_A", ".lora_B"),
)  # fmt: skip
_CONFIG = {
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["to_q"],
    "rank_pattern": {},
    "alpha_pattern": {},
}
_TEXTS = ("", "NaN", "-1", "1e999", "x" * 300, "{", "[]", "null", "\x00", "0", "\N{SNOWMAN}", "3.5")
_ODD = (None, -1, 0, 1e300, float("nan"), True, "x", [], {}, {"to_q": 3}, {"(a+)+$": 2}, [[1]])

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Mutant:
    """One damaged file.

    Attributes:
        seed: That it is made by.
        told: What was done, for the message of a test.
        tensors, metadata: Of the file.
    """

    seed: int
    told: str
    tensors: Tensors
    metadata: dict[str, str]


def mutants(seeds: range) -> Iterator[Mutant]:
    """The files of some seeds."""
    forms = {form: kinds.kinds(form) for form in kinds.WEIGHTS}
    return (_mutant(seed, forms) for seed in seeds)


def _mutant(seed: int, forms: dict[str, dict[str, Tensors]]) -> Mutant:
    dice = random.Random(seed)
    told, tensors = _valid(dice, forms)
    metadata = _metadata(dice)
    done = [told]
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        if not tensors:
            break
        change = dice.choice(_CHANGES)
        key = dice.choice(list(tensors))
        done.append(f"{change.__name__.strip('_')} {key}")
        change(dice, tensors, key)
    if dice.random() < 0.3 and metadata:
        key = dice.choice(list(metadata))
        metadata[key] = dice.choice(_TEXTS)
        done.append(f"text of {key}")
    return Mutant(seed, "; ".join(done), tensors, metadata)


def _valid(dice: random.Random, forms: dict[str, dict[str, Tensors]]) -> tuple[str, Tensors]:
    """A file of some layers of one model and format; now and then another's among them."""
    format, model = dice.choice(list(_FORMATS)), dice.choice(list(_MODELS))
    prefix, _ = _FORMATS[format]
    names = [
        prefix + (one.replace(".", "_") if format == "kohya" else one) for one in _MODELS[model]
    ]
    if dice.random() < 0.2:
        names.append(dice.choice(_ENCODERS))
    told: list[str] = []
    found: Tensors = {}
    for name in names:
        kind = dice.choice(list(forms["conv3x3"])) if dice.random() < 0.7 else "lora"
        form = dice.choice([form for form in forms if kind in forms[form]] or ["linear"])
        kind = kind if kind in forms[form] else "lora"
        told.append(f"{name} {kind} {form}")
        found |= {f"{name}.{end}": t for end, t in forms[form][kind].items()}
        if dice.random() < 0.1:
            found[f"{name}.diff_b"] = torch.ones(8)
    up, down = _FORMATS[format][1]
    ends = ((".lora_up.weight", up), (".lora_down.weight", down))
    renamed = {}
    for key, tensor in found.items():
        for end, own in ends:
            key = key.removesuffix(end) + own if key.endswith(end) else key
        renamed[key] = tensor
    return ", ".join(told), renamed


def _metadata(dice: random.Random) -> dict[str, str]:
    chosen = dice.randrange(4)
    if chosen == 0:
        return {}
    told = {
        "ss_network_dim": "2",
        "ss_network_alpha": "1.5",
        "ss_network_module": dice.choice(("networks.lora", "lycoris.kohya", "networks.oft")),
        "ss_base_model_version": dice.choice(("sd_v1", "sdxl_base_v1-0", "flux1")),
        "modelspec.architecture": dice.choice(("stable-diffusion-v1/lora", "flux-1-dev/lora")),
        "sshs_model_hash": "0" * 64,
    }
    if chosen == 1:
        return told
    config = {
        **_CONFIG,
        "use_dora": dice.random() < 0.5,
        "peft_type": dice.choice(("LORA", "LOKR")),
    }
    if chosen == 3:
        config[dice.choice(list(config))] = dice.choice(_ODD)
    prefix = dice.choice(("", "transformer.", "unet."))
    told["lora_adapter_metadata"] = json.dumps({prefix + key: one for key, one in config.items()})
    return told


# --- what is done to one tensor


def _drop(dice: random.Random, tensors: Tensors, key: str) -> None:
    del tensors[key]


def _drop_others(dice: random.Random, tensors: Tensors, key: str) -> None:
    for other in [one for one in tensors if one != key and dice.random() < 0.6]:
        del tensors[other]


def _rename(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensors[_other_name(dice, key)] = tensors.pop(key)


def _twice(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensors[_other_name(dice, key)] = tensors[key]


def _other_name(dice: random.Random, key: str) -> str:
    end = next((one for one in _ENDS if one and key.endswith(one)), "")
    stem = key.removesuffix(end)
    return dice.choice(
        (
            stem + dice.choice(_ENDS),
            stem + dice.choice(_ENDS),
            stem + dice.choice(_ENDS),
            stem,
            stem + ".bias" + end,
            "lora_unet_" + stem.replace(".", "_") + end,
            dice.choice([prefix for prefix, _ in _FORMATS.values()]) + stem + end,
            dice.choice(_ENCODERS) + end,
            key.replace(".", "..", 1),
            key.upper(),
            key[: dice.randrange(len(key) + 1)],
            end,
            key.replace("0", "99"),
            key + "\N{SNOWMAN}",
        )
    )


def _dtype(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensors[key] = tensors[key].to(dice.choice(_DTYPES))


def _every_dtype(dice: random.Random, tensors: Tensors, key: str) -> None:
    dtype = dice.choice(_DTYPES)
    tensors.update({one: tensor.to(dtype) for one, tensor in tensors.items()})


def _numbers(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensor = tensors[key]
    if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel():
        flat = tensor.flatten().clone()
        flat[dice.randrange(len(flat))] = dice.choice(
            (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 65504.0)
        )
        tensors[key] = flat.reshape(tensor.shape)


def _zero(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensors[key] = torch.zeros_like(tensors[key])


def _shape(dice: random.Random, tensors: Tensors, key: str) -> None:
    tensor = tensors[key]
    axis = dice.randrange(tensor.ndim) if tensor.ndim else 0
    one = tensor.flatten()[:1]
    tensors[key] = dice.choice(
        (
            lambda: one.reshape(()) if one.numel() else one,
            lambda: tensor[:0] if tensor.ndim else torch.empty(0, dtype=tensor.dtype),
            lambda: torch.empty((0,) * tensor.ndim, dtype=tensor.dtype),
            lambda: tensor.movedim(0, -1).contiguous() if tensor.ndim > 1 else tensor,
            lambda: tensor.flatten(),
            lambda: tensor.unsqueeze(axis),
            lambda: tensor[None, ..., None],
            lambda: tensor.reshape(tensor.shape + (1,) * 4),
            lambda: torch.cat((tensor, tensor), axis) if tensor.ndim else tensor,
            lambda: (
                tensor.narrow(axis, 0, 1).contiguous() if tensor.numel() and tensor.ndim else one
            ),
            lambda: tensor.select(axis, 0).contiguous() if tensor.numel() and tensor.ndim else one,
        )
    )()


_CHANGES: tuple[Callable[[random.Random, Tensors, str], None], ...] = (
    *(_drop, _drop_others, _rename, _rename, _twice, _dtype, _every_dtype, _numbers, _zero),
    *(_shape, _shape, _shape),
)
