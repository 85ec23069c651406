"""What a ControlNet of a UNet is called: its copy of the encoder, and the parts that are its own.

The original has the UNet's own names, often behind `control_model.`; diffusers has its own for all of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .architectures.unet_blocks import unet_names

#: How the names of what it shares with the UNet begin, and those of its own parts.
SHARED = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
OWN = ("zero_convs.", "middle_block_out.", "input_hint_block.")

_PREFIX = "control_model."
_HINTS = "controlnet_cond_embedding."
_DOWN = re.compile(r"controlnet_down_blocks\.(\d+)\.(weight|bias)")
_MIDDLE = "controlnet_mid_block."
_HINT = re.compile(
    r"controlnet_cond_embedding\.(?:(conv_in|conv_out)|blocks\.(\d+))\.(weight|bias)"
)


def control_names(keys: Collection[str]) -> dict[str, str]:
    """Return the keys of a ControlNet's parameters by native name, in the order of the keys.

    What has no native name keeps that which it has, without the prefix.

    Args:
        keys: All keys of the file. Where some begin with `control_model.`, the others belong to the
            model that it was trained on, and are left out.
    """
    inside = [key for key in keys if key.startswith(_PREFIX)]
    if inside:
        return {key.removeprefix(_PREFIX): key for key in inside}
    if not any(key.startswith(_HINTS) for key in keys):
        return {key: key for key in keys}
    table = unet_names(keys)
    return {_own(key, keys) or table.to_native(key) or key: key for key in keys}


def _own(key: str, keys: Collection[str]) -> str | None:
    """The native name of what is a ControlNet's own in diffusers."""
    zero, hint = _DOWN.fullmatch(key), _HINT.fullmatch(key)
    if zero is not None:
        return f"zero_convs.{zero[1]}.0.{zero[2]}"
    if key.startswith(_MIDDLE):
        return f"middle_block_out.0.{key.removeprefix(_MIDDLE)}"
    if hint is None:
        return None
    blocks = {found[2] for one in keys if (found := _HINT.fullmatch(one)) and found[2]}
    # Between two of its convolutions stands an activation, which counts and has no parameters.
    place = {"conv_in": 0, "conv_out": len(blocks) + 1}.get(hint[1] or "", 0)
    return f"input_hint_block.{2 * (int(hint[2]) + 1 if hint[2] else place)}.{hint[3]}"
