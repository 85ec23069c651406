"""Strengths by the blocks of a model, without a file of it: the core's rules, asked of a layer in each."""

from __future__ import annotations

from collections.abc import Mapping

#: Sliders of each model, by the blocks that they are for; of any other model, by depth in percent.
SLIDERS: dict[str, tuple[str, ...]] = {
    "SDXL": (
        "BASE",
        *(f"IN{at:02}" for at in range(9)),
        "M00",
        *(f"OUT{at:02}" for at in range(9)),
    ),
    "SD1": (
        "BASE",
        *(f"IN{at:02}" for at in range(12)),
        "M00",
        *(f"OUT{at:02}" for at in range(12)),
    ),
    "Flux": (
        *("CLIP", "T5", "IN"),
        *("D00-D03", "D04-D07", "D08-D11", "D12-D15", "D16-D18"),
        *("S00-S07", "S08-S15", "S16-S23", "S24-S31", "S32-S37"),
        "OUT",
    ),
    "other": ("depth_0", "depth_25", "depth_50", "depth_75", "depth_100"),
}
# Names of layers; `0` in one for a number is the block's.
_TE = "lora_te{}_text_model_encoder_layers_0_mlp_fc1"


def layers(model: str) -> dict[str, str]:
    """Return the name of a layer in each block of a model, by the block's label."""
    if model == "Flux":
        double = {f"D{at:02}": f"lora_unet_double_blocks_{at}_img_attn_qkv" for at in range(19)}
        single = {f"S{at:02}": f"lora_unet_single_blocks_{at}_linear1" for at in range(38)}
        before = {"CLIP": _TE.format(1), "T5": "lora_te3_encoder_block_0_layer_0_SelfAttention_q"}
        ends = {"OUT": "lora_unet_final_layer_linear"}
        return {**before, "IN": "lora_unet_img_in", **double, **single, **ends}
    is_xl = model == "SDXL"
    count = 9 if is_xl else 12
    found = {"BASE": _TE.format(2 if is_xl else 1)}
    for at in range(count):
        inside = "0_in_layers_2" if at % 3 else "0_op" if at else "0"
        found[f"IN{at:02}"] = f"lora_unet_input_blocks_{at}_{inside}"
    found["M00"] = "lora_unet_middle_block_0_in_layers_2"
    for at in range(count):
        found[f"OUT{at:02}"] = f"lora_unet_output_blocks_{at}_0_in_layers_2"
    if is_xl:  # which no other model has as deep
        found["IN07"] = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k"
    return found


def by_block(
    model: str, sliders: Mapping[str, float], preset: str = "", gradient: str = "", labels: str = ""
) -> dict[str, float]:
    """Return the strength of each block of a model, by label.

    Args:
        model: A name in `SLIDERS`, but `other`.
        sliders: Factors, by what `SLIDERS` calls them.
        preset: Name of a preset, times which they are; empty for none.
        gradient: Numbers over the depth, likewise.
        labels: `IN04=0.5,OUT=0`: in place of all that, there.

    Raises:
        ArgumentError: A preset, gradient or label that means nothing.
    """
    from ...lora_ops.adapters.strengths.rules import DEPTH, parse_rules, strengths

    known = layers(model)
    names = list(known.values())
    texts = [",".join(f"{label}={value}" for label, value in sliders.items()), preset]
    texts += [DEPTH + gradient] if gradient else []
    found = dict.fromkeys(names, 1.0)
    for text in filter(None, texts):
        for name, factor in strengths(names, blocks=text).items():
            found[name] *= factor
    for rule in parse_rules(names, blocks=labels or None):
        found |= dict.fromkeys(rule.names, rule.strength)
    return {label: found[name] for label, name in known.items()}


def as_numbers(values: Mapping[str, float]) -> str:
    """The list of numbers that `blocks` takes."""
    return ",".join(_number(value) for value in values.values())


def as_gradient(sliders: Mapping[str, float]) -> str:
    """The gradient that `blocks` takes."""
    from ...lora_ops.adapters.strengths.rules import DEPTH

    return DEPTH + as_numbers(sliders)


def _number(value: float) -> str:
    return f"{round(value, 4):g}"
