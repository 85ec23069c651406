"""Block Weights: sliders, presets and gradients by block, as the text that `blocks` inputs take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..form.pictures import as_image
from ..form.schema import pictured, report_output, schema
from ..form.texts import headed
from ..form.wording import explained
from .model_blocks import SLIDERS, as_gradient, as_numbers, by_block

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
            description="Strengths by the blocks of a model: sliders, times a preset, times a gradient. Gives "
            "the text for `blocks` of Apply LoRA, Scale LoRA and the merging nodes, and a picture of it.",
            search_aliases=["mbw", "lbw", "block weight", "layer weights", "merge blocks"],
            is_output_node=True,
            inputs=[
                io.DynamicCombo.Input(
                    "model",
                    options=[io.DynamicCombo.Option(name, _parts(name)) for name in SLIDERS],
                    tooltip="What the sliders are for: SDXL, SD1 (SD2 too), Flux, or any other model with "
                    "numbered blocks, by depth.",
                )
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
    def execute(cls, model: Mapping[str, Any] | None = None) -> io.NodeOutput:
        """Write and draw them.

        Raises:
            ArgumentError: A gradient or label that means nothing.
        """
        from ...lora_ops import ArgumentError
        from ...pictures import block_weights_picture

        if model is None:  # the host does not check this choice, and drops what it does not know
            raise ArgumentError(f"no such model; use one of {', '.join(SLIDERS)}")
        name = model["model"]
        sliders = {label: float(model.get(label, 1.0)) for label in SLIDERS[name]}
        if name == "other":
            values = {f"{label.removeprefix('depth_')} %": one for label, one in sliders.items()}
            title, text = "Any model, by depth", as_gradient(sliders)
        else:
            preset, gradient, labels = (
                str(model.get(part) or "").strip() for part in ("preset", "gradient", "labels")
            )
            preset = "" if preset == NO_PRESET else preset
            values = by_block(name, sliders, preset, gradient, labels)
            title, text = _TITLES[name], as_numbers(values)
        low, high = min(values.values()), max(values.values())
        span = f"all {low:g}" if low == high else f"{low:g} to {high:g}"
        report = headed(f"{title}: {len(values)} strengths, {span}", text)
        return pictured(cls, as_image(block_weights_picture(title, values)), report, text)


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
    if model == "Flux":  # for which there are no presets
        return [*texts, *sliders]
    preset = io.Combo.Input(
        "preset",
        options=[NO_PRESET, *PRESETS],
        default=NO_PRESET,
        tooltip="Known lists of strengths by name, from merge-block-weighted and lora-block-weight.",
    )
    return [preset, *texts, *sliders]


def _place(label: str) -> str:
    if label in _PLACES:
        return _PLACES[label]
    if label.startswith("depth_"):
        return f"the block at {label.removeprefix('depth_')} % of the depth"
    return f"{'blocks' if '-' in label else 'block'} {label}"
