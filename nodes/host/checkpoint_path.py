"""Where a checkpoint is written: GGUF files have another name than others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host

if TYPE_CHECKING:
    from ...lora_ops import TensorSource


def checkpoint_path(
    prefix: str, default: str, *, to: str, dtype: Any, like: TensorSource | None = None
) -> Path:
    """The next free name of a checkpoint under a prefix: of a GGUF file, where it is to be one.

    Args:
        prefix: Folder and beginning of the name.
        default: The prefix to take if it is empty.
        to: How the weights are stored; empty: as they are.
        dtype: Of the numbers, if any is asked for.
        like: What the checkpoint is made like; of a GGUF file comes another, where nothing else is said.

    Raises:
        ArgumentError: The prefix leads out of the output folder.
    """
    from ...lora_ops.files.quantised.encoding_gguf import GGUF_TYPES
    from ...lora_ops.operations.weights.gguf_file_plan import gguf_file

    stays = not to and not dtype and like is not None and gguf_file(like) is not None
    is_gguf = to in GGUF_TYPES or stays
    return host.output_path(prefix, default, host.GGUF if is_gguf else host.SAFETENSORS)
