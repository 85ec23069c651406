"""LoRA Loader (many): rows of files with strengths, onto a model, onto a stack, and as one LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..apply.applying import apply_rows
from ..form.schema import (
    lora_output,
    report_output,
    reported,
    schema,
    stack_input,
    stack_output,
    strength_input,
)
from ..form.texts import all_applied_text, headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import LaterLora, LoraModel, fingerprint, said_in
from ..host.rows import LETTERS, Row, files_in, of_stack, rows_of
from .lora_stack import summed

_SOCKET = "strength_"
# Which output the sum is.
_SUM = 3


class LoraLoader(io.ComfyNode):
    """Applies, stacks and sums any number of LoRA files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "LoraLoader",
            "LoRA Loader (many)",
            description="Any number of LoRA files, each on or off, with strengths and blocks: onto a model "
            "and its text encoders, onto a stack, and as one LoRA. What is off is not opened.",
            search_aliases=[
                "power lora loader",
                "lora stack",
                "lora stacker",
                "apply lora stack",
                "multi lora loader",
                "load several loras",
                "trigger words",
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            # Rows as objects, `lora_1`, `lora_2`, …: what scripts send to rgthree's loader.
            accept_all_inputs=True,
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model. It is not changed: a clone is. Without it the rows go "
                    "onto the stack alone.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoders. Without it, what the LoRAs have for them is left out.",
                ),
                stack_input(
                    "Rows of another node, before those here: on the model and on the stack."
                ),
                io.String.Input(
                    "rows",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="detail.safetensors | 0.8",
                    tooltip="One LoRA a line: `name | strength | strength on CLIP | blocks`; all but the name "
                    "may be left out, and # in front turns a row off. `<lora:name:0.8>` is read too. For a "
                    "strength, A to H is the number at that socket.",
                ),
                io.Autogrow.Input(
                    "strengths",
                    template=io.Autogrow.TemplateNames(
                        strength_input(_SOCKET, "A strength from another node.", optional=True),
                        names=[_SOCKET + letter for letter in LETTERS],
                        min=1,
                    ),
                    optional=True,
                    tooltip="Numbers for rows that have the letter as a strength; a new socket appears for "
                    "the next.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with all LoRAs on it."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoders with all LoRAs on them."
                ),
                stack_output("The stack that came in, and the rows that are on."),
                lora_output("The sum of that stack. It costs time only where it is used."),
                io.String.Output(
                    display_name="trigger_words",
                    tooltip="The trigger words of all LoRAs, separated by commas.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, rows: str | None = "", **given: Any) -> str:
        """A value that changes with the files of the rows, so that the host runs the node again."""
        if (
            rows is None or given.pop("lora_stack", "") is None
        ):  # the host does not tell which files
            return fingerprint(None)
        files = files_in(rows, _objects(given))
        return "".join(map(fingerprint, files))

    @classmethod
    @explained
    def execute(
        cls,
        rows: str = "",
        model: Any = None,
        clip: Any = None,
        lora_stack: Sequence[Any] = (),
        strengths: Mapping[str, float | None] | None = None,
        **given: Any,
    ) -> io.NodeOutput:
        """Apply them.

        Raises:
            FileNotFoundError: A file of the stack is not in models/loras.
            LoraOpsError: Nothing of a LoRA fits the model, or a row names no file, or has a strength
                or a block that means nothing.
        """
        arriving = {
            name.removeprefix(_SOCKET): one
            for name, one in (strengths or {}).items()
            if one is not None
        }
        own, notes = rows_of(rows, given, arriving)
        stack = [*of_stack(lora_stack), *own]
        made = apply_rows(model, clip, stack)
        notes += made.notes
        if any(row.blocks for row in stack):
            notes.append("blocks: other packs' nodes do not see them on the stack, lorakit's do")
        used = [row for row in stack if row[1] or row[2]]
        report = all_applied_text(made.told, notes) if made.told else _not_applied(used, notes)
        words = ", ".join(_words(used))
        if _is_used(cls):
            total = _sum_of(used)
        else:
            total = LaterLora(" + ".join(row[0] for row in used), lambda: _sum_of(used))
        return reported(report, made.model, made.clip, stack, total, words)


def _objects(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of what the host hands over that are no inputs of the node's own."""
    return {name: one for name, one in given.items() if isinstance(one, Mapping)}


def _not_applied(rows: Sequence[Row], notes: Sequence[str]) -> str:
    from ...lora_ops.report import counted

    told = [f"{name} at {model:g}, on CLIP {clip:g}" for name, model, clip in rows]
    what = counted(len(rows), "LoRA")
    return headed(
        f"{what} on the stack, none applied: nothing is connected to model", *told, *notes
    )


def _is_used(node: type[io.ComfyNode]) -> bool:
    """Whether anything is connected to the sum, as far as the host tells."""
    prompt, number = node.hidden.prompt or {}, node.hidden.unique_id
    wanted = [str(number), _SUM]
    return any(wanted == link for one in prompt.values() for link in one["inputs"].values())


def _sum_of(rows: Sequence[Row]) -> LoraModel:
    made = summed(rows)
    return LoraModel({}, "nothing") if made is None else made[1]


def _words(rows: Sequence[Row]) -> list[str]:
    """The trigger words of the files, each once."""
    found: dict[str, None] = {}
    for name in dict.fromkeys(row[0] for row in rows):
        found |= dict.fromkeys(said_in(host.file_path(name, host.LORAS)).trigger_words)
    return list(found)
