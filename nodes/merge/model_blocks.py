"""Strengths by the blocks of a model, without a file of it: the core's rules, asked of a layer in each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    "Chroma": (
        *("D00-D03", "D04-D07", "D08-D11", "D12-D15", "D16-D18"),
        *("S00-S07", "S08-S15", "S16-S23", "S24-S31", "S32-S37"),
    ),
    "Wan": ("B00-B07", "B08-B15", "B16-B23", "B24-B31", "B32-B39"),
    "Qwen-Image": ("D00-D11", "D12-D23", "D24-D35", "D36-D47", "D48-D59"),
    "Z-Image": ("B00-B05", "B06-B11", "B12-B17", "B18-B23", "B24-B29"),
}
#: How many numbers the lists of a model have; models without a list are told by depth.
LISTED = {"SDXL": (12, 20, 21, 26), "SD1": (17, 25, 26, 27), "Flux": (58, 61)}
_SEVERAL = re.compile(r"[^\s,=;:]+(?: +[^\s,=;:]+)+")
# Names of layers; `0` in one for a number is the block's.
_TE = "lora_te{}_text_model_encoder_layers_0_mlp_fc1"


def layers(model: str) -> dict[str, str]:
    """Return the name of a layer in each block of a model, by the block's label."""
    if model in ("Wan", "Z-Image"):
        inside = "blocks.{}.self_attn.q" if model == "Wan" else "layers.{}.attention.qkv"
        count = 40 if model == "Wan" else 30
        return {f"B{at:02}": f"diffusion_model.{inside.format(at)}" for at in range(count)}
    if model == "Qwen-Image":
        inside = "diffusion_model.transformer_blocks.{}.attn.add_q_proj"
        return {f"D{at:02}": inside.format(at) for at in range(60)}
    if model in ("Flux", "Chroma"):
        double = {f"D{at:02}": f"lora_unet_double_blocks_{at}_img_attn_qkv" for at in range(19)}
        single = {f"S{at:02}": f"lora_unet_single_blocks_{at}_linear1" for at in range(38)}
        if model == "Chroma":
            return {**double, **single}
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


@dataclass(frozen=True, slots=True)
class Letters:
    """What letters in the texts of a node are.

    Attributes:
        a: Number for A; half of it for a.
        b: Likewise for B.
        seed: For R and U.
    """

    a: float = 1.0
    b: float = 1.0
    seed: int = 0

    def behind(self, text: str) -> str:
        """Return a text of strengths that says what its letters are, as it may do itself."""
        if not text or ";" in text:
            return text
        return f"{text}; A={self.a!r}, B={self.b!r}, seed={self.seed}"


def by_block(
    model: str,
    sliders: Mapping[str, float],
    preset: str = "",
    gradient: str = "",
    labels: str = "",
    line: str = "",
    letters: Letters | None = None,
) -> dict[str, tuple[float, ...]]:
    """Return the strength of each block of a model, by label, or those of its layers where there are several.

    Args:
        model: A name in `SLIDERS`, but `other`.
        sliders: Factors, by what `SLIDERS` calls them.
        preset: Name of a preset, times which they are; empty for none.
        gradient: Numbers over the depth, likewise.
        labels: `IN04=0.5,OUT=0`: in place of all that, there.
        line: Any text of strengths, times which they are; empty for none.
        letters: What letters are, in a text that does not say so itself.

    Raises:
        ArgumentError: A preset, gradient, line or label that means nothing.
    """
    from ...lora_ops.adapters.strengths.by_block import DEPTH, by_label
    from ...lora_ops.adapters.strengths.rules import parse_rules, strengths
    from ...lora_ops.adapters.strengths.values import split

    letters = letters or Letters()
    known = layers(model)
    names = list(known.values())
    found: dict[str, tuple[float, ...]] = dict.fromkeys(known, (1.0,))
    texts = [",".join(f"{label}={value}" for label, value in sliders.items()), preset]
    texts += [DEPTH + gradient] if gradient else []
    for text in (letters.behind(one) for one in (*texts, line)):
        given, values = split(text)
        if "," in given and "=" not in given:
            for label, several in _listed(model, by_label(given, values)).items():
                found[label] = tuple(found[label][0] * one for one in several)
        elif given:
            _check_single(given)
            factors = strengths(names, blocks=text)
            found = {
                label: tuple(factors[known[label]] * one for one in held)
                for label, held in found.items()
            }
    _check_single(labels)
    for rule in parse_rules(names, blocks=letters.behind(labels) or None):
        found |= {label: (rule.strength,) for label, name in known.items() if rule.matches(name)}
    return found


