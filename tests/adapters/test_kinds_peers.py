"""Every kind against its authors' programs: files that lycoris-lora and peft write, and their weights."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters import formats
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.layers import Layer
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.convert.file import convert_file

wrapper = pytest.importorskip(
    "lycoris.wrapper", reason="lycoris-lora is not installed: pip install lycoris-lora"
)

FORMS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 32, bias=False),
    "conv1x1": lambda: nn.Conv2d(24, 32, 1, bias=False),
    "conv3x3": lambda: nn.Conv2d(24, 32, 3, padding=1, bias=False),
    "conv3d": lambda: nn.Conv3d(24, 32, (2, 1, 3), bias=False),
}
#: By name: LyCORIS's module and how it is made.
MODULES: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("locon.LoConModule", {}),
    "lora, Tucker": ("locon.LoConModule", {"use_tucker": True}),
    "lora, rank-stabilised": ("locon.LoConModule", {"rs_lora": True}),
    "loha": ("loha.LohaModule", {}),
    "loha, Tucker": ("loha.LohaModule", {"use_tucker": True}),
    "lokr whole, thin": ("lokr.LokrModule", {"factor": 4, "lora_dim": 2}),
    "lokr whole, whole": ("lokr.LokrModule", {"factor": 4, "full_matrix": True}),
    "lokr thin, thin": ("lokr.LokrModule", {"factor": 8, "lora_dim": 1, "decompose_both": True}),
    "lokr whole, Tucker": ("lokr.LokrModule", {"factor": 4, "lora_dim": 2, "use_tucker": True}),
    "glora": ("glora.GLoRAModule", {}),
    "oft": ("diag_oft.DiagOFTModule", {"lora_dim": 4}),
    "oft, bounded": ("diag_oft.DiagOFTModule", {"lora_dim": 4, "constraint": 0.02}),
    "boft": ("boft.ButterflyOFTModule", {"lora_dim": 8}),
    "boft, bounded, rescaled": (
        "boft.ButterflyOFTModule",
        {"lora_dim": 4, "constraint": 0.02, "rescaled": True},
    ),
    "ia3": ("ia3.IA3Module", {}),
    "ia3 on the input": ("ia3.IA3Module", {"train_on_input": True}),
    **{
        f"{kind}, DoRA{side}": (module, {"weight_decompose": True, "wd_on_out": not side, **more})
        for side in ("", " on the input")
        for kind, module, more in (
            ("lora", "locon.LoConModule", {}),
            ("loha", "loha.LohaModule", {}),
            ("lokr", "lokr.LokrModule", {"factor": 4, "lora_dim": 2}),
        )
    },
}

#: LyCORIS's names of what a converted file spells as ComfyUI's do.
SPELLED = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def trained(name: str, form: str) -> tuple[nn.Module, Tensor, nn.Module]:
    """A layer, its weight, and LyCORIS's module over it with random numbers in every parameter."""
    torch.manual_seed(len(name) + len(form))
    base = FORMS[form]()
    weight = base.weight.detach().clone()
    path, options = MODULES[name]
    file, cls = path.split(".")
    kind = getattr(importlib.import_module(f"lycoris.modules.{file}"), cls)
    module = kind("m", base, **({"lora_dim": 4, "alpha": 3} | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return base, weight, module


def effective(base: nn.Module, shape: torch.Size) -> Tensor:
    """The weight that makes what the layer makes of an input: one input channel and tap at a time."""
    if len(shape) == 2:
        return base.forward(torch.eye(shape[1])).mT
    columns = []
    for tap in torch.eye(math.prod(shape[1:])):
        image = tap.reshape(1, *shape[1:])
        # The middle of the output sees the whole kernel at once.
        middle = (0, slice(None), *base.padding)
        columns.append(base.forward(image)[middle])
    return torch.stack(columns, dim=1).reshape(shape)


def read(tensors: dict[str, Tensor], scale: float | None = None) -> Layer:
    """Of a file that holds one module."""
    found = formats.modules(tensors)
    (name,) = found.modules
    assert found.extras == ()
    return formats.read_kind(DictSource(tensors), name, found.modules[name], scale)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODULES)
def test_what_lycoris_writes_means_the_weight_that_it_computes_with(name, form):
    base, weight, module = trained(name, form)
    state = {f"lycoris_m.{key}": one.detach() for key, one in module.state_dict().items()}
    layer = read(state)
    module.apply_to()
    theirs = effective(base, weight.shape)
    same(base.weight + layer.change(base.weight.detach()), theirs)
    assert not torch.allclose(theirs, base.weight, atol=1e-2), "a change that can be seen"


@pytest.mark.parametrize(
    "name", ["lora", "loha", "lokr whole, thin", "glora", "oft", "boft", "ia3"]
)
def test_strength_is_what_lycoris_calls_multiplier(name):
    base, weight, module = trained(name, "linear")
    state = {f"lycoris_m.{key}": one.detach() for key, one in module.state_dict().items()}
    module.multiplier = 0.4
    module.apply_to()
    same(weight + read(state).change(weight, 0.4), effective(base, weight.shape))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [one for one in MODULES if "DoRA" in one])
