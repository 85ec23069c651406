"""A patch of our own kind: a weight that is computed anew, when and where ComfyUI wants it.

The host casts a weight to what it computes patches in (fp16 on most GPUs) before it hands it to them.
This one does not look at what it is given, so that nothing is rounded before all is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

#: From a device to a weight on it, in float32: memory of the caller's own.
Compute: TypeAlias = Callable[[torch.device], Tensor]
# The host sets memory aside on a GPU for the tensors of a patch, and was never asked for none at all.
_SOMETHING = torch.zeros(1)


class Computed(WeightAdapterBase):
    """Takes the place of a weight and of all patches before.

    The host makes adapters again from `loaded_keys` and `weights`, so all that is known is in there.
    """

    name = "lorakit"

    def __init__(self, loaded_keys: set[str], weights: tuple[Compute, Tensor]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Compute it; in float32 where the host rounds it afterwards, else in what it asks for."""
        compute, _ = self.weights
        return compute(weight.device).to(intermediate_dtype)


def replaced(patcher: Any, weights: Mapping[str, Compute]) -> Any:
    """A clone of a MODEL or CLIP in which some weights are computed: one patch for each of them.

    Args:
        patcher: Left as it is. Patches on these weights are not in the clone: what is computed has them.
        weights: How, by the host's key.
    """
    clone = patcher.clone()
    patches = getattr(clone, "patcher", clone).patches
    for key in weights:
        patches.pop(key, None)
    clone.add_patches(
        {key: Computed(set(), (compute, _SOMETHING)) for key, compute in weights.items()}
    )
    return clone
