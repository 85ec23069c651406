"""Adapters in a live module: what they add, what they leave alone, and how they come out again."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from training_models import Model, model, tokens, train, trained_parameters

from lorakit import lora_ops
from lorakit.lora_ops import (
    collect,
    disable,
    eject,
    enable,
    inject,
    merge_into,
    set_strength,
    unmerge,
)
from lorakit.lora_ops.errors import (
    ArgumentError,
    MismatchError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)

NO_TABLE = ["attn.*", "conv", "proj", "space"]
KINDS = {"lora": "all", "dora": NO_TABLE}
LAYERS = ["table", "attn.to_q", "attn.to_k", "conv", "proj", "space"]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in module.state_dict().items()}


def truth(module: Model, name: str = "default", strength: float = 1.0) -> Model:
    """The plain model whose weights are what the definitions say, in float64."""
    changed = copy.deepcopy(module)
    eject(changed)
    changed = changed.double()
    for target, layer in collect(module, name).layers.items():
        weight = changed.get_submodule(target).weight
        up, down = (layer.inner if hasattr(layer, "inner") else layer).factors()
        delta = (up.double() @ down.double()).reshape(weight.shape)
        if hasattr(layer, "magnitude"):
            whole = weight.detach() + delta
            length = whole.flatten(1).norm(dim=1)
            ratio = layer.magnitude.double().flatten() / length
            delta = whole * ratio.reshape(-1, *[1] * (weight.ndim - 1)) - weight.detach()
        weight.data += strength * delta
    return changed


@pytest.mark.parametrize("init", ["normal", "kaiming", "pissa"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_at_the_base(kind: str, init: str) -> None:
    if (kind, init) == ("dora", "pissa"):
        with pytest.raises(ArgumentError, match="pissa"):
            inject(model(), NO_TABLE, 2, kind=kind, init=init)
        return
    module, before = model(), model()(tokens())
    inject(module, KINDS[kind], 2, kind=kind, init=init)
    found = module(tokens())
    tolerance = 2e-6 if (kind, init) != ("lora", "normal") else 0.0
    torch.testing.assert_close(found, before, rtol=0, atol=tolerance)
    losses = train(module)
    assert losses[-1] < 0.95 * losses[0]
    assert (module(tokens()) - before).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_the_output_is_that_of_the_changed_weights(kind: str, strength: float) -> None:
    module = model()
    inject(module, KINDS[kind], 3, alpha=1.5, kind=kind, init="kaiming")
    train(module)
    set_strength(module, strength)
    expected = truth(module, strength=strength)(tokens())
    torch.testing.assert_close(module(tokens()).double(), expected, rtol=1e-5, atol=1e-5)
    # The scale is alpha / rank, neither alpha nor 1.
    set_strength(module, strength * 2)
    assert (module(tokens()).double() - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_eject_gives_the_module_back(kind: str) -> None:
    module = model()
    module.norm.weight.requires_grad_(False)
    before, kept, classes = state(module), module.attn.to_q.weight, [*map(type, module.modules())]
    trainable = trained_parameters(module).keys()
    inject(module, KINDS[kind], 2, kind=kind)
    assert trained_parameters(module)
    assert all(".adapters.default." in name for name in trained_parameters(module))
    train(module)
    merge_into(module)
    eject(module)
    after = module.state_dict()
    assert [*after] == [*before]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [*map(type, module.modules())] == classes
    assert module.attn.to_q.weight is kept
    assert trained_parameters(module).keys() == trainable


def test_the_frozen_weights_keep_their_names_and_numbers() -> None:
    module, plain = model(), state(model())
    weight = module.conv.weight
    inject(module, "all", 2)
    train(module)
    found = module.state_dict()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert all(".adapters." in name for name in found.keys() - plain.keys())
    assert module.conv.weight is weight
    assert isinstance(module.conv, nn.Conv2d)
    # A state dict goes through a file and into another module with the same adapter.
    other = model(seed=9)
    inject(other, "all", 2)
    other.load_state_dict(found)
    assert torch.equal(other(tokens()), module(tokens()))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_do_the_same_and_come_back_to_the_bit(kind: str) -> None:
    module = model()
    inject(module, KINDS[kind], 3, kind=kind)
    train(module)
    set_strength(module, 0.7)
    live, before = module(tokens()), state(module)
    merge_into(module)
    assert not torch.equal(module.attn.to_q.weight, before["attn.to_q.weight"])
    torch.testing.assert_close(module(tokens()), live, rtol=1e-5, atol=2e-6)
    merge_into(module)  # what is in already is not added twice
    torch.testing.assert_close(module(tokens()), live, rtol=1e-5, atol=2e-6)
    with pytest.raises(ArgumentError, match="unmerge it first"):
        set_strength(module, 2)
    with pytest.raises(ArgumentError, match="unmerge it first"):
        disable(module)
    unmerge(module)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
    assert torch.equal(module(tokens()), live)


def test_several_adapters_each_with_its_strength() -> None:
    module, plain = model(), model()(tokens())
    for seed, name in enumerate(("one", "two")):
        inject(module, "attn.*", 2, name=name, generator=torch.Generator().manual_seed(seed))
        train(module)
    both = module(tokens())
    disable(module, "two")
    first = module(tokens())
    disable(module)
    assert torch.equal(module(tokens()), plain)
    enable(module, "two")
    second = module(tokens())
    assert len({one.sum().item() for one in (plain, first, second, both)}) == 4
    enable(module)
    set_strength(module, 0, "one")
    assert torch.equal(module(tokens()), second)
    with pytest.raises(ArgumentError, match="several adapters, one, two"):
        collect(module)
    # Merged in one order and out in the other.
    set_strength(module, 1)
    merge_into(module, "one")
    merge_into(module, "two")
    torch.testing.assert_close(module(tokens()), both, rtol=1e-5, atol=2e-6)
    unmerge(module, "one")
    torch.testing.assert_close(module(tokens()), both, rtol=1e-5, atol=2e-6)
    eject(module, "two")
    assert torch.equal(module(tokens()), first)
    assert not any(one.requires_grad for one in module.norm.parameters())
    eject(module)
    assert torch.equal(module(tokens()), plain)
    assert all(one.requires_grad for one in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_collect_and_inject_are_inverses(kind: str) -> None:
    module = model()
    inject(module, KINDS[kind], 3, alpha=2, kind=kind)
    train(module)
    live = module(tokens())
    adapter = collect(module, prefix="diffusion_model.")
    held = {
        (target, role): one.clone()
        for target, layer in adapter.layers.items()
        for role, one in layer.tensors().items()
    }
    eject(module)
    inject(module, adapter, prefix="diffusion_model.")
    assert torch.equal(module(tokens()), live)
    again = collect(module, prefix="diffusion_model.")
    assert [*again.layers] == [*adapter.layers]
    for (target, role), one in held.items():
        assert torch.equal(again.layers[target].tensors()[role], one)
    train(module)
    # What was given is not written into.
    assert all(
        torch.equal(adapter.layers[t].tensors()[role], one) for (t, role), one in held.items()
    )


def test_pissa_starts_from_the_weights_own_directions() -> None:
    module = model()
    inject(module, ["attn.to_q", "conv"], 4, alpha=2, init="pissa")
    for name in ("attn.to_q", "conv"):
        layer = module.get_submodule(name)
        path = layer.adapters["default"]
        weight = layer.weight.flatten(1)
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        best = (u[:, :4] * s[:4]) @ vh[:4]
        product = (path.up.flatten(1) @ path.down.flatten(1) * path.scale).double()
        torch.testing.assert_close(product, best, rtol=0, atol=1e-5)
        # The root of each singular value on both sides.
        down = path.down.flatten(1).norm(dim=1) ** 2 * path.scale
        torch.testing.assert_close(down.double(), path.scale * s[:4], rtol=1e-4, atol=1e-5)
    train(module)
    live = module(tokens())
    adapter = collect(module)
    assert {layer.rank for layer in adapter.layers.values()} == {8}
    eject(module)
    inject(module, adapter)
    torch.testing.assert_close(module(tokens()), live, rtol=1e-5, atol=2e-6)


def test_svd_of_a_checkpoint_starts_at_what_extraction_finds(tmp_path) -> None:
    base, tuned = model(), model()
    for name in ("attn.to_q", "conv"):
        weight = tuned.get_submodule(name).weight
        flat = weight.data.flatten(1)
        thin = torch.randn(len(flat), 2) @ torch.randn(2, flat.shape[1]) * 0.1
        weight.data += thin.reshape(weight.shape)
    file = tmp_path / "tuned.safetensors"
    save_file(tuned.state_dict(), file)
    inject(base, ["attn.to_q", "conv"], 2, alpha=6, init=f"svd_of={file}")
    torch.testing.assert_close(base(tokens()), tuned(tokens()), rtol=1e-4, atol=1e-5)
    save_file({**tuned.state_dict(), "conv.weight": torch.ones(3, 3)}, file)
    with pytest.raises(MismatchError, match=r"`conv` is .* there"):
        inject(model(), "conv", 2, init=f"svd_of={file}")


def test_what_is_saved_does_what_the_module_did(tmp_path) -> None:
    """Into a file, and baked into the checkpoint: the plain model then gives the live output."""
    module = model()
    plain = {f"diffusion_model.{name}": one for name, one in state(module).items()}
    save_file(plain, tmp_path / "base.safetensors")
    inject(module, NO_TABLE, 2, alpha=4, kind="dora")
    train(module)
    live = module(tokens())
    lora_ops.save_adapter(collect(module, prefix="diffusion_model."), tmp_path / "lora.safetensors")
    with (
        lora_ops.open_source(tmp_path / "base.safetensors") as base,
        lora_ops.open_source(tmp_path / "lora.safetensors") as lora,
    ):
        baked, _ = lora_ops.bake(base, [lora_ops.Ingredient(lora)])
    other = model(seed=5)
    other.load_state_dict({k.removeprefix("diffusion_model."): one for k, one in baked.items()})
    torch.testing.assert_close(other(tokens()), live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["kohya", "comfy", "diffusers", "peft"])
def test_what_is_collected_is_saved_in_every_format(format: str, tmp_path) -> None:
    """Under names of Stable Diffusion 1, that every format has."""
    block = "input_blocks.1.1.transformer_blocks.0.attn1"
    unet = nn.ModuleDict({"diffusion_model": Model()})
    names = {
        "diffusion_model.attn.to_q": f"{block}.to_q",
        "diffusion_model.attn.to_k": f"{block}.to_k",
    }
    inject(unet, "*.attn.*", 2, alpha=3)
    for one in trained_parameters(unet).values():
        nn.init.normal_(one)
    found = collect(unet)
    layers = {f"diffusion_model.{names[target]}": one for target, one in found.layers.items()}
    adapter = dataclasses.replace(found, layers=layers)
    output = tmp_path / ("saved" if format == "peft" else "saved.safetensors")
    lora_ops.save_adapter(adapter, output, format=format, architecture="sd1")
    with lora_ops.open_source(output) as source:
        told = lora_ops.compare(adapter, lora_ops.decode(source))
    assert told.shared == 2
    assert told.distance < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_works_with_what_training_uses(kind: str) -> None:
    module = model()
    inject(module, KINDS[kind], 2, kind=kind, dropout=0.0)
    train(module, 2)
    live = module(tokens())
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(tokens()), live, rtol=0, atol=1e-6)
    module.zero_grad()
    again = checkpoint(module, tokens(), use_reentrant=False)
    again.square().mean().backward()
    saved = {name: one.grad.clone() for name, one in trained_parameters(module).items()}
    module.zero_grad()
    module(tokens()).square().mean().backward()
    for name, one in trained_parameters(module).items():
        torch.testing.assert_close(one.grad, saved[name])
        assert one.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(tokens())
    assert (rough.float() - live).abs().max() < 0.1
    copied = copy.deepcopy(module)
    assert torch.equal(copied(tokens()), live)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    assert buffer.tell()


def test_paths_beside_16_bit_weights_train_in_float32() -> None:
    module = model().bfloat16()
    inject(module, "attn.*", 2)
    assert {one.dtype for one in trained_parameters(module).values()} == {torch.float32}
    assert module(tokens()).dtype == torch.bfloat16
    assert train(module)[-1] < train(module)[0] * 2
    inject(module, "attn.*", 2, name="narrow", dtype=torch.bfloat16)
    assert module.attn.to_q.adapters["narrow"].up.dtype == torch.bfloat16


def test_dropout_acts_in_training_only() -> None:
    module = model()
    inject(module, NO_TABLE, 2, kind="dora", dropout=0.5)
    train(module)
    assert not torch.equal(module(tokens()), module(tokens()))
    module.eval()
    assert torch.equal(module(tokens()), module(tokens()))
    expected = truth(module)(tokens())
    torch.testing.assert_close(module(tokens()).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_generator_decides_the_start() -> None:
    starts = []
    for seed in (3, 3, 4):
        module = model()
        inject(module, "attn.to_q", 2, generator=torch.Generator().manual_seed(seed))
        starts.append(module.attn.to_q.adapters["default"].down.clone())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert starts[0].std().item() == pytest.approx(0.5, rel=0.4)  # 1 / rank


def test_presets_and_patterns_choose_layers() -> None:
    assert inject(model(), "all", 2) == LAYERS
    assert inject(model(), "attention", 2) == ["attn.to_q", "attn.to_k"]
    assert inject(model(), ["*.to_k", "conv"], 2) == ["attn.to_k", "conv"]


BAD = {
    "no target": (lambda m: inject(m, "attn.to_p", 2), ArgumentError, "nearest: `attn.to_[qk]`"),
    "rank": (
        lambda m: inject(m, "proj", 9),
        ArgumentError,
        "rank 9 is above 8, all directions of `p",
    ),
    "no rank": (lambda m: inject(m, "proj", 0), ArgumentError, "give 1 or more"),
    "kind": (lambda m: inject(m, "proj", 2, kind="loha"), ArgumentError, "one of lora, dora"),
    "init": (lambda m: inject(m, "proj", 2, init="zeros"), ArgumentError, "normal, kaiming, pissa"),
    "dropout": (lambda m: inject(m, "proj", 2, dropout=1.0), ArgumentError, "0 to below 1"),
    "alpha": (lambda m: inject(m, "proj", 2, float("nan")), ArgumentError, "finite"),
    "name": (lambda m: inject(m, "proj", 2, name="a.b"), ArgumentError, "letters, digits"),
    "dora table": (
        lambda m: inject(m, "all", 2, kind="dora"),
        UnsupportedLayerError,
        "`table` is an",
    ),
    "nothing": (collect, MismatchError, "inject one first"),
    "eject": (eject, MismatchError, "inject one first"),
    "strength": (lambda m: set_strength(m, float("inf")), ArgumentError, "not a finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use_has_an_answer_and_changes_nothing(case: str) -> None:
    call, error, message = BAD[case]
    module = model()
    before, classes = state(module), [*map(type, module.modules())]
    with pytest.raises(error, match=message):
        call(module)
    assert [*map(type, module.modules())] == classes
    assert module.state_dict().keys() == before.keys()
    assert all(one.requires_grad for one in module.parameters())


def test_injected_twice_under_one_name() -> None:
    module = model()
    inject(module, "attention", 2)
    before = state(module)
    with pytest.raises(ArgumentError, match=r"`attn.to_q` has an adapter `default` already"):
        inject(module, "all", 2)
    assert module.state_dict().keys() == before.keys()
    with pytest.raises(MismatchError, match="no adapter `other`; it has default"):
        collect(module, "other")


def test_adapters_that_do_not_fit() -> None:
    module = model()
    inject(module, "attention", 2)
    adapter = collect(module)
    eject(module)
    with pytest.raises(TargetMismatchError, match=r"no layer `attn.to_q`, nearest: none"):
        inject(nn.ModuleDict({"other": nn.Linear(3, 3)}), adapter)
    with pytest.raises(WeightShapeError, match=r"\(12, 12\), that of the module is \(8, 8\)"):
        inject(Model(8), adapter)
    grouped = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=2)})
    with pytest.raises(UnsupportedLayerError, match="2 groups"):
        inject(grouped, "conv", 1)