def test_what_is_converted_and_back_loads_into_lycoris_again(name, form):
    base, weight, module = trained(name, form)
    state = {f"diffusion_model.m.{key}": one.detach() for key, one in module.state_dict().items()}
    result, _ = convert(decode(DictSource(state)), "comfy")
    layer, keys = (one["diffusion_model.m"] for one in (result.layers, result.keys))
    back = {
        keys[role].removeprefix("diffusion_model.m."): tensor
        for role, tensor in layer.tensors().items()
    }
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.load_state_dict({SPELLED.get(key, key): one for key, one in back.items()})
    module.apply_to()
    same(weight + read(state).change(weight), effective(base, weight.shape))


ALGORITHMS = ("lora", "loha", "lokr", "glora", "ia3", "diag-oft", "boft", "full")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_whole_file_of_lycoris_converts_to_its_own_names(algorithm, tmp_path):
    """Full differences, norms and biases among them, which LyCORIS writes in kohya's naming."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Conv1d(7, 8, 3), nn.Linear(30, 8))
    wrapper.LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv1d", "LayerNorm"]})
    network = wrapper.create_lycoris(
        model, 1.0, linear_dim=4, linear_alpha=4, algo=algorithm, train_norm=True
    )
    network.apply_to()
    network.save_weights(str(tmp_path / "lycoris.safetensors"), torch.float32, {})
    before = load_file(tmp_path / "lycoris.safetensors")
    with open_source(tmp_path / "lycoris.safetensors") as source:
        convert_file(source, tmp_path / "kohya.safetensors", "kohya")
    after = load_file(tmp_path / "kohya.safetensors")
    assert before.keys() <= after.keys()
    assert all(key.endswith(".alpha") for key in after.keys() - before.keys())
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_whole_file_of_lycoris_is_read(algorithm, tmp_path):
    """Its own `save_weights`: names, dtypes, norms and biases are as in files in circulation."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Conv1d(7, 8, 3), nn.Linear(30, 8))
    weights = {name: one.detach().clone() for name, one in model.named_parameters()}
    wrapper.LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv1d", "LayerNorm"]})
    network = wrapper.create_lycoris(
        model, 1.0, linear_dim=4, linear_alpha=4, algo=algorithm, train_norm=True
    )
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    path = tmp_path / "lycoris.safetensors"
    network.save_weights(str(path), torch.float32, {})
    network.restore()
    # `merge_to` of 4.1.3 multiplies LoHa and LoKr by alpha / rank twice, so that is 1 here.
    network.merge_to(1.0)
    source = DictSource(load_file(path))
    found = formats.modules(source.keys())
    assert found.extras == ()
    merged = dict(model.named_parameters())
    changed = set()
    for name, module in found.modules.items():
        layer = formats.read_kind(source, name, module)
        index, _, bias = name.removeprefix("lycoris_").partition(".")
        parameter = f"{index}.{bias or 'weight'}"
        same(weights[parameter] + layer.change(weights[parameter]), merged[parameter])
        changed.add(parameter)
    assert {"0.weight", "1.weight", "1.bias", "2.weight", "3.weight"} <= changed
    for parameter in merged.keys() - changed:
        assert torch.equal(merged[parameter], weights[parameter])


class Holder(nn.Module):
    """A model with one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


PEFT_CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "lora, rank-stabilised": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "lora, DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 6}),
    "loha, Tucker": ("LoHaConfig", {"r": 2, "alpha": 6, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 6, "decompose_factor": 4}),
    "lokr, both": (
        "LoKrConfig",
        {"r": 1, "alpha": 6, "decompose_factor": 8, "decompose_both": True},
    ),
    "lokr, Tucker": (
        "LoKrConfig",
        {"r": 2, "alpha": 6, "decompose_factor": 4, "use_effective_conv2d": True},
    ),
}


def saved_by_peft(name: str, form: str, folder: Path) -> tuple[nn.Module, Tensor, int]:
    """Save a trained adapter of one layer: the layer, the weight that peft merges, and the rank."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    torch.manual_seed(5)
    base = FORMS[form]()
    kind, options = PEFT_CONFIGS[name]
    config = getattr(peft, kind)(**options, target_modules=["layer"])
    model = peft.get_peft_model(Holder(copy.deepcopy(base)), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return base, model.merge_and_unload().layer.weight, config.r


@pytest.mark.parametrize("form", ["linear", "conv1x1", "conv3x3"])
@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_what_peft_saves_means_the_weight_that_it_merges(name, form, tmp_path):
    base, theirs, rank = saved_by_peft(name, form, tmp_path)
    scale = 6 / (math.sqrt(rank) if name == "lora, rank-stabilised" else rank)
    layer = read(load_file(tmp_path / "adapter_model.safetensors"), scale)
    same(base.weight + layer.change(base.weight.detach()), theirs)
    assert not torch.allclose(theirs, base.weight, atol=1e-2), "a change that can be seen"
