"""The change as DoRA by rows: lengths of the tuned weight, over a LoRA that turns the rows.

W' = magnitude * (W + LoRA) / length, where the length is that of a row of W + LoRA (the paper, PEFT, LyCORIS) or
of W (ComfyUI). Rows of the tuned weight T, brought to the lengths that they have in W, have turned and done
nothing else: the LoRA is the truncation of that. Uncut, W + LoRA has the lengths of W, so that both readings give
T; cut, they differ in second order.
"""

from __future__ import annotations

import torch

from ....adapters.layers import DoraLayer, low_rank
from .change import Change, Made
from .lora import make_lora


def make_dora(change: Change) -> Made:
    """Return magnitudes, float32, over the LoRA of what the rows turned by.

    A magnitude is the length of the row of T along the direction that the row of W + LoRA has, by whose reading
    the change says: the length of T itself where nothing is cut, the best one where something is.

    A weight with a row of zeros has no direction there: it gets a plain LoRA.
    """
    base = change.base()
    tuned = base + change.delta
    before, after = (torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in (base, tuned))
    if not bool(((before > 0) & (after > 0)).all()):
        return make_lora(change)
    turned = (tuned * (before / after)).sub_(base)
    if not bool(turned.any()):  # rows grew, and did not turn
        turned = change.delta
    up, down = change.cut(turned).factors()
    del turned
    changed = base + up.to(change.dtype).float() @ down.to(change.dtype).float()
    length = torch.linalg.vector_norm(changed, dim=1, keepdim=True)
    along = (tuned * changed).sum(1, keepdim=True) / length
    if change.convention == "comfy":
        along *= before / length
    layer = low_rank(up, down, change.shape, alpha=float(down.shape[0]))
    magnitude = along.cpu().reshape(-1, *(1 for _ in change.shape[1:]))
    return Made(DoraLayer(layer, magnitude))
