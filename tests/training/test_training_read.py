"""Layers whose weight torch takes without calling them: the adapter acts all the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from training_models import trained_parameters

from lorakit.lora_ops import collect, eject, inject, merge_into, set_strength, store_frozen, unmerge
from lorakit.lora_ops.errors import ArgumentError, UnsupportedLayerError


class Attention(nn.Module):
    """Torch's own, whose `out_proj` is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


MODELS = {
    "attention": Attention,
    "layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    "encoder": encoder,
    "decoder": lambda: Decoder(),
}


class Decoder(nn.Module):
    """Attention to two things."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(1))


def dented(name: str, kind: str, mode: bool) -> tuple[nn.Module, nn.Module]:
    """A model with an adapter, and the plain model with the weights that the definition says."""
    torch.manual_seed(0)
    plain = MODELS[name]().train(mode)
    module = copy.deepcopy(plain)
    inject(module, "all", 2, alpha=3, kind=kind)
    generator = torch.Generator().manual_seed(1)
    for own, one in trained_parameters(module).items():
        start = one.data if own.endswith("magnitude") else torch.zeros_like(one)
        one.data = start + 0.4 * torch.randn(one.shape, generator=generator)
    for target, layer in collect(module).layers.items():
        weight = plain.get_submodule(target).weight
        thin = getattr(layer, "inner", layer)
        moved = weight.data + 1.5 * thin.up @ thin.down
        if kind == "dora":
            moved *= layer.magnitude.reshape(-1, 1) / moved.norm(dim=1, keepdim=True)
        weight.data = moved
    return module, plain


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_that_of_the_changed_weights(name: str, kind: str, mode: bool) -> None:
    module, expected = dented(name, kind, mode)
    x = torch.randn(3, 5, 8)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(module(x), expected(x), **close)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), expected(x), **close)
        merge_into(module)
        torch.testing.assert_close(module(x), expected(x), **close)
        unmerge(module)
        set_strength(module, 0)
        still = module(x)
        set_strength(module, 1)
        assert (still - expected(x)).abs().max() > 1e-2


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_every_path_is_trained(name: str, mode: bool) -> None:
    module, _ = dented(name, "lora", mode)
    module(torch.randn(3, 5, 8)).square().sum().backward()
    gradients = {own: one.grad for own, one in trained_parameters(module).items()}
    assert gradients
    assert all(one is not None and one.abs().max() > 0 for one in gradients.values())


@pytest.mark.parametrize("name", MODELS)
def test_ejected_it_is_what_it_was(name: str) -> None:
    torch.manual_seed(0)
    module = MODELS[name]()
    before = copy.deepcopy(module.state_dict())
    weights = {own: id(one) for own, one in module.named_parameters()}
    classes = [*map(type, module.modules())]
    inject(module, "all", 2)
    assert {own: id(one) for own, one in module.named_parameters() if own in weights} == weights
    merge_into(module)
    eject(module)
    after = module.state_dict()
    assert [*after] == [*before]
    assert all(torch.equal(before[own], one) for own, one in after.items())
    assert [*map(type, module.modules())] == classes


def test_dropout_has_no_input_to_drop_of() -> None:
    module = Attention()
    with pytest.raises(UnsupportedLayerError, match=r"`attn\.out_proj` is never called"):
        inject(module, "all", 2, dropout=0.1)
    assert all(one.requires_grad for one in module.parameters())


def test_what_is_read_stays_in_full_precision() -> None:
    module = MODELS["decoder"]().eval()
    x = torch.randn(2, 5, 8)
    before = module(x)
    assert store_frozen(module, "all", store="int8") == 2  # linear1 and linear2, which are called
    torch.testing.assert_close(module(x), before, rtol=0.05, atol=0.05)
    layer = MODELS["layer"]().eval()
    with pytest.raises(ArgumentError, match="no linear layer"):
        store_frozen(layer, "all", store="int8")


def test_a_convolution_in_groups_is_refused_before_anything_changes() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(UnsupportedLayerError, match=r"`1` is a convolution in 2 groups"):
        inject(module, "all", 2)
    assert all(one.requires_grad for one in module.parameters())
    assert type(module[0]) is nn.Linear
