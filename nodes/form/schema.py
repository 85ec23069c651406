"""What the schemas of all nodes have in common: the inputs that many of them take, in one wording."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..host import host
from ..host.api import io, ui

CATEGORY = "model/lorakit"
# Where each node is found below that, in the words of the host's own folders where it has one.
GROUPS = {
    "loaders": (
        *("LoadLora", "LoraLoader", "ApplyLora", "ScheduleLoras", "StackToLora", "LoraToStack"),
    ),
    "edit": ("AddLoras", "ScaleLora", "ResizeLora", "ResizeFile", "ConvertLora", "EditMetadata"),
    "extract": (
        "ExtractLora",
        "ExtractLoraFromFiles",
        "ExtractAndSave",
        "ExtractControlLora",
        "RecordActivations",
        "SaveActivations",
    ),
    "blocks": ("BlockWeights", "BlockSweep"),
    "merging": (
        "MergeCheckpoints",
        "MergeModels",
        "MergeRecipe",
        "LoadMergeRecipe",
        "BakeLora",
        "SwapParts",
    ),
    "inspect": ("InspectLora", "CompareLoras", "LoraInfo", "ReadRecipe"),
    "saving": ("SaveLora", "SaveModel"),
}
DTYPES = ("as input", "fp16", "bf16", "fp32")
ROUNDINGS = ("nearest", "stochastic")
STRENGTH_LIMIT = 100.0

LoraStack = io.Custom("LORA_STACK")

_RULES = (
    "32 · energy=0.95 (share of the squared singular values) · fro=0.95 (share of the norm) · "
    "cumulative=0.9 · ratio=20 (keep those above the largest / 20) · threshold=0.001 · knee · "
    "error=0.05 (relative error at most), joined with min=, max=, conv= by commas"
)
_NOISE = (
    " · noise (what stands above the rounding of storage, each direction as long as it probably was), with "
    "max= and the like too"
)
_BUDGETS = " · or a budget over all layers: size=50MB, mean=16, total_error=0.1"
_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(node_id: str, display_name: str, **fields: Any) -> io.Schema:
    """Return a schema without the fields that this host is too old to know."""
    # A cached node has to ask that its report be sent again; one that ends a graph sends it anyway.
    resent = not fields.get("is_output_node", False)
    group = next((f"/{group}" for group, nodes in GROUPS.items() if node_id in nodes), "")
    fields = {"category": CATEGORY + group, "has_intermediate_output": resent, **fields}
    known = {name: value for name, value in fields.items() if name in _FIELDS}
    return io.Schema(node_id=f"Lorakit{node_id}", display_name=display_name, **known)


def lora_input(name: str = "lora", tooltip: str = "The LoRA.", **more: Any) -> io.LoraModel.Input:
    """A socket for an adapter."""
    return io.LoraModel.Input(name, tooltip=tooltip, **more)


def lora_output(tooltip: str) -> io.LoraModel.Output:
    """A socket with an adapter."""
    return io.LoraModel.Output(display_name="lora", tooltip=tooltip)


def stack_input(tooltip: str) -> io.Input:
    """A socket for a list of files with strengths, of these nodes or of another pack's."""
    return LoraStack.Input("lora_stack", optional=True, tooltip=tooltip)


def stack_output(tooltip: str) -> io.Output:
    """A socket with such a list."""
    return LoraStack.Output(display_name="lora_stack", tooltip=tooltip)


def report_output() -> io.String.Output:
    """The output with the report, which also stands on the node."""
    return io.String.Output(
        display_name="report", tooltip="What was done, in numbers, and what was not."
    )


def path_output() -> io.String.Output:
    """The output with the path of the file that was written."""
    return io.String.Output(display_name="path", tooltip="Where the file is.")


def strength_input(name: str = "strength", tooltip: str = "", **more: Any) -> io.Float.Input:
    """A factor on an adapter."""
    text = (
        tooltip
        or "Factor on the whole LoRA. 1 leaves it as it is, 0 removes it, below 0 inverts it."
    )
    return io.Float.Input(
        name,
        default=1.0,
        min=-STRENGTH_LIMIT,
        max=STRENGTH_LIMIT,
        step=0.01,
        tooltip=text,
        **more,
    )


def block_inputs() -> list[io.Input]:
    """Strengths by block and by name."""
    return [
        io.String.Input(
            "blocks",
            default="",
            optional=True,
            tooltip="Strengths by block, times the strength: a preset (OUTALL, INS, MIDD), labels "
            "(IN04=0.5,OUT=0), 12, 17, 20, 26, 61 or other known numbers of weights (1,0,0.5,…), or "
            "a gradient over the depth (depth=0,1). Empty: all blocks alike.",
        ),
        io.String.Input(
            "where",
            default="",
            multiline=True,
            optional=True,
            tooltip="Strengths by name, one PATTERN=S a line, times the strength; the last that fits "
            "decides, in place of what `blocks` says. A pattern is a component (te, te1, unet), words "
            "of the name (attn2), a shell pattern (*ff*) or a /regular expression/. Empty: all layers "
            "alike.",
        ),
    ]


