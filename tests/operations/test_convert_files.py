"""Conversions from file to file: what is in the file, and in the folder of PEFT."""

from __future__ import annotations

import json

import adapters
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_convert import FINAL, FLUX, LINEAR1, QKV, SPLIT, WIDTH, lora

from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.errors import ArgumentError, LoraOpsError, WriteError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations import peft_folder as module
from lorakit.lora_ops.operations.convert.file import convert_file

METADATA = {
    "ss_network_dim": "4",
    "ss_tag_frequency": '{"set": {"a cat": 3}}',
    "modelspec.title": "before",
    "sshs_model_hash": "0" * 64,
}


@pytest.fixture
def flux(tmp_path):
    tensors = lora(QKV, 3 * WIDTH) | lora(LINEAR1, 7 * WIDTH) | lora(FINAL, 2 * WIDTH)
    tensors["bundle_emb.cat.clip_l"] = torch.ones(2, 8)
    return adapters.written(tmp_path / "flux.safetensors", tensors, METADATA)


def converted(path, output, format, **options):
    # Several models have these few names, and widths as small as these tell none.
    options = {"architecture": "flux", **options}
    with open_source(path) as source:
        return convert_file(source, output, format, version="1.2", **options)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_there_and_back_is_the_same_file(flux, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    report = converted(flux, there, "kohya")
    assert [len(report.layers), report.error, report.size] == [3, 0, there.stat().st_size]
    keys = set(load_file(there))
    assert keys >= {f"lora_unet_double_blocks_0_img_attn_qkv.{one}" for one in
                    ("lora_up.weight", "lora_down.weight", "alpha")}  # fmt: skip
    converted(there, back, "comfy")
    before, after = load_file(flux), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_record_says_what_was_done(flux, tmp_path):
    output = tmp_path / "new.safetensors"
    report = converted(flux, output, "diffusers")
    found = metadata_of(output)
    assert found["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    assert found["ss_output_name"] == found["modelspec.title"] == "new"
    assert found["lorakit.operation"] == "convert"
    assert found["lorakit.format"] == "diffusers"
    assert found["lorakit.input"] == "flux.safetensors"
    assert found["format"] == "pt"
    assert found["sshs_model_hash"] != METADATA["sshs_model_hash"]
    assert list(json.loads(found["lorakit.layers"])) == [one.target for one in report.layers]
    assert any("became 7" in note for note in report.notes)
    assert set(load_file(output)) >= {f"{SPLIT[0]}.lora_A.weight", "bundle_emb.cat.clip_l"}


def test_the_folder_of_peft(flux, tmp_path):
    """The configuration names each module, its rank and its alpha; factors keep their numbers."""
    output = tmp_path / "folder.v2"
    report = converted(flux, output, "peft")
    assert {path.name for path in output.iterdir()} == {module.WEIGHTS, module.CONFIG}
    config = json.loads((output / module.CONFIG).read_text("utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 2)
    tensors = load_file(output / module.WEIGHTS)
    names = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")}
    listed = {f"base_model.model.{name}" for name in config["target_modules"]}
    assert listed == names == {one.target for one in report.layers}
    assert not any(key.endswith(".alpha") for key in tensors)
    back = tmp_path / "back.safetensors"
    converted(output, back, "comfy")
    with open_source(flux) as first, open_source(back) as second:
        before, after = decode(first).layers, decode(second).layers
        assert before.keys() == after.keys()
        for target, layer in before.items():
            assert torch.allclose(after[target].delta(), layer.delta(), atol=1e-5)


def test_a_name_that_others_end_in_is_an_expression(tmp_path):
    """PEFT takes a listed `proj_out` for each module that ends in it."""
    path = adapters.written(
        tmp_path / "lora.safetensors",
        lora("transformer.proj_out", 16) | lora("transformer.single_transformer_blocks.0.attn.to_q", WIDTH),
    )  # fmt: skip
    converted(path, tmp_path / "folder", "peft")
    config = json.loads((tmp_path / "folder" / module.CONFIG).read_text("utf-8"))
    assert config["target_modules"] == r"proj_out|single_transformer_blocks\.0\.attn\.to_q"


def test_nothing_is_replaced_unasked(flux, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ArgumentError, match="is a file, and format `peft` is a folder"):
        converted(flux, file, "peft")
    converted(flux, folder, "peft")
    with pytest.raises(ArgumentError, match="`force=True`"):
        converted(flux, folder, "peft")
    (folder / "README.md").write_text("mine")
    converted(flux, folder, "peft", force=True)
    assert {path.name for path in folder.iterdir()} == {module.WEIGHTS, module.CONFIG, "README.md"}
    with pytest.raises(ArgumentError, match="same file as the input"):
        converted(flux, flux, "kohya", force=True)


def test_a_failure_leaves_no_folder(flux, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "adapter_config", full)
    with pytest.raises(WriteError, match="No space left"):
        converted(flux, tmp_path / "folder", "peft")
    assert [path.name for path in tmp_path.iterdir()] == ["flux.safetensors"]


def test_the_model_can_be_named(tmp_path):
    path = adapters.written(tmp_path / "lora.safetensors", lora(SPLIT[0], WIDTH))
    output = tmp_path / "out.safetensors"
    with pytest.raises(ArgumentError, match="`architecture=`"):
        converted(path, output, "comfy", architecture=None)
    with pytest.raises(ArgumentError, match=r"unknown architecture `flax`; it is one of .*flux"):
        converted(path, output, "comfy", architecture="flax")
    converted(path, output, "comfy", architecture=FLUX.name)
    assert f"{QKV}.lora_B.weight" in load_file(output)


def test_a_checkpoint_gives_names_their_dots(tmp_path):
    """Of a model that no table knows."""
    checkpoint = adapters.written(
        tmp_path / "model.safetensors",
        {"model.diffusion_model.new_part.0.to_q.weight": torch.zeros(8, 8)},
    )
    path = adapters.written(tmp_path / "lora.safetensors", lora("lora_unet_new_part_0_to_q", 8, 8))
    output = tmp_path / "out.safetensors"
    with pytest.raises(LoraOpsError, match="`reference=`"):
        converted(path, output, "comfy")
    with open_source(checkpoint) as reference:
        converted(path, output, "comfy", reference=reference)
    assert "diffusion_model.new_part.0.to_q.lora_B.weight" in load_file(output)


def test_progress_is_told_layer_by_layer(flux, tmp_path):
    told = []
    converted(flux, tmp_path / "o.safetensors", "kohya", progress=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [(1, 3), (2, 3), (3, 3)]
