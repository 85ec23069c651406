"""Verification: the true error of a file, found again from the three files alone."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoints import FLUX, MODELS, SD1, WAN, grid, planted, source, target, trained
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import extract, extract_file, open_source, plan_file, verify
from lorakit.lora_ops.adapters.formats import COMFY, encode_layer, module_namer
from lorakit.lora_ops.errors import TargetMismatchError, WeightShapeError


@pytest.fixture
def extracted(tmp_path):
    """Extract to a file and open it again: base, tuned, the file and the report of the extraction."""

    def run(shapes, rule, *, format="comfy", change=trained, **options):
        base = grid(shapes, torch.float32)
        tuned = change(base)
        paths = [tmp_path / name for name in ("base.safetensors", "tuned.safetensors")]
        for path, tensors in zip(paths, (base, tuned), strict=True):
            save_file(tensors, path)
        output = tmp_path / "lora.safetensors"
        with open_source(paths[0]) as one, open_source(paths[1]) as two:
            plan = plan_file(one, two, rule, output=output, **options)
            report = extract_file(plan, one, two, output, format=format)
        return source(base, "base"), source(tuned, "tuned"), load_file(output), report

    return run


def by_target(found):
    return {one.target: one for one in found}


@pytest.mark.parametrize("format", ["comfy", "kohya"])
@pytest.mark.parametrize("name", ["sd1", "openclip", "flux"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_was_reported_is_what_is_found(extracted, name, format, dtype):
    base, tuned, lora, report = extracted(MODELS[name], "4,conv=6", format=format, dtype=dtype)
    found = verify(base, tuned, source(lora, "lora"))
    assert found.error == pytest.approx(report.error, rel=1e-6)
    ours, theirs = by_target(report.layers), by_target(found.layers)
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert theirs[name].error == pytest.approx(layer.error, rel=1e-6)
        assert theirs[name].norm == pytest.approx(layer.norm, rel=1e-6)
        assert (theirs[name].rank, theirs[name].kind) == (layer.rank, layer.kind)
    assert found.left_out == pytest.approx(report.left_out, rel=1e-6)
    assert by_target(found.skips).keys() == by_target(report.skips).keys()


def test_an_exact_change_verifies_as_exact(extracted):
    base, tuned, lora, _ = extracted(SD1, "4", change=planted)
    assert verify(base, tuned, source(lora)).error <= 1e-6


def test_full_differences_verify_too(extracted):
    base, tuned, lora, report = extracted(WAN, "48", full_differences=True)
    found = verify(base, tuned, source(lora))
    assert found.error == pytest.approx(report.error, rel=1e-2, abs=1e-6)
    assert not found.skips


def test_strength_and_alpha_count(extracted):
    base, tuned, lora, report = extracted(FLUX, "16")
    doubled = {key: 2 * value if key.endswith(".alpha") else value for key, value in lora.items()}
    wrong = verify(base, tuned, source(doubled))
    assert wrong.error > 0.8 > 2 * report.error
    assert verify(base, tuned, source(doubled), strength=0.5).error == pytest.approx(report.error)
    assert verify(base, tuned, source(lora), strength=0).error == pytest.approx(1)


def test_twin_an_error_of_one_layer_is_seen(extracted):
    base, tuned, lora, report = extracted(FLUX, "48", change=trained)
    key = "diffusion_model.img_in.lora_B.weight"
    lora[key] = lora[key].clone()
    lora[key][0, 0] += 0.01
    found = verify(base, tuned, source(lora))
    assert report.error < 1e-6
    damaged = [layer.target for layer in found.layers if layer.error > 1e-5]
    assert damaged == ["diffusion_model.img_in"]


def test_layers_that_the_file_lacks_are_skips_with_their_share(extracted):
    base, tuned, lora, report = extracted(FLUX, "4")
    name = "diffusion_model.double_blocks.0.img_mlp.0"
    fewer = {key: value for key, value in lora.items() if not key.startswith(f"{name}.")}
    found = verify(base, tuned, source(fewer))
    skip = by_target(found.skips)[name]
    assert skip.reason == "not in the LoRA"
    assert skip.norm == pytest.approx(by_target(report.layers)[name].norm, rel=1e-6)
    whole = math.fsum(one.norm**2 for one in (*found.layers, *found.skips))
    gained = found.left_out - report.left_out
    assert gained == pytest.approx(skip.norm**2 / whole, rel=1e-5)


def test_a_lora_for_another_model_names_the_nearest(extracted):
    base, tuned, lora, _ = extracted(FLUX, "4")
    renamed = {key.replace("img_in", "img_inn"): value for key, value in lora.items()}
    with pytest.raises(TargetMismatchError) as error:
        verify(base, tuned, source(renamed, "lora"))
    assert "1 of 8 layers of lora are not in both base and tuned" in str(error.value)
    assert "`diffusion_model.img_inn`, nearest: `diffusion_model.img_in`" in str(error.value)
    other = grid(WAN, torch.float32)
    with pytest.raises(TargetMismatchError, match="8 of 8 layers of lora are not in both wan"):
        verify(source(other, "wan"), source(trained(other)), source(lora, "lora"))


def test_a_lora_of_another_width_says_so(extracted):
    base, tuned, lora, _ = extracted(FLUX, "4")
    key = "diffusion_model.img_in.lora_A.weight"
    lora[key] = torch.zeros(4, 99)
    with pytest.raises(
        WeightShapeError, match=r"`diffusion_model.img_in` changes a weight of shape"
    ):
        verify(base, tuned, source(lora))


@pytest.mark.parametrize("components", [["unet"], ["te"], ["vae"], ["unet", "te", "vae"]])
def test_whatever_was_extracted_can_be_verified(components):
    base = grid(SD1, torch.float32)
    tuned = planted(base)
    adapter, report = extract(source(base), source(tuned), 4, components=components)
    namer = module_namer(COMFY)
    lora = {}
    for name, layer in adapter.layers.items():
        if not name.startswith("vae."):
            lora |= encode_layer(COMFY, namer, name, layer)
    if not lora:
        lora = {
            f"{name}.{part}": tensor
            for name, layer in adapter.layers.items()
            for part, tensor in (("lora_B.weight", layer.up), ("lora_A.weight", layer.down))
        }
    found = verify(source(base), source(tuned), source(lora))
    assert found.error <= 1e-6
    assert report.error <= 1e-6
    assert {layer.target for layer in found.layers} <= {target(key) for key in SD1}


def test_progress_reaches_the_total(extracted):
    base, tuned, lora, _ = extracted(SD1, "4")
    steps: list[tuple[int, int, str]] = []
    verify(base, tuned, source(lora), progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1]


def test_biases_that_peft_trained_count(extracted):
    """They stand under the model's own names, and replace its biases."""
    base, tuned, lora, _ = extracted(FLUX, "4", change=planted)
    body = "model.diffusion_model."
    held = {key.replace("diffusion_model.", "base_model.model.", 1): lora[key] for key in lora}
    values = {key: base.tensor(key) for key in base.keys()}  # noqa: SIM118
    biases = [key for key in values if key.endswith(".bias")]
    assert biases
    changed = {key: tuned.tensor(key) for key in values}
    changed |= {key: values[key] + 1.0 for key in biases}
    without = verify(base, source(changed, "tuned"), source(held))
    assert without.left_out > 0.01
    for key in biases:
        held[f"base_model.model.{key.removeprefix(body)}"] = changed[key]
    found = verify(base, source(changed, "tuned"), source(held))
    assert len(found.layers) == len(without.layers) + len(biases)
    assert found.error < 1e-6
    assert found.left_out < without.left_out / 100
    held[f"base_model.model.{biases[0].removeprefix(body)}"] = values[biases[0]]
    assert verify(base, source(changed, "tuned"), source(held)).error > 1e-3
