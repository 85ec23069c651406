"""ComfyUI's loader takes a quantised model with a LoRA baked in: formats, numbers, what the model answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from storing import SCHEMES, STORED, stored_by_others
from tiny_flux import LAYERS, STRENGTH, UNET, adapter, numbers

from lorakit.lora_ops import Ingredient, open_source
from lorakit.lora_ops.files.quantised import storages
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.weights.change import BakedLayer

KEYS = [f"{layer}.weight" for layer in LAYERS]
FORMATS = {
    **{to: storages.SCHEMES[to].format for to in SCHEMES},
    "old fp8": "float8_e4m3fn",
    "fp8 e5m2": "float8_e5m2",
    **dict.fromkeys(("int8 by rows", "int8 rotated", "int8 one scale"), "int8_tensorwise"),
}


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


@pytest.mark.parametrize("store", FORMATS)
def test_a_quantised_model_with_a_lora_in_it(
    host: comfy_host.Host, tmp_path: Path, store: str
) -> None:
    """What the host decodes is what we say, and what we say of the change is true of it."""
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    weights = numbers(1, torch.bfloat16)
    if store in SCHEMES:
        save_file(weights, tmp_path / "plain.safetensors")
        with open_source(tmp_path / "plain.safetensors") as plain:
            requantise_file(plan_requantise_file(plain, store, output=model), model)
    else:
        stored = stored_by_others(store, {key: one.float() for key, one in weights.items()})
        kept = {
            k: weights.get(k, one) if one.is_floating_point() else one for k, one in stored.items()
        }
        kept |= {k: stored[k] for k in stored if k.removesuffix(".weight") in STORED}
        save_file(kept, model)
    save_file(adapter(), tmp_path / "lora.safetensors")
    with open_source(model) as source, open_source(tmp_path / "lora.safetensors") as lora:
        plan = plan_bake_file(source, [Ingredient(lora, STRENGTH)], output=output)
        report = bake_file(plan, source, output)
    answers: list[dict[str, torch.Tensor]] = []
    for file in (model, output):
        seen = tmp_path / f"{file.stem}, seen.safetensors"
        asked = {"source": str(file), "output": str(seen), "width": 64}
        assert host.ask("quantised_models", asked) == dict.fromkeys(STORED, FORMATS[store])
        answers.append(load_file(seen))
    before, after = answers
    with open_source(output) as written:
        for key in (f"{layer}.weight" for layer in STORED):
            if "rotated" in store:  # a product of matrices, in whatever order
                assert torch.allclose(after[key], written.tensor(key), atol=1e-5)
            else:
                assert torch.equal(after[key], written.tensor(key)), key
    said = {one.target: one for one in report.layers}
    lora = adapter()
    for key, layer in zip(KEYS, LAYERS, strict=True):
        up, down = (lora[f"{UNET}{layer}.lora_{part}.weight"].double() for part in ("up", "down"))
        meant = (STRENGTH * 3 / 4 * (up @ down)).flatten()
        moved = (after[key].double() - before[key].double()).flatten()
        one = said[f"{UNET}{layer}"]
        assert isinstance(one, BakedLayer)
        cosine = float(moved @ meant / moved.norm() / meant.norm())
        assert one.cosine == pytest.approx(cosine, abs=1e-4)
        assert one.gain == pytest.approx(float(moved @ meant / meant.norm() ** 2), abs=1e-4)
    assert after["output"].isfinite().all()
    assert not torch.equal(after["output"], before["output"])
