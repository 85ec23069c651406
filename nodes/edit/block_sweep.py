"""LoRA Block Sweep: a LoRA many times, each with other blocks off or alone, so that a batch draws them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..form.schema import lora_input, report_output, reported, schema
from ..form.texts import headed
from ..form.wording import explained
from ..host import host
from ..host.api import io
from ..host.lora_model import LoraModel, as_file, from_file

if TYPE_CHECKING:
    from ...lora_ops import MemoryFile
    from ...lora_ops.adapters.strengths.blocks import Blocks

OFF, ALONE, LINES = "one off", "one alone", "each line"
BLOCK, SECTION = "block", "section"
_WHOLE = "all"
# Strengths of the whole LoRA, as text.
_AS_IT_IS = "ALL"


class BlockSweep(io.ComfyNode):
    """Gives a list of LoRAs, and one of labels: what takes one of them runs once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "BlockSweep",
            "LoRA Block Sweep",
            description="A LoRA many times over, each time with one block or group off, or alone, or at the "
            "strengths of a line: all that follows runs once for each. Shows what each block does.",
            search_aliases=[
                *("block sweep", "lora block weight", "lora block weight xy", "xy plot", "lbw"),
                *("block analyzer", "which block", "effective block"),
            ],
            inputs=[
                lora_input(),
                io.Combo.Input(
                    "mode",
                    options=[OFF, ALONE, LINES],
                    default=OFF,
                    tooltip="one off: all but a group. one alone: a group and nothing else. each line: each "
                    "line of `groups` is a text of strengths by block, such as a preset or NAME:1,0,….",
                ),
                io.Combo.Input(
                    "by",
                    options=[BLOCK, SECTION],
                    default=BLOCK,
                    tooltip="What a group is where `groups` is empty: each block of the LoRA, or each "
                    "section (IN, M, OUT, D, S, B, text encoders).",
                ),
                io.String.Input(
                    "groups",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="IN01-IN05, M00, OUT03 OUT04",
                    tooltip="The groups, separated by commas or lines: blocks, sections or ranges, several of "
                    "them with spaces between. Empty: see `by`.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="What is off has this strength instead of none.",
                ),
                io.Boolean.Input(
                    "with_whole",
                    default=True,
                    optional=True,
                    tooltip="Begin with the LoRA as it is, to compare with.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="loras",
                    tooltip="The LoRAs, one after another.",
                    is_output_list=True,
                ),
                io.String.Output(
                    display_name="labels", tooltip="What each of them is.", is_output_list=True
                ),
                io.String.Output(
                    display_name="blocks",
                    tooltip="The strengths of each, for an input `blocks`, in place of the LoRAs.",
                    is_output_list=True,
                ),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        mode: str,
        by: str,
        groups: str = "",
        strength: float = 0.0,
        with_whole: bool = True,
    ) -> io.NodeOutput:
        """Make them.

        Raises:
            ArgumentError: A group that is none of the LoRA's, or no blocks are known in it.
            LoraOpsError: A layer of a kind that no strength can be written into.
        """
        if not lora:
            return reported("the LoRA is empty: nothing to sweep", [lora], [_WHOLE], [_AS_IT_IS])
        file = as_file(lora)
        texts = dict(_texts(file, mode, by, groups, strength))
        step = host.progress()
        made: list[LoraModel] = [from_file(file)] if with_whole else []
        for done, (label, text) in enumerate(texts.items()):
            made.append(_scaled(file, label, text))
            step(done + 1, len(texts), label)
        labels = [*([_WHOLE] if with_whole else []), *texts]
        blocks = [*([_AS_IT_IS] if with_whole else []), *texts.values()]
        report = headed(f"{file.name}: {len(made)} LoRAs", ", ".join(labels))
        return reported(report, made, labels, blocks)


def _scaled(file: MemoryFile, label: str, text: str) -> LoraModel:
    """The LoRA at the strengths of a text; with nothing in it where that leaves none of its layers."""
    from ...lora_ops import Ingredient, MemoryFile, decode, scale_file
    from ...lora_ops.adapters.strengths.rules import strengths
    from ...version import __version__

    name = f"{file.stem} ({label})"
    if not any(strengths(list(decode(file).layers), blocks=text).values()):
        return LoraModel({}, name)
    made = MemoryFile(name)
    scale_file(Ingredient(file, blocks=text), made, version=__version__)
    return from_file(made)


def _texts(
    file: MemoryFile, mode: str, by: str, groups: str, strength: float
) -> Iterator[tuple[str, str]]:
    """The label and the strengths of each LoRA.

    Raises:
        ArgumentError: No blocks are known in the file, or there are no groups.
    """
    from ...lora_ops import ArgumentError

    lines = [line.strip() for line in groups.splitlines() if line.strip()]
    if mode == LINES:
        if not lines:
            raise ArgumentError("`groups` is empty; write strengths by block, one text a line")
        for line in lines:
            name, colon, _ = line.partition(":")
            yield (name.strip() if colon else line), line
        return
    entries = [one.split() for line in lines for one in line.split(",") if one.strip()]
    for labels in entries or _own(file, by):
        title = " ".join(labels)
        swept = ",".join(f"{label}={1 if mode == ALONE else repr(strength)}" for label in labels)
        if mode == ALONE:
            yield f"{title} alone", f"ALL={strength!r},{swept}"
        else:
            yield f"{title} off" if not strength else f"{title} at {strength:g}", swept


def _own(file: MemoryFile, by: str) -> Sequence[Sequence[str]]:
    """The file's blocks, or its sections, each as a group."""
    from ...lora_ops import ArgumentError, decode
    from ...lora_ops.adapters.strengths.blocks import locate

    found = locate(decode(file).layers)
    if found is None:
        raise ArgumentError(
            f"no numbered blocks are known in `{file.name}`; use `mode` each line, or Scale LoRA with "
            "`where`"
        )
    return [[label] for label in (found.labels if by == BLOCK else _sections(found))]


def _sections(blocks: Blocks) -> Sequence[str]:
    return list(dict.fromkeys(block.section.label for block in blocks.modules))
