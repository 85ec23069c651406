"""Block Weights: sliders, presets and gradients by block, as the text that `blocks` inputs take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..form.pictures import as_image
from ..form.schema import pictured, report_output, schema
from ..form.texts import headed
from ..form.wording import explained
from ..host.api import io
from .model_blocks import SLIDERS, Letters, as_gradient, as_text, bars, by_block, inverted, line_of

NO_PRESET = "none"
# Repeats the core's names: importing it would slow the host's start. A test compares the two.
_SMOOTH = (
    "SMOOTHSTEP*2",
    "SMOOTHSTEP*3",
    "SMOOTHSTEP*4",
    "SMOOTHSTEP/2",
    "SMOOTHSTEP/3",
    "SMOOTHSTEP/4",
)
PRESETS = (
    *("NONE", "ALL", "ALL0.5", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL"),
    *("ALL_A", "ALL_B", "FLAT_25", "FLAT_75", "WRAP08", "WRAP12", "WRAP14", "WRAP16", "MID12_50"),
    *("OUT07", "OUT12", "OUT12_5", "RING08_5", "RING08_SOFT", "RING10_3", "RING10_5"),
    *("GRAD_A", "GRAD_V", "SMOOTHSTEP", "REVERSE-SMOOTHSTEP", *_SMOOTH),
    *(f"R_{name}" for name in _SMOOTH),
    *("COSINE", "REVERSE_COSINE", "TRUE_CUBIC_HERMITE", "TRUE_REVERSE_CUBIC_HERMITE"),
    *("FAKE_CUBIC_HERMITE", "FAKE_REVERSE_CUBIC_HERMITE"),
)
BANDS = ("FIRST-HALF", "LAST-HALF", "FIRST-THIRD", "MIDDLE-THIRD", "LAST-THIRD")
UNET_PRESETS = ("MIDALL", "MIDD0.2", "MIDD0.8", "MOUT", "ROUT", "AOUT", "AB")
FLUX_PRESETS = (
    *("FLUXALL", "FLUX-ALL", "FLUX-DBL-ALL", "FLUX-DBL-FRONT7", "FLUX-DBL-MID6", "FLUX-DBL-TAIL6"),
    *("FLUX-SINGLE-ALL", "FLUX-SINGLE-1TO10", "FLUX-SINGLE-11TO20", "FLUX-SINGLE-21TO30"),
    "FLUX-SINGLE-31TO37",
)
# The presets in the choice of each model.
_CHOICES = {
    **dict.fromkeys(("SDXL", "SD1"), (*PRESETS, *UNET_PRESETS, *BANDS)),
    **dict.fromkeys(("Flux", "Chroma"), (*FLUX_PRESETS, *BANDS)),
    **dict.fromkeys(("Wan", "Qwen-Image", "Z-Image"), BANDS),
}
_TITLES = {"SDXL": "Stable Diffusion XL", "SD1": "Stable Diffusion 1 and 2", "Flux": "Flux.1"}
_PLACES = {
    "BASE": "all text encoders",
    "CLIP": "the text encoder CLIP-L",
    "T5": "the text encoder T5",
    "depth_0": "the first of the model's numbered blocks",
    "depth_100": "the last of the model's numbered blocks",
}


class BlockWeights(io.ComfyNode):
    """Writes strengths by block as text, and draws them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "BlockWeights",
            "Block Weights",
            description="Strengths by the blocks of a model: sliders, times a preset, times a gradient, times a "
            "line of numbers and letters. Gives the text for `blocks` of Apply LoRA, Scale LoRA and the "
            "merging nodes, and a picture of it.",
            search_aliases=[
                *("lora block weight", "mbw", "lbw", "block weight", "layer weights"),
                *("merge blocks", "block weight preset", "make lora block weight"),
            ],
            is_output_node=True,
            inputs=[
                io.DynamicCombo.Input(
                    "model",
                    options=[io.DynamicCombo.Option(name, _parts(name)) for name in SLIDERS],
                    tooltip="What the sliders are for: SDXL, SD1 (SD2 too), Flux and so on, or any other model "
                    "with numbered blocks, by depth.",
                ),
                *_lines(),
            ],
            outputs=[
                io.String.Output(
                    display_name="blocks", tooltip="The strengths, for an input `blocks`."
                ),
                io.Image.Output(display_name="picture", tooltip="The strengths, block by block."),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        model: Mapping[str, Any] | None = None,
        lines: str = "",
        line: str = "",
        letter_a: float = 1.0,
        letter_b: float = 1.0,
        draw_seed: int = 0,
        invert: bool = False,
    ) -> io.NodeOutput:
        """Write and draw them.

        Raises:
            ArgumentError: A gradient, label or line that means nothing.
        """
        from ...lora_ops import ArgumentError
        from ...pictures import block_weights_picture

        if model is None:  # the host does not check this choice, and drops what it does not know
            raise ArgumentError(f"no such model; use one of {', '.join(SLIDERS)}")
        name = str(model["model"])
        sliders = {label: float(model.get(label, 1.0)) for label in SLIDERS[name]}
        chosen = line_of(lines, line.strip())
        if name == "other":
            if chosen:
                raise ArgumentError(
                    "`lines` are for a model with known blocks; choose it as `model`"
                )
            values = {label: (one,) for label, one in sliders.items()}
            title = "Any model, by depth"
        else:
            preset, gradient, labels = (
                str(model.get(part) or "").strip() for part in ("preset", "gradient", "labels")
            )
            preset = "" if preset == NO_PRESET else preset
            letters = Letters(letter_a, letter_b, draw_seed)
            values = by_block(name, sliders, preset, gradient, labels, chosen, letters)
            title = str(_TITLES.get(name, name))
        values = inverted(values) if invert else values
        text = as_gradient(values) if name == "other" else as_text(name, values)
        drawn = bars(
            {_depth(label): one for label, one in values.items()} if name == "other" else values
        )
        low, high = min(drawn.values()), max(drawn.values())
        span = f"all {low:g}" if low == high else f"{low:g} to {high:g}"
        told = [f"of the line `{chosen}`"] if chosen else []
        report = headed(f"{title}: {len(drawn)} strengths, {span}", text, *told)
        return pictured(cls, as_image(block_weights_picture(title, drawn)), report, text)


