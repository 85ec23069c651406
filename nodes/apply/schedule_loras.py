"""Schedule LoRAs: strengths that change as an image is sampled, or K-LoRA's choice of one of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..form.curves import parse_curve
from ..form.schema import report_output, reported, schema
from ..form.several import connected, lora_sockets
from ..form.texts import all_applied_text
from ..form.wording import explained
from ..host.api import io
from .scheduling import KLora, schedule

CURVES, K_LORA = "curves", "k-lora"
STEPS, NOISE = "steps", "noise"
S, S_STAR = "S", "S*"


class ScheduleLoras(io.ComfyNode):
    """Puts a wrapper on a clone of the model: the weights themselves stay as they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "ScheduleLoras",
            "Schedule LoRAs",
            description="LoRAs on a model with a strength for each moment of sampling, or by K-LoRA's rule one "
            "of two, chosen per layer and step. For the diffusion model alone; nothing is loaded again.",
            search_aliases=[
                *(
                    "schedule lora",
                    "lora schedule",
                    "lora keyframes",
                    "lora curve",
                    "timestep lora",
                ),
                *("start step", "stop step", "loractl", "k-lora", "klora", "hook lora"),
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model. It is not changed: a clone is."
                ),
                lora_sockets(2),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(CURVES, []),
                        io.DynamicCombo.Option(K_LORA, _k_lora_inputs()),
                    ],
                    tooltip="curves: each acts by its curve. k-lora: of two, the first for the subject and the "
                    "second for the style, one in each layer and step; times its curve.",
                ),
                io.String.Input(
                    "curves",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="0: 1, 0.5: 0.3, 1: 0\n0: 0, 0.5: 0, 0.5: 1 | OUTALL",
                    tooltip="A line for each socket, in order: strengths at points of sampling from 0 to 1, straight "
                    "between them (0: 1, 0.5: 0.3, 1: 0), two at one point for a jump; or one strength; and after "
                    "| strengths by block. Empty: 1 all the time.",
                ),
                io.Combo.Input(
                    "progress",
                    options=[STEPS, NOISE],
                    default=STEPS,
                    optional=True,
                    tooltip="What 0 to 1 means. steps: of the sampler's steps, each at its beginning. noise: as "
                    "start_percent of ComfyUI's own nodes, which goes on where another sampler begins.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRAs on it."),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        model: Any,
        loras: Mapping[str, Mapping[str, Tensor] | None],
        method: Mapping[str, Any] | None = None,
        curves: str = "",
        progress: str = STEPS,
    ) -> io.NodeOutput:
        """Put them on a clone.

        Raises:
            MismatchError: Nothing of a LoRA fits the model, or can be scheduled there.
            LoraOpsError: A curve, or a rule of blocks, is wrong; K-LoRA is not given two it can compare.
        """
        from ...lora_ops import ArgumentError

        if method is None:  # the host does not check this choice, and drops what it does not know
            raise ArgumentError(f"no such method; use {CURVES} or {K_LORA}")
        held = connected(loras)
        lines = curves.rstrip().splitlines()
        if held and len(lines) > (count := max(held) + 1):
            raise ArgumentError(
                f"{len(lines)} curves for {count} LoRAs: give a line each, in order"
            )
        rows = [
            (lora, parse_curve(lines[at] if at < len(lines) else "")) for at, lora in held.items()
        ]
        rule = None
        if method["method"] == K_LORA:
            arriving = sum(bool(lora) for lora, _ in rows)
            if len(rows) != 2 or arriving != 2:
                raise ArgumentError(
                    f"K-LoRA chooses between two LoRAs, and {arriving} {'arrives' if arriving == 1 else 'arrive'}; "
                    "connect the subject's first and the style's second"
                )
            rule = KLora(method["alpha"], method["beta"], method["scale"] == S_STAR)
        rows = [(lora, curve) for lora, curve in rows if lora]
        if not rows:
            return reported("no LoRA arrives: nothing to schedule", model)
        made, told, notes = schedule(model, rows, by_steps=progress == STEPS, rule=rule)
        return reported(all_applied_text(told, notes), made)


def _k_lora_inputs() -> list[io.Input]:
    """The numbers of K-LoRA, as its authors call them."""
    return [
        io.Float.Input(
            "alpha",
            default=1.5,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="How much the style's scale grows until the end.",
        ),
        io.Float.Input(
            "beta",
            default=0.5,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="The style's scale at the beginning: smaller is more of the subject. With S* its authors take "
            "0.85 times alpha.",
        ),
        io.Combo.Input(
            "scale",
            options=[S, S_STAR],
            default=S,
            tooltip="S: grows from beta on. S*: the same, and begins again at 0 where it reaches alpha: more of the "
            "style's blocks, which its authors advise for Flux.",
        ),
    ]
