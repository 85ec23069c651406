"""Which nodes of others ours can take the place of: graphs that ask for them open with ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import ComfyAPI, io

EXTRACT, RESIZE = "LorakitExtractAndSave", "LorakitResizeFile"

# Widgets are the old nodes', in their order, for graphs name them by position. What has no counterpart
# here, such as the choice of an algorithm, has no entry: ours keeps its default.
REPLACEMENTS: tuple[Mapping[str, Any], ...] = (
    {
        "old_node_id": "LoraSave",  # ComfyUI's Extract and Save Lora
        "new_node_id": EXTRACT,
        "old_widget_ids": ["filename_prefix", "rank", "lora_type", "bias_diff"],
        "input_mapping": [
            {"new_id": "tuned", "old_id": "model_diff"},
            {"new_id": "tuned_clip", "old_id": "text_encoder_diff"},
            {"new_id": "prefix", "old_id": "filename_prefix"},
            {"new_id": "rank", "old_id": "rank"},
            {"new_id": "full_differences", "old_id": "bias_diff"},
        ],
    },
    {
        "old_node_id": "LoraExtractKJ",  # ComfyUI-KJNodes
        "new_node_id": EXTRACT,
        "old_widget_ids": [
            *("filename_prefix", "rank", "lora_type", "algorithm", "lowrank_iters"),
            *("output_dtype", "bias_diff", "adaptive_param", "clamp_quantile"),
        ],
        "input_mapping": [
            {"new_id": "tuned", "old_id": "finetuned"},
            {"new_id": "base", "old_id": "original"},
            {"new_id": "prefix", "old_id": "filename_prefix"},
            {"new_id": "rank", "old_id": "rank"},
            {"new_id": "dtype", "old_id": "output_dtype"},
            {"new_id": "full_differences", "old_id": "bias_diff"},
        ],
    },
    {
        "old_node_id": "LoraReduceRankKJ",  # ComfyUI-KJNodes, shown as LoraReduceRank
        "new_node_id": RESIZE,
        "old_widget_ids": [
            *(
                "lora_name",
                "new_rank",
                "dynamic_method",
                "dynamic_param",
                "output_dtype",
                "verbose",
            ),
        ],
        "input_mapping": [
            {"new_id": "lora_name", "old_id": "lora_name"},
            {"new_id": "rank", "old_id": "new_rank"},
            {"new_id": "prefix", "set_value": "loras/resized"},
        ],
    },
)


async def register() -> None:
    """Tell the host, where it is new enough to ask (ComfyUI 0.13)."""
    known = getattr(ComfyAPI(), "node_replacement", None)
    if known is None or not hasattr(io, "NodeReplace"):
        return
    for replacement in REPLACEMENTS:
        await known.register(io.NodeReplace(**replacement))
