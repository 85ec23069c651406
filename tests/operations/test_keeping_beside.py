"""What goes with weights that stay stored as they are: scales in their shard, markers, the file's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bits import assert_equal
from safetensors.torch import load_file, save_file
from storing import STORED, config, stored_by_others
from tiny_flux import LAYERS, STRENGTH, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import Ingredient, open_source
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.bake.preview import preview_bake
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.report import Report

SIZE = 1 << 19  # bytes of a shard
KEY = "double_blocks.0.img_attn.proj.weight"
TEXT = "text_encoders.t5xxl.transformer."


def baked(model: Path, output: Path, **asked: object) -> Report:
    save_file(adapter(), model.with_name("lora.safetensors"))
    with open_source(model) as source, open_source(model.with_name("lora.safetensors")) as lora:
        ingredients = [Ingredient(lora, STRENGTH)]
        plan = plan_bake_file(source, ingredients, output=output, shard_size=SIZE, **asked)
        report = bake_file(plan, source, output, shard_size=SIZE)
        assert report.size <= preview_bake(plan, output).size_at_most
    return report


@pytest.mark.parametrize("to", [None, "nvfp4"])
@pytest.mark.parametrize("store", ["old fp8", "int8 by rows"])
def test_scales_lie_in_the_shard_of_their_codes(tmp_path: Path, store: str, to: str | None) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors.index.json"
    save_file(stored_by_others(store, numbers(1)), model)
    baked(model, output, to=to)
    places = json.loads(output.read_text())["weight_map"]
    shards = {key: load_file(tmp_path / file) for key, file in places.items()}
    assert len(set(places.values())) > 2
    for layer in STORED:
        own = {key: file for key, file in places.items() if key.startswith(f"{layer}.")}
        assert len(own) > 3
        del own[f"{layer}.bias"]
        assert set(own.values()) == {places[f"{layer}.weight"]}
    assert all(key in shard for key, shard in shards.items())
    sizes = [(tmp_path / file).stat().st_size for file in set(places.values())]
    assert max(sizes) < 1.2 * SIZE
    # And where the model has shards, each stays in its own.
    if to is None:
        again = tmp_path / "again.safetensors.index.json"
        baked(output, again)
        after = json.loads(again.read_text())["weight_map"]
        assert after == {key: file.replace("out-", "again-") for key, file in places.items()}


def test_a_plain_weight_keeps_what_stands_beside_it(tmp_path: Path) -> None:
    """A scale of 1, a configuration without a scale: as long as nothing changes the weight."""
    tensors = stored_by_others("old fp8", numbers(1))
    tensors |= {"img_in.scale_weight": torch.ones(()), "img_in.scale_input": torch.ones(())}
    tensors |= {f"{LAYERS[0]}.weight": numbers(1)[f"{LAYERS[0]}.weight"]}
    tensors |= {f"{LAYERS[0]}.scale_weight": torch.ones(())}
    save_file(tensors, tmp_path / "model.safetensors")
    baked(tmp_path / "model.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    gone = {f"{LAYERS[0]}.scale_weight", f"{LAYERS[0]}.scale_input"}
    assert tensors.keys() - found.keys() == gone
    assert found["scaled_fp8"].dtype == torch.float8_e4m3fn


def by_metadata(store: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Configurations as a file's metadata has them, in place of tensors."""
    tensors, layers = stored_by_others(store, numbers(1)), dict[str, object]()
    for key in [key for key in tensors if key.endswith(".comfy_quant")]:
        text = bytes(tensors.pop(key).tolist())
        layers[key.removesuffix(".comfy_quant")] = json.loads(text)
    return tensors, layers


@pytest.mark.parametrize(("store", "stays"), [("int8 rotated", True), ("int4", False)])
def test_the_metadata_configures_what_is_still_so(tmp_path: Path, store: str, stays: bool) -> None:
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    tensors, layers = by_metadata(store)
    told = json.dumps({"format_version": "1.0", "layers": layers})
    save_file(tensors, model, {"_quantization_metadata": told, "other": "text"})
    baked(model, output)
    changed = set() if stays else set(LAYERS)
    with open_source(output) as found:
        written = json.loads(found.original.metadata["_quantization_metadata"])
        assert found.metadata["other"] == "text"
        assert found.storage(KEY) == ("int8, rotated" if stays else "int4, rotated")
    kept = {layer: one for layer, one in layers.items() if layer not in changed}
    assert written == {"format_version": "1.0", "layers": kept}
    baked(model, tmp_path / "numbers.safetensors", dtype=torch.bfloat16)
    with open_source(tmp_path / "numbers.safetensors") as found:
        assert "_quantization_metadata" not in found.metadata


def test_torchao_still_knows_its_tensors(tmp_path: Path) -> None:
    """Of what changes it is told that it is a tensor."""
    tensors, metadata, names = dict[str, Tensor](), dict[str, str](), list[str]()
    about = {"_type": "Int8Tensor", "_data": {"dtype": {"_type": "dtype", "_data": "bfloat16"}}}
    for key, weight in numbers(1).items():
        layer, _, last = key.rpartition(".")
        names.append(key)
        metadata[key] = json.dumps(
            about if layer in STORED and last == "weight" else {"_type": "Tensor"}
        )
        if layer in STORED and last == "weight":
            scales = weight.abs().amax(dim=1, keepdim=True) / 127
            tensors[f"{layer}._weight_qdata"] = (weight / scales).round().to(torch.int8)
            tensors[f"{layer}._weight_scale"] = scales
            if layer in LAYERS:  # which is only read
                zeros = torch.ones_like(scales).to(torch.int8)
                tensors[f"{layer}._weight_zero_point"] = zeros
        else:
            tensors[key] = weight
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, model, {**metadata, "tensor_names": json.dumps(names)})
    report = baked(model, output)
    found = load_file(output)
    assert {key for key in found if key not in tensors} == {f"{layer}.weight" for layer in LAYERS}
    with open_source(output) as source:
        told = source.original.metadata
        assert source.storage(KEY) == "int8 of torchao"
    assert json.loads(told["tensor_names"]) == names
    for key in names:
        is_plain = key in {f"{layer}.weight" for layer in LAYERS}
        assert json.loads(told[key]) == (
            {"_type": "Tensor"} if is_plain else json.loads(metadata[key])
        )
    assert any("only read" in note for note in report.notes)


def test_other_components_stay_stored_as_they_are(tmp_path: Path) -> None:
    """Where the diffusion model is written with other scales."""
    layer = f"{TEXT}encoder.block.0.layer.0.SelfAttention.q"
    codes, scale = torch.randint(-127, 128, (64, 64)).to(torch.int8), torch.rand(64, 1)
    text = {f"{layer}.weight": codes, f"{layer}.weight_scale": scale}
    text[f"{layer}.comfy_quant"] = config(format="int8_tensorwise")
    parts = stored_by_others("old fp8", numbers(1))
    save_file(
        {f"model.diffusion_model.{key}": one for key, one in parts.items()} | text,
        tmp_path / "model.safetensors",
    )
    output = tmp_path / "out.safetensors"
    with open_source(tmp_path / "model.safetensors") as model:
        plan = plan_requantise_file(model, "mxfp8", output=output)
        report = requantise_file(plan, output)
    found = load_file(output)
    for key, tensor in text.items():
        assert_equal(found[key], tensor)
    assert not any(key.endswith("scaled_fp8") for key in found)
    assert any(
        note.startswith("1 weight stored as the checkpoint has them") for note in report.notes
    )
    with open_source(output) as source:
        assert source.storage(f"model.diffusion_model.{KEY}") == "mxfp8"