def _depth(label: str) -> str:
    return f"{label.removeprefix('depth_')} %"


def _lines() -> list[io.Input]:
    """What is typed, and what its letters are."""
    return [
        io.String.Input(
            "lines",
            default="",
            multiline=True,
            optional=True,
            placeholder="MINE:1,0,0,0,1,1,1,1,A,A,R,R,0,0,0,0,0",
            tooltip="Lists of numbers by block as sd-webui-lora-block-weight keeps them, one NAME:1,0,… a line, "
            "times the rest. For a number may stand A, B (a, b: half of them), R (drawn from 0 to 1) or U "
            "(from -1.5 to 1.5), or several with spaces between, for the layers of the block in order. Any "
            "other text of strengths does too (%in2-4=0, IN04=0.5).",
        ),
        io.String.Input(
            "line",
            default="",
            optional=True,
            tooltip="Name of the line that is taken. Empty: the first.",
        ),
        *(
            io.Float.Input(
                f"letter_{letter.lower()}",
                default=1.0,
                min=-10.0,
                max=10.0,
                step=0.01,
                optional=True,
                tooltip=f"What {letter} is in lines, labels and presets.",
            )
            for letter in "AB"
        ),
        io.Int.Input(
            "draw_seed",
            default=0,
            min=0,
            max=999_999,
            optional=True,
            tooltip="What R and U are drawn with: the same seed draws the same.",
        ),
        io.Boolean.Input(
            "invert",
            default=False,
            optional=True,
            tooltip="1 less each strength, at the end: what is left for a second LoRA.",
        ),
    ]


def _parts(model: str) -> list[io.Input]:
    """What can be set for a model."""
    sliders: list[io.Input] = [
        io.Float.Input(
            label,
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            display_mode=io.NumberDisplay.slider,
            tooltip=f"Strength in {_place(label)}, times preset and gradient.",
        )
        for label in SLIDERS[model]
    ]
    if model == "other":
        return sliders
    texts: list[io.Input] = [
        io.String.Input(
            "gradient",
            default="",
            placeholder="0, 0.5, 1",
            tooltip="Numbers at equal distances over the depth, from the first numbered block to the last, and "
            "linear in between. Text encoders are not touched.",
        ),
        io.String.Input(
            "labels",
            default="",
            placeholder="IN04=0.5, OUT=0",
            tooltip="Strengths of single blocks, sections or ranges (IN04=0.5,OUT=0,IN08-OUT02=1), in place of all "
            "that the others give.",
        ),
    ]
    preset = io.Combo.Input(
        "preset",
        options=[NO_PRESET, *_CHOICES[model]],
        default=NO_PRESET,
        tooltip="Known lists of strengths by name, from merge-block-weighted, lora-block-weight and the Inspire "
        "Pack, and parts of the depth.",
    )
    if model == "Flux":  # saved graphs hold values by position, and had no preset here
        return [*texts, *sliders, preset]
    return [preset, *texts, *sliders]


def _place(label: str) -> str:
    if label in _PLACES:
        return _PLACES[label]
    if label.startswith("depth_"):
        return f"the block at {label.removeprefix('depth_')} % of the depth"
    return f"{'blocks' if '-' in label else 'block'} {label}"
