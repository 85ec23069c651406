"""Training beside PEFT: the same start gives the same output, gradients and weights after ten steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from training_models import Model, model, tokens, trained_parameters

from lorakit.lora_ops import collect, decode, inject, open_source, save_adapter

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")

LAYERS = ["attn.to_q", "attn.to_k", "conv", "proj", "space", "table"]
KINDS = {"lora": LAYERS[:5], "dora": LAYERS[:5], "lora of a table": LAYERS}
#: By our name of an initialisation: PEFT's.
INITS = {"normal": "gaussian", "kaiming": True}


@pytest.fixture
def plain(monkeypatch) -> Model:
    """A model; PEFT makes each factor as a layer, whose own start is drawn and thrown away."""
    made = model()
    made.conv.padding_mode = "zeros"  # its paths beside convolutions know no other
    for kind in (nn.Linear, nn.Conv2d, nn.Conv3d):
        monkeypatch.setattr(kind, "reset_parameters", lambda _: None)
    return made


def theirs(plain: Model, kind: str, init: str, rank: int = 3, alpha: float = 2) -> nn.Module:
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=KINDS[kind],
        use_dora=kind == "dora",
        init_lora_weights=INITS[init],
    )
    torch.manual_seed(11)
    return peft.get_peft_model(copy.deepcopy(plain), config)


def ours(plain: Model, kind: str, init: str, rank: int = 3, alpha: float = 2) -> Model:
    module = copy.deepcopy(plain)
    torch.manual_seed(11)
    inject(module, KINDS[kind], rank, alpha, kind=kind[:4], init=init)
    return module


def factors(module: nn.Module) -> dict[tuple[str, str], Tensor]:
    """PEFT's trained tensors by target and role, in our shapes."""
    roles = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}
    roles |= {"lora_embedding_A": "up", "lora_embedding_B": "down"}
    found = {}
    for name, one in trained_parameters(module).items():
        target, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        role = roles["lora_" + rest.split(".")[0]]
        one = one.mT if "embedding" in rest else one
        found[target, role] = one.flatten() if role == "magnitude" else one
    return found


def own_factors(module: Model, of: str = "data") -> dict[tuple[str, str], Tensor]:
    return {
        (name.partition(".adapters.")[0], name.rpartition(".")[2]): getattr(one, of)
        for name, one in trained_parameters(module).items()
    }


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_start_same_way(plain: Model, kind: str, init: str) -> None:
    one, other = ours(plain, kind, init), theirs(plain, kind, init)
    start, expected = own_factors(one), factors(other)
    assert start.keys() == expected.keys()
    for key, tensor in expected.items():
        if kind == "lora of a table":  # they draw numbers for it that they throw away
            start[key].copy_(tensor.data)
        torch.testing.assert_close(start[key], tensor.data, rtol=0, atol=1e-6, msg=str(key))
    wanted = torch.randn(one(tokens()).shape)
    steps = [torch.optim.Adam(trained_parameters(m).values(), 0.02) for m in (one, other)]
    for step in range(10):
        for module, optimiser in zip((one, other), steps, strict=True):
            optimiser.zero_grad()
            (module(tokens()) - wanted).square().mean().backward()
        torch.testing.assert_close(one(tokens()), other(tokens()), rtol=1e-4, atol=1e-5)
        if step == 0:
            gradients = own_factors(one, "grad")
            for key, tensor in trained_gradients(other).items():
                torch.testing.assert_close(
                    gradients[key], tensor, rtol=1e-4, atol=1e-7, msg=str(key)
                )
        for optimiser in steps:
            optimiser.step()
    found = own_factors(one)
    for key, tensor in factors(other).items():
        torch.testing.assert_close(found[key], tensor.data, rtol=1e-3, atol=1e-4, msg=str(key))


def trained_gradients(module: nn.Module) -> dict[tuple[str, str], Tensor]:
    copied = copy.deepcopy(module)
    for (_, one), (_, held) in zip(
        copied.named_parameters(), module.named_parameters(), strict=True
    ):
        if held.grad is not None:
            one.data = held.grad.clone()
    return {key: one.data for key, one in factors(copied).items()}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_they_save_runs_here_and_back(plain: Model, kind: str, tmp_path) -> None:
    other = theirs(plain, kind, "kaiming")
    for one in trained_parameters(other).values():
        nn.init.normal_(one, 0.1, 0.3)
    other.save_pretrained(tmp_path / "theirs")
    with open_source(tmp_path / "theirs") as source:
        adapter = decode(source)
        module = copy.deepcopy(plain)
        inject(module, adapter)
        torch.testing.assert_close(module(tokens()), other(tokens()), rtol=1e-4, atol=1e-4)
    save_adapter(collect(module), tmp_path / "ours", format="peft")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "ours")
    torch.testing.assert_close(module(tokens()), loaded(tokens()), rtol=1e-4, atol=1e-4)
