"""Extraction from file to file: the numbers, the metadata and the hash are true of what is written."""

from __future__ import annotations

import hashlib
import json
import math

import oracles
import pytest
import torch
from checkpoints import (
    FLUX,
    SD1,
    delta,
    grid,
    large,
    planted,
    source,
    target,
    trained,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import extract, extract_file, open_source, parse_rank, plan_file


def to_file(folder, base, tuned, rule, *, format="comfy", output="out.safetensors", **options):
    paths = [folder / "base.safetensors", folder / "tuned.safetensors"]
    for path, tensors in zip(paths, (base, tuned), strict=True):
        save_file(tensors, path)
    with open_source(paths[0]) as one, open_source(paths[1]) as two:
        plan = plan_file(one, two, rule, output=folder / output, **options)
        return extract_file(plan, one, two, folder / output, format=format, version="0.0")


@pytest.mark.parametrize("factors", list(oracles.ROUNDING))
def test_reported_errors_are_those_of_the_numbers_written(tmp_path, factors):
    """After rounding to the factors' dtype; recomputed in float64 from the file."""
    base = grid(FLUX, torch.float32)
    tuned = trained(base)
    report = to_file(tmp_path, base, tuned, "6", dtype=factors)
    written = load_file(tmp_path / "out.safetensors")
    lost = whole = 0.0
    for layer in report.layers:
        true = delta(base, tuned, layer.target.removeprefix("diffusion_model.") + ".weight")
        up, down = (written[f"{layer.target}.lora_{side}.weight"] for side in "BA")
        assert up.dtype == down.dtype == factors
        change = oracles.change(up, down, float(written[f"{layer.target}.alpha"]))
        error, norm = oracles.error_of(true, change), float(true.norm())
        assert layer.error == pytest.approx(error / norm, rel=1e-5)
        assert layer.norm == pytest.approx(norm, rel=1e-6)
        assert layer.energy == pytest.approx(1 - (error / norm) ** 2, abs=1e-5)
        lost, whole = lost + error**2, whole + norm**2
    assert report.error == pytest.approx(math.sqrt(lost / whole), rel=1e-5)
    assert report.energy == pytest.approx(1 - lost / whole, abs=1e-5)


def test_progress_reaches_the_total_and_inputs_are_left_alone():
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    before = [{key: weight.clone() for key, weight in side.items()} for side in (base, tuned)]
    steps: list[tuple[int, int, str]] = []
    state = torch.get_rng_state()
    extract(source(base), source(tuned), 4, progress=lambda *step: steps.append(step))
    done, totals, names = zip(*steps, strict=True)
    assert (
        done[-1]
        == totals[0]
        == sum(
            math.prod(shape)
            for key, shape in SD1.items()
            if not target(key).startswith(("vae.", "other."))
        )
    )
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert len(names) == len(set(names))
    for side, copy in zip((base, tuned), before, strict=True):
        assert all(torch.equal(side[key].double(), copy[key].double()) for key in side)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("format", ["comfy", "kohya"])
def test_a_file_is_the_adapter_and_its_hash_is_true(tmp_path, format):
    base = grid(SD1, torch.float16)
    tuned = planted(base)
    report = to_file(tmp_path, base, tuned, "8,conv=2", format=format)
    path = tmp_path / "out.safetensors"
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert report.size == len(raw)
    assert len(load_file(path)) == 3 * len(report.layers)
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "out"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "3"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert float(metadata["lorakit.error"]) == pytest.approx(report.error, rel=1e-5)
    assert float(metadata["lorakit.left_out"]) == pytest.approx(report.left_out, rel=1e-5)
    assert parse_rank(metadata["lorakit.rank"]) == parse_rank("8,conv=2")
    assert (
        metadata["lorakit.base_sha256"]
        == hashlib.sha256((tmp_path / "base.safetensors").read_bytes()).hexdigest()
    )
    layers = json.loads(metadata["lorakit.layers"])
    assert {name: rank for name, (rank, _) in layers.items()} == {
        layer.target: layer.rank for layer in report.layers
    }


def test_ranks_that_differ_are_dynamic(tmp_path):
    base = grid(FLUX, torch.float16)
    report = to_file(tmp_path, base, trained(base), "energy=0.7")
    assert len({layer.rank for layer in report.layers}) > 1
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"


def test_an_oracle_in_memory_and_a_file_agree(tmp_path):
    base, tuned = large()
    to_file(tmp_path, base, tuned, "32")
    adapter, _ = extract(source(base), source(tuned), "32")
    written: dict[str, Tensor] = load_file(tmp_path / "out.safetensors")
    for name, layer in adapter.layers.items():
        assert torch.equal(written[f"{name}.lora_B.weight"], layer.up)
        assert torch.equal(written[f"{name}.lora_A.weight"], layer.down)
