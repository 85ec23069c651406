from typing import Any

import torch
from torch import Tensor

class WeightAdapterBase:
    name: str
    loaded_keys: set[str]
    weights: Any
    def __init__(self, loaded_keys: set[str], weights: Any) -> None: ...
    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = ...,
        original_weight: Any = None,
    ) -> Tensor: ...