def lines(text: str | None) -> list[str]:
    """The lines of a text input, without empty ones."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def rank_inputs(
    *, default: int, budgets: bool = False, noise: bool = False, none: str = ""
) -> list[io.Input]:
    """A plain rank, and a rule instead of it.

    Args:
        default: The plain rank; 0 where `none` says what that means.
        budgets: Whether rules over all layers together are possible.
        noise: Whether the rule is possible that asks how files are stored.
        none: What rank 0 without a rule means, for the tooltip; empty: rank 0 is not allowed.
    """
    meaning = "Directions that every layer keeps, at most."
    more = (_BUDGETS if budgets else "") + (_NOISE if noise else "")
    return [
        io.Int.Input(
            "rank",
            default=default,
            min=0 if none else 1,
            max=4096,
            tooltip=f"{meaning} 0: {none}" if none else meaning,
        ),
        io.String.Input(
            "rule",
            default="",
            optional=True,
            placeholder="energy=0.95,max=64",
            tooltip=f"Instead of the rank: {_RULES}{more}. Empty: the rank.",
        ),
    ]


def rule_of(rank: int, rule: str | None) -> str | int | None:
    """The rule that a node's two inputs mean; None for rank 0 without one."""
    return (rule or "").strip() or rank or None


def format_input(kept: str, tooltip: str) -> io.Combo.Input:
    """Whose names the tensors have."""
    names = [kept, "kohya", "comfy", "diffusers", "peft"]
    return io.Combo.Input("format", options=names, default=kept, optional=True, tooltip=tooltip)


def base_inputs() -> list[io.Input]:
    """Models beside a LoRA whose size is chosen."""
    return [
        io.Model.Input(
            "base",
            optional=True,
            tooltip="The model that the LoRA was trained on, for kinds that are made from its weights: "
            "DoRA stays DoRA, OFT, IA3 and the like become plain LoRA.",
        ),
        io.Model.Input(
            "relative_to",
            optional=True,
            tooltip="Under a budget (size=, mean=, total_error=), compare changes as shares of this model's "
            "weights.",
        ),
    ]


def dtype_input() -> io.Combo.Input:
    """What the numbers are stored as."""
    return io.Combo.Input(
        "dtype",
        options=list(DTYPES),
        default=DTYPES[0],
        optional=True,
        tooltip="What the result's numbers are stored as. Arithmetic is in fp32 whatever this is.",
    )


def rounding_input() -> io.Combo.Input:
    """How numbers are rounded."""
    return io.Combo.Input(
        "rounding",
        options=list(ROUNDINGS),
        default=ROUNDINGS[0],
        optional=True,
        tooltip="To the nearest number of the dtype, or up or down by chance, so that small changes stay "
        "on average.",
    )


def dtype_of(name: str | None) -> Any:
    """The torch dtype of a choice; None: as the input."""
    from ...lora_ops.linalg.storage import dtype_named

    return None if name in (None, DTYPES[0]) else dtype_named(name)


def prefix_input(default: str, more: str = "") -> io.String.Input:
    """Where a file goes."""
    return io.String.Input(
        "prefix",
        default=default,
        tooltip="Folder and beginning of the name in the output folder; a number is added, and "
        f"nothing is overwritten.{more}",
    )


def file_input(name: str, tooltip: str, folders: Sequence[str]) -> io.Combo.Input:
    """A choice of files; the host's refresh lists new ones."""
    return io.Combo.Input(name, options=host.file_names(*folders), tooltip=tooltip)


def reported(report: str, *values: Any, after: Sequence[Any] = ()) -> io.NodeOutput:
    """A node's outputs with the report, which also stands on the node.

    Args:
        report: Plain text.
        *values: Outputs before it.
        after: Outputs after it.
    """
    return io.NodeOutput(*values, report, *after, ui=ui.PreviewText(report))


def pictured(
    cls: type[io.ComfyNode], picture: Any, report: str, *values: Any, after: Sequence[Any] = ()
) -> io.NodeOutput:
    """A picture and a report, both as outputs and on the node.

    Args:
        cls: The node.
        picture: (1, height, width, 3), 0 to 1: the host's IMAGE.
        report: Plain text.
        *values: Outputs before them.
        after: Outputs after them.
    """
    shown = ui.PreviewImage(picture, cls=cls).as_dict()
    return io.NodeOutput(
        *values, picture, report, *after, ui={**shown, **ui.PreviewText(report).as_dict()}
    )
