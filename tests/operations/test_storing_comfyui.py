"""ComfyUI's loader takes what is written with scales: formats, numbers, and what the model answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_flux import adapter, numbers

from lorakit.lora_ops import Ingredient, open_source
from lorakit.lora_ops.files.quantised.storages import SCHEMES
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


@pytest.mark.parametrize(
    ("dtype", "prefix"), [("float32", ""), ("bfloat16", "model.diffusion_model.")]
)
@pytest.mark.parametrize("to", [name for name, one in SCHEMES.items() if one.format])
def test_a_baked_model_in_the_host(
    host: comfy_host.Host, tmp_path: Path, to: str, dtype: str, prefix: str
) -> None:
    weights = {prefix + key: one for key, one in numbers(1, getattr(torch, dtype)).items()}
    save_file(weights, tmp_path / "model.safetensors")
    save_file(adapter(), tmp_path / "lora.safetensors")
    found: dict[str | None, dict[str, torch.Tensor]] = {}
    with (
        open_source(tmp_path / "model.safetensors") as model,
        open_source(tmp_path / "lora.safetensors") as lora,
    ):
        for storage in (None, to):
            output, seen = (
                tmp_path / f"{storage}.safetensors",
                tmp_path / f"{storage}, seen.safetensors",
            )
            plan = plan_bake_file(model, [Ingredient(lora, 0.8)], output=output, to=storage)
            report = bake_file(plan, model, output)
            asked = {"source": str(output), "output": str(seen), "width": 64}
            formats = host.ask("quantised_models", asked)
            found[storage] = load_file(seen)
    assert formats == {
        one.target.removeprefix("diffusion_model."): SCHEMES[to].format for one in report.stored
    }
    with open_source(output) as written:
        for key in (f"{layer}.weight" for layer in formats):
            assert torch.equal(found[to][key], written.tensor(prefix + key)), key
    whole, scaled = found[None]["output"], found[to]["output"]
    assert whole.isfinite().all()
    assert whole.norm() > 0
    assert (scaled - whole).norm() < 0.2 * whole.norm()
