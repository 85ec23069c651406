"""Numbers beyond what a checkpoint's dtype holds are an error, also where torch's cast makes the largest of them."""

from __future__ import annotations

import pytest
import torch
from baking import adapter, randn, thin

from lorakit.lora_ops import DictSource, NonFiniteError, bake

DTYPES = {torch.float16: 65504.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [1.2, 1e5, torch.inf])
def test_what_a_dtype_does_not_hold_is_an_error(dtype: torch.dtype, times: float) -> None:
    base = DictSource({"blocks.0.a.weight": torch.zeros(64, 64).to(dtype)})
    lora = thin("diffusion_model.blocks.0.a", (64, 64), rank=1)
    up, down = lora
    lora[up], lora[down] = randn(64, 1).clamp(-1, 1), torch.ones(1, 64)
    lora[up][3] = times * DTYPES[dtype]
    with pytest.raises(NonFiniteError):
        bake(base, [adapter(lora)])
    lora[up][3] = DTYPES[dtype] * (1 + torch.finfo(dtype).eps / 8)
    baked, _ = bake(base, [adapter(lora)])
    assert float(baked["blocks.0.a.weight"][3].float().max()) == DTYPES[dtype]
