"""How much a layer matters: norms against LAPACK in float64, names in every format, what is missing."""

from __future__ import annotations

import math

import adapters
import checkpoints
import pytest
import torch
from adapters import Part
from oracles import power, singular_values, with_spectrum
from safetensors import safe_open
from safetensors.torch import load_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.errors import ArgumentError, NonFiniteError, TargetMismatchError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.linalg import frobenius, spectral_norm
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.resize.importance import NORMS, importance

# What spectral_norm promises: at most so much too small, and never too large.
SHORT = 0.01

BLOCK = "input_blocks.1.1.transformer_blocks.0"
DIFFUSERS = "down_blocks.0.attentions.0.transformer_blocks.0"
NAMES = {
    "kohya": [
        f"lora_unet_{DIFFUSERS.replace('.', '_')}_attn1_to_q",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ],
    "comfy": [
        f"diffusion_model.{BLOCK}.attn1.to_q",
        "diffusion_model.input_blocks.1.0.in_layers.2",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    ],
    "diffusers": [
        f"unet.{DIFFUSERS}.attn1.to_q",
        "unet.down_blocks.0.resnets.0.conv1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    ],
}
KEYS = [
    f"model.diffusion_model.{BLOCK}.attn1.to_q.weight",
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
]


def checkpoint(dtype=torch.float32):
    """Stable Diffusion's names; no two weights have one norm."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: ((1 + n) * torch.randn(shape, generator=generator)).to(dtype)
        for n, (key, shape) in enumerate(checkpoints.SD1.items())
    }


def norms(tensors, norm):
    """One over the norm of each weight in `KEYS`, by numpy in float64."""
    values = [singular_values(tensors[key].double().flatten(1)) for key in KEYS]
    return [1 / (s[0] if norm == "spectral" else math.sqrt(math.fsum(s**2))) for s in values]


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize(("norm", "tolerance"), [("spectral", SHORT), ("frobenius", 1e-6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_one_over_the_norm_of_the_weight(format, norm, tolerance, dtype):
    tensors = checkpoint(dtype)
    found = importance(NAMES[format], DictSource(tensors), norm)
    assert list(found) == NAMES[format]
    assert list(found.values()) == pytest.approx(norms(tensors, norm), rel=tolerance)


SPECTRA = {
    "steep": power(300, 1.5),
    "falling": power(300, 0.5),
    "nearly flat": power(300, 0.1),
    "flat": torch.ones(300, dtype=torch.float64),
    "even": torch.linspace(1, 0, 300, dtype=torch.float64),
    "two alike": torch.cat([torch.tensor([1.0, 1 - 1e-4]), torch.linspace(0.95, 0, 298)]).double(),
    "one ahead": torch.cat([torch.tensor([1.0]), torch.linspace(0.97, 0.9, 299)]).double(),
    "rank 3": power(3, 0.5),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (300, 300)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_spectral_norm_is_short_by_little(spectrum, shape, size):
    matrix = (size * with_spectrum(*shape, SPECTRA[spectrum])).float()
    exact = size * float(SPECTRA[spectrum][0])
    found = spectral_norm(matrix)
    assert found.dtype == torch.float64
    assert (1 - SHORT) * exact <= float(found) <= (1 + 1e-6) * exact


def power_iteration(matrix, rows, steps):
    """The last step of a subspace iteration, alone."""
    block = torch.randn(rows, matrix.shape[1])
    for _ in range(steps):
        block = torch.linalg.qr(((block @ matrix.mT) @ matrix).mT)[0].mT
    return float(torch.linalg.matrix_norm(block @ matrix.mT, 2))


@pytest.mark.parametrize("shape", [(1200, 1200), (600, 1200), (1200, 600)])
def test_random_weights_are_the_hardest(shape):
    """Their largest values lie close. Twin: without the earlier steps the promise is not kept."""
    matrix = torch.randn(shape)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert (1 - SHORT) * exact <= float(spectral_norm(matrix)) <= (1 + 1e-6) * exact
    assert power_iteration(matrix, 2, 16) < (1 - SHORT) * exact
    assert power_iteration(matrix, 8, 8) < (1 - SHORT) * exact


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 20), (20, 3), (8, 8)])
def test_small_matrices_are_exact(shape):
    matrix = torch.randn(shape)
    exact = torch.linalg.matrix_norm(matrix.double(), 2)
    torch.testing.assert_close(spectral_norm(matrix), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(5, 4), (40, 30)])
def test_a_norm_of_zeros_is_zero_and_weighs_one(norm, shape):
    assert float(NORMS[norm](torch.zeros(shape))) == 0
    tensors = checkpoint()
    tensors[KEYS[0]].zero_()
    found = importance(NAMES["comfy"], DictSource(tensors), norm)
    assert found[NAMES["comfy"][0]] == 1.0


def test_a_norm_is_the_same_every_time():
    matrix = torch.randn(300, 400)
    first = spectral_norm(matrix)
    torch.manual_seed(99)
    assert float(spectral_norm(matrix)) == float(first)
    before = torch.get_rng_state()
    spectral_norm(matrix)
    assert torch.equal(torch.get_rng_state(), before)


def test_frobenius_norms_are_those_of_torch():
    matrix = torch.randn(3, 40, 70)
    torch.testing.assert_close(frobenius(matrix), matrix.double().flatten(1).norm(dim=1))


def test_biases_and_norms_weigh_one():
    tensors = checkpoint()
    found = importance(
        ["diffusion_model.input_blocks.1.0.in_layers.2.bias", *NAMES["comfy"][:1]],
        DictSource(tensors),
    )
    bias, weight = found.values()
    assert bias == 1.0
    assert weight != 1.0


def test_a_weight_that_is_missing_is_named():
    tensors = checkpoint()
    del tensors[KEYS[0]]
    with pytest.raises(TargetMismatchError) as caught:
        importance(NAMES["comfy"], DictSource(tensors, name="model.safetensors"))
    message = str(caught.value)
    assert message.startswith("model.safetensors lacks 1 of 3 weights that are changed")
    assert f"the first `{NAMES['comfy'][0]}`, nearest: " in message
    assert message.endswith("give the model that the LoRA is for")


def test_a_bias_that_is_missing_is_named():
    """Its weight is there: that is not enough."""
    bias = f"diffusion_model.{BLOCK}.attn1.to_q.bias"
    with pytest.raises(TargetMismatchError, match=f"lacks 1 of 1 weights.*the first `{bias}`"):
        importance([bias], DictSource(checkpoint()))


def test_another_model_is_refused():
    flux = ["lora_unet_double_blocks_0_img_attn_qkv"]
    with pytest.raises(TargetMismatchError, match="lacks 1 of 1 weights"):
        importance(flux, DictSource(checkpoint()))


def test_an_unknown_norm_is_refused():
    with pytest.raises(
        ArgumentError, match="unknown norm `nuclear`; it is one of spectral, frobenius"
    ):
        importance(NAMES["comfy"], DictSource(checkpoint()), "nuclear")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(norm, value):
    tensors = checkpoint()
    tensors[KEYS[1]][0, 0, 0, 0] = value
    with pytest.raises(NonFiniteError) as caught:
        importance(NAMES["comfy"], DictSource(tensors, name="model.safetensors"), norm)
    assert f"model.safetensors: `{KEYS[1]}` holds NaN or infinite values" in str(caught.value)


@pytest.mark.parametrize("norm", NORMS)
def test_a_resize_spends_by_it(tmp_path, norm):
    """Of two equal changes the one of the smaller weight gets the ranks."""
    modules = [f"blocks.{n}.self_attn.q" for n in range(2)]
    parts = [Part(rank=8, seed=1, module=module) for module in modules]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=generator)
    lora = adapters.written(tmp_path / "lora.safetensors", adapters.tensors(parts, "comfy"))
    base = adapters.written(
        tmp_path / "base.safetensors",
        {f"{modules[0]}.weight": weight, f"{modules[1]}.weight": 100 * weight},
    )
    out = tmp_path / "out.safetensors"
    with open_source(lora) as source, open_source(base) as model:
        report = resize_file(source, out, "mean=4", relative_to=model, norm=norm)
    assert {layer.target: layer.rank for layer in report.layers} == {
        f"diffusion_model.{modules[0]}": 8
    }
    assert len(load_file(out)) == 2
    with safe_open(out, "pt") as opened:
        told = opened.metadata()
    assert (told["lorakit.relative_to"], told["lorakit.norm"]) == ("base.safetensors", norm)