def _listed(model: str, given: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """What a list of numbers says of each block of a model; 0 where it is silent, as where lists come from."""
    from ...lora_ops import ArgumentError
    from ...lora_ops.adapters.strengths.blocks import SCHEMES

    counts = LISTED.get(model, ())
    if len(given) not in counts:
        lists = (
            f"lists for it have {', '.join(map(str, counts))}"
            if counts
            else "there is no list for it"
        )
        raise ArgumentError(f"{len(given)} numbers are not for {model}: {lists}")
    scheme = SCHEMES[len(given)]
    found: dict[str, tuple[float, ...]] = {}
    for label in layers(model):
        parts = {one for name, one in given.items() if name.startswith(f"{label}.")}
        if len(parts) > 1:
            raise ArgumentError(
                f"{label} has different numbers for its parts ({len(given)} numbers in all), which "
                "cannot be drawn here; put the list into `blocks` itself"
            )
        unnamed = given[scheme.rest] if scheme.rest else (1.0 if label in scheme.spares else 0.0,)
        found[label] = given.get(label) or next(iter(parts), unnamed)
    return found


def _check_single(text: str) -> None:
    """Refuse several numbers for a block where they would need a name of each of its layers."""
    from ...lora_ops import ArgumentError

    if several := _SEVERAL.search(text):
        raise ArgumentError(
            f"`{several[0]}`: several numbers for a block are for a list of numbers here; put the text "
            "into `blocks` itself"
        )


def line_of(lines: str, name: str = "") -> str:
    """Return one line of a list of presets as sd-webui-lora-block-weight keeps them.

    Args:
        lines: `NAME:1,0,A,R`, one a line; what is not of that form is a comment.
        name: Which; empty: the first.

    Raises:
        ArgumentError: There is none of that name.
    """
    from ...lora_ops import ArgumentError

    held = [line.strip() for line in lines.splitlines() if line.strip()]
    named = {one.partition(":")[0].strip(): one for one in held if ":" in one}
    if name:
        if name not in named:
            raise ArgumentError(
                f"no line `{name}` in `lines`; there are {', '.join(named) or 'none with a name'}"
            )
        return named[name]
    return next(iter(named.values()), held[0] if held else "")


def inverted(values: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """One less each strength."""
    return {label: tuple(1 - one for one in several) for label, several in values.items()}


def bars(values: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """A number for each bar of a picture: those of the layers of a block beside each other."""
    return {
        f"{label}.{at}" if at else label: one
        for label, several in values.items()
        for at, one in enumerate(several)
    }


def as_text(model: str, values: Mapping[str, tuple[float, ...]]) -> str:
    """The strengths of a model's blocks as `blocks` takes them: a list of numbers, or a gradient."""
    if model in LISTED:
        return as_numbers(values)
    return as_gradient(values)


def as_numbers(values: Mapping[str, tuple[float, ...]]) -> str:
    """The list of numbers that `blocks` takes."""
    return ",".join(" ".join(map(_number, several)) for several in values.values())


def as_gradient(values: Mapping[str, tuple[float, ...]]) -> str:
    """The gradient that `blocks` takes: a number at each place."""
    from ...lora_ops.adapters.strengths.by_block import DEPTH

    return DEPTH + as_numbers(values)


def _number(value: float) -> str:
    return f"{round(value, 4):g}"
