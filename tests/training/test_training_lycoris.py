"""Training beside lycoris-lora: the same factors give the same output and the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lorakit.lora_ops import DictSource, decode, inject
from lorakit.lora_ops.adapters.adapter import Adapter

locon = pytest.importorskip(
    "lycoris.modules.locon", reason="lycoris-lora is not installed: pip install lycoris-lora"
)

LAYERS = {
    "linear": (lambda: nn.Linear(24, 32), (5, 24)),
    "conv3x3": (lambda: nn.Conv2d(6, 32, 3, padding=1, stride=2), (2, 6, 8, 8)),
    "conv1x1": (lambda: nn.Conv2d(24, 32, 1, bias=False), (2, 24, 4, 4)),
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("form", LAYERS)
def test_same_factors_same_output_and_gradients(form: str, dora: bool) -> None:
    make, shape = LAYERS[form]
    torch.manual_seed(4)
    theirs = nn.ModuleDict({"m": make()})
    ours = copy.deepcopy(theirs)
    module = locon.LoConModule(
        "m", theirs["m"], lora_dim=4, alpha=3, weight_decompose=dora, wd_on_out=True
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = {f"m.{key}": one.detach().clone() for key, one in module.state_dict().items()}
    module.apply_to()
    adapter: Adapter = decode(DictSource(state))
    inputs = torch.randn(shape)
    plain = ours["m"](inputs)
    inject(ours, adapter)
    one, other = ours["m"](inputs), theirs["m"](inputs)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (one - plain).abs().max() > 0.1
    if dora:
        return  # its length has a gradient; the paper's section 4.3, PEFT and ours detach it
    for output in (one, other):
        output.square().sum().backward()
    path = ours["m"].adapters["default"]
    for mine, its in ((path.up, module.lora_up), (path.down, module.lora_down)):
        torch.testing.assert_close(mine.grad, its.weight.grad, rtol=1e-4, atol=1e-4)
