"""Resizing by what goes into the layers: no LoRA of that rank has outputs that are closer."""

from __future__ import annotations

import hashlib
import json

import oracles
import pytest
import torch
from checkpoints import SD1, is_matrix, target
from recorded import as_grams, inputs_of, output_error
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import (
    Adapter,
    ArgumentError,
    DictSource,
    LoraLayer,
    MismatchError,
    architecture_named,
    convert,
    open_source,
    read_metadata,
    resize,
    resize_file,
    save_adapter,
)

SHAPES = {
    target(key): shape
    for key, shape in SD1.items()
    if is_matrix(key, shape) and target(key).startswith("diffusion_model.")
}


@pytest.fixture
def inputs():
    return inputs_of(SHAPES, seed=7)


@pytest.fixture
def lora():
    generator = torch.Generator().manual_seed(4)
    layers = {}
    for name, shape in SHAPES.items():
        rank = min(8, shape[0], shape[1])
        up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        layers[name] = LoraLayer(up, torch.randn(rank, *shape[1:], generator=generator), 4.0)
    return Adapter(layers, {}, {}, "comfy")


def damped(x):
    extra = (1e-3 * x.square().sum() / x.shape[1]).sqrt()
    return torch.cat([x, extra * torch.eye(x.shape[1]).double()])


def dense(layer):
    return oracles.change(layer.up, layer.down, layer.alpha)


def test_each_layer_is_the_best_of_its_rank_by_its_output(lora, inputs):
    found, report = resize(lora, 3, dtype=torch.float32, activations=DictSource(as_grams(inputs)))
    plain, _ = resize(lora, 3, dtype=torch.float32)
    assert report.weighted_error < report.error
    for layer in report.layers:
        x, true = damped(inputs[layer.target]), dense(lora.layers[layer.target])
        made, other = (dense(one.layers[layer.target]) for one in (found, plain))
        least = oracles.best_error(true.flatten(1) @ x.mT, 3)
        assert output_error(true, made, x)[0] == pytest.approx(least, rel=1e-4, abs=1e-4)
        assert output_error(true, other, x)[0] >= least * (1 - 1e-5)
        residual, norm = output_error(true, made, inputs[layer.target])
        assert layer.weighted.norm == pytest.approx(norm, rel=1e-4)
        assert layer.weighted.residual == pytest.approx(residual, rel=1e-3, abs=1e-5 * norm)
        assert layer.residual == pytest.approx(oracles.error_of(true, made), rel=1e-4, abs=1e-4)


def test_a_rank_that_is_not_lowered_keeps_the_numbers(lora, inputs):
    found, report = resize(lora, 64, activations=DictSource(as_grams(inputs)))
    for name, layer in lora.layers.items():
        assert torch.equal(found.layers[name].up, layer.up)
        assert torch.equal(found.layers[name].down, layer.down)
    assert report.weighted_error == 0


@pytest.mark.parametrize("format", ["comfy", "kohya", "diffusers"])
def test_layers_are_found_under_any_programs_names(tmp_path, lora, inputs, format):
    """The record has the names of ComfyUI; the file those of whoever wrote it."""
    other, _ = (
        convert(lora, format, architecture=architecture_named("sd1"))
        if format != "comfy"
        else (lora, None)
    )
    path, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    save_adapter(other, path)
    record = tmp_path / "record.safetensors"
    save_file(as_grams(inputs), record)
    with open_source(path) as source, open_source(record) as known:
        report = resize_file(source, out, 2, activations=known, version="1")
    assert len(report.layers) == len(SHAPES)
    assert all(layer.weighted is not None for layer in report.layers)
    told = json.dumps(dict(read_metadata(out)))
    assert hashlib.sha256(record.read_bytes()).hexdigest() in told
    assert "record.safetensors" in told
    assert load_file(out)


def test_what_does_not_combine_is_refused(lora, inputs):
    record = DictSource(as_grams(inputs))
    with pytest.raises(ArgumentError, match="budget"):
        resize(lora, "mean=4", activations=record)
    with pytest.raises(MismatchError, match="other layers"):
        resize(lora, 4, activations=DictSource({"diffusion_model.other.gram": torch.eye(3)}))


def test_layers_without_a_record_are_cut_as_they_are(lora, inputs):
    first = next(iter(inputs))
    one = {first: inputs[first]}
    found, report = resize(lora, 2, activations=DictSource(as_grams(one)))
    plain, _ = resize(lora, 2)
    assert [layer.target for layer in report.layers if layer.weighted is not None] == [first]
    assert f"{len(SHAPES) - 1} layers without a record" in " ".join(report.notes)
    for name in SHAPES:
        assert torch.equal(found.layers[name].up, plain.layers[name].up) == (name != first)
