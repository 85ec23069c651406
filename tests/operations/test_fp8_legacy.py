"""ComfyUI's first scaled float8 is written as it has it: a scale a layer, and one marker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from storing import STORED
from tiny_flux import numbers

from lorakit.lora_ops import open_source
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.requantise.preview import preview_requantise


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_scale_a_layer_and_a_marker(tmp_path: Path, prefix: str) -> None:
    weights = {prefix + key: one for key, one in numbers(1).items()}
    paths = [tmp_path / f"{n}.safetensors" for n in ("model", "old", "again", "new", "back")]
    save_file(weights, paths[0])
    asked = (("fp8_legacy", 0), ("fp8_legacy", 1), ("fp8_scaled", 1), ("fp8_legacy", 3))
    for (to, source), output in zip(asked, paths[1:], strict=True):
        with open_source(paths[source]) as model:
            plan = plan_requantise_file(model, to, output=output)
            report = requantise_file(plan, output)
            assert report.size <= preview_requantise(plan, output).size_at_most
            assert (report.error == 0) == (source > 0)
    old, again, new, back = (load_file(path) for path in paths[1:])
    for other in (again, back):
        assert other.keys() == old.keys()
        assert all(torch.equal(old[key].float(), one.float()) for key, one in other.items())
    marker = old[f"{prefix}scaled_fp8"]
    assert (marker.dtype, marker.numel()) == (torch.float8_e4m3fn, 2)
    assert f"{prefix}scaled_fp8" not in new
    for layer in STORED:
        weight, scale = (old[f"{prefix}{layer}.{part}"] for part in ("weight", "scale_weight"))
        assert (weight.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, ())
        exact = weights[f"{prefix}{layer}.weight"]
        assert torch.equal(scale, exact.abs().max() / 448)
        assert torch.equal(weight.float(), (exact * (1 / scale)).to(torch.float8_e4m3fn).float())
        assert torch.equal(new[f"{prefix}{layer}.weight_scale"], scale)
        assert torch.equal(new[f"{prefix}{layer}.weight"].float(), weight.float())
    left = old.keys() - {
        f"{prefix}{layer}.{part}" for layer in STORED for part in ("weight", "scale_weight")
    }
    assert left - {f"{prefix}scaled_fp8"} == weights.keys() - {
        f"{prefix}{layer}.weight" for layer in STORED
    }
