"""Frozen weights in 4 and 8 bits: how much they take, how near they are, and training beside them."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_models import model, tokens, train, trained_parameters

from lorakit import lora_ops
from lorakit.lora_ops import collect, eject, inject, merge_into, store_frozen
from lorakit.lora_ops.errors import ArgumentError, UnsupportedLayerError
from lorakit.lora_ops.training.stored import STORES, Int8Linear, Nf4Linear

#: By store: bytes a number at most, and relative error on normal numbers at most.
PROMISES = {"nf4": (0.6, 0.1), "int8": (1.02, 0.01)}
# The quantiles again, from their definition: halves of equal probability around an exact zero.
OFFSET = 0.9677083  # QLoRA's own code: (1 - 1 / 30 + 1 - 1 / 32) / 2


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 24, bias=False))


def descend(module: nn.Module, steps: int = 40) -> list[float]:
    generator = torch.Generator().manual_seed(3)
    inputs, wanted = (torch.randn(64, size, generator=generator) for size in (96, 24))
    optimiser = torch.optim.Adam(trained_parameters(module).values(), 3e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (module(inputs) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("store", STORES)
def test_size_and_error_are_as_promised(store: str) -> None:
    weight = torch.randn(768, 512) * 0.02
    layer = STORES[store](weight, None)
    most, error = PROMISES[store]
    assert layer.stored_bytes / weight.numel() <= most
    assert (layer.dequantised() - weight).norm() / weight.norm() <= error
    # A stored weight is stored again without loss: it lies on the grid.
    again = STORES[store](layer.dequantised(), None).dequantised()
    assert (again - layer.dequantised()).norm() / weight.norm() <= 1e-2 * error


def test_nf4_has_the_quantiles_of_the_normal_distribution() -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(OFFSET, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(OFFSET, 0.5, 8)[:-1])
    levels = torch.cat([below, torch.zeros(1), above]).sort().values / above.max()
    stored = Nf4Linear(torch.randn(8, 8), None).get_buffer("levels")
    torch.testing.assert_close(stored, levels, rtol=0, atol=1e-5)


def test_nf4_against_a_loop() -> None:
    """Every number takes the nearest level of its block of 64, whose size is 8-bit itself."""
    weight = torch.randn(5, 100) * torch.logspace(-3, 1, 5)[:, None]
    layer = Nf4Linear(weight, None)
    levels, found = layer.get_buffer("levels"), layer.dequantised().flatten()
    flat = weight.flatten()
    for start in range(0, flat.numel(), 64):
        block, ours = flat[start : start + 64], found[start : start + 64]
        size = ours.abs().max() / levels[(block / block.abs().max()).abs().argmax().new_tensor(15)]
        for number, one in zip(block, ours, strict=True):
            nearest = min((level * size for level in levels), key=lambda at: abs(at - number))
            assert abs(one - number) <= abs(nearest - number) + 1e-6 * size


@pytest.mark.parametrize("store", STORES)
def test_odd_sizes_zeros_and_extremes(store: str) -> None:
    for weight in (torch.randn(3, 7), torch.zeros(4, 33), torch.full((2, 65), -1e30)):
        found = STORES[store](weight, None).dequantised()
        assert found.shape == weight.shape
        torch.testing.assert_close(found, weight, rtol=0.6, atol=0.3 * float(weight.abs().max()))
    mixed = torch.cat([torch.zeros(1, 64), torch.randn(1, 64)])
    assert not STORES[store](mixed, None).dequantised()[0].any()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_training_beside_them_follows_that_in_full(store: str, kind: str) -> None:
    losses = {}
    for name in ("fp32", store):
        module = network()
        if name != "fp32":
            assert store_frozen(module, store=name) == 2
        generator = torch.Generator().manual_seed(7)
        inject(module, "all", 8, kind=kind, generator=generator)
        losses[name] = torch.tensor(descend(module))
    assert losses["fp32"][-1] < 0.8 * losses["fp32"][0]
    # The stated band: 3 % of the loss at every step.
    torch.testing.assert_close(losses[store], losses["fp32"], rtol=0.03, atol=0)


@pytest.mark.parametrize("store", STORES)
def test_gradients_are_those_of_the_stored_weight(store: str) -> None:
    layer = nn.Linear(96, 40)
    module = nn.Sequential(copy.deepcopy(layer))
    store_frozen(module, store=store)
    dense = copy.deepcopy(layer)
    dense.weight.data = module[0].dequantised()
    inputs = torch.randn(6, 96)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    module(ours).square().sum().backward()
    dense(theirs).square().sum().backward()
    torch.testing.assert_close(module(inputs), dense(inputs))
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not [one for one in module.parameters() if one.requires_grad]
    assert module(inputs.bfloat16()).dtype == torch.bfloat16


def test_what_is_learned_bakes_into_the_full_checkpoint(tmp_path) -> None:
    module, base = model(), model().state_dict()
    save_file(
        {f"diffusion_model.{k}": one for k, one in base.items()}, tmp_path / "base.safetensors"
    )
    store_frozen(module, "attention")
    inject(module, "attention", 2)
    train(module)
    adapter = collect(module, prefix="diffusion_model.")
    lora_ops.save_adapter(adapter, tmp_path / "lora.safetensors")
    with (
        lora_ops.open_source(tmp_path / "base.safetensors") as checkpoint,
        lora_ops.open_source(tmp_path / "lora.safetensors") as lora,
    ):
        baked, _ = lora_ops.bake(checkpoint, [lora_ops.Ingredient(lora)])
    layer = adapter.layers["diffusion_model.attn.to_q"]
    expected = base["attn.to_q.weight"] + layer.delta()
    torch.testing.assert_close(baked["diffusion_model.attn.to_q.weight"], expected)
    stored = module.attn.to_q.dequantised()
    assert not torch.allclose(stored, base["attn.to_q.weight"])
    eject(module)
    assert isinstance(module.attn.to_q, Nf4Linear)
    assert module(tokens()).isfinite().all()


def test_bad_use() -> None:
    module = network()
    with pytest.raises(ArgumentError, match="one of nf4, int8"):
        store_frozen(module, store="fp4")
    with pytest.raises(ArgumentError, match="no linear layer"):
        store_frozen(model(), "conv")
    inject(module, "0", 2)
    with pytest.raises(UnsupportedLayerError, match="`0` carries an adapter"):
        store_frozen(module)
    eject(module)
    store_frozen(module, store="int8")
    assert isinstance(module[0], Int8Linear)
    inject(module, "all", 2)
    with pytest.raises(UnsupportedLayerError, match="bake it into the full-precision checkpoint"):
        merge_into(module)


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(ArgumentError, match="one of auto, torch, bitsandbytes"):
        store_frozen(network(), backend="torchao")
    with pytest.raises(ArgumentError, match=r"not installed|for store `nf4`"):
        store_frozen(network(), store="int8", backend="bitsandbytes")
    module = network()
    store_frozen(module)  # on the CPU the choice is ours, whatever is installed
    assert isinstance(module[0], Nf4Linear)


def test_layers_of_bitsandbytes_are_made_and_used() -> None:
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes"
    )
    module, whole = network(), network()
    assert store_frozen(module, backend="bitsandbytes") == 2
    assert isinstance(module[0], bitsandbytes.nn.Linear4bit)
    inputs = torch.randn(5, 96)
    plain = module(inputs)
    assert (plain - whole(inputs)).norm() < 0.2 * whole(inputs).norm()
    weight = module[0](torch.eye(96)).sub(module[0].bias).mT.float()
    inject(module, "0", 4, kind="dora")
    torch.testing.assert_close(module(inputs), plain, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        module[0].adapters["default"].up.normal_()
    layer = collect(module).layers["0"]
    expected = nn.functional.linear(inputs, weight + layer.change(weight), module[0].bias)
    torch.testing.assert_close(module[0](inputs), expected, rtol=1e-2, atol=2e-2)
    losses = descend(module)
    assert losses[-1] < losses[0]
    with pytest.raises(UnsupportedLayerError, match="full-precision checkpoint"):
        merge_into(module)
