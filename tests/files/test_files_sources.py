"""Shards and folders: one source each, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorakit.lora_ops.errors import ArgumentError, FormatError
from lorakit.lora_ops.files import open_source


def tensors_of(path: Path) -> dict[str, list[float]]:
    with open_source(path) as source:
        found = {key: source.tensor(key) for key in list(source.keys())}
        for key, tensor in found.items():
            assert source.shape(key) == tuple(tensor.shape)
            assert source.dtype(key) == tensor.dtype
        assert all(file.is_file() for file in source.paths)
        return {key: tensor.tolist() for key, tensor in found.items()}


def weights(path: Path, **values: float) -> Path:
    """A file with one tensor a name; underscores in names are dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name.replace("_", "."): torch.tensor([value]) for name, value in values.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def index(path: Path, weight_map: object) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


class TestSharded:
    def test_shards_are_one_source(self, tmp_path: Path) -> None:
        weights(tmp_path / "m-1.safetensors", a=1, b=2)
        weights(tmp_path / "m-2.safetensors", c=3, stray=9)
        path = index(
            tmp_path / "m.safetensors.index.json",
            {"c": "m-2.safetensors", "a": "m-1.safetensors", "b": "m-1.safetensors"},
        )
        assert tensors_of(path) == {"a": [1], "b": [2], "c": [3]}
        with open_source(path) as source:
            assert list(source.keys()) == ["a", "b", "c"]
            assert source.paths == (
                path,
                tmp_path / "m-1.safetensors",
                tmp_path / "m-2.safetensors",
            )

    def test_pickled_shards_and_subfolders(self, tmp_path: Path) -> None:
        weights(tmp_path / "sub" / "m-1.bin", a=1)
        path = index(tmp_path / "pytorch_model.bin.index.json", {"a": "sub/m-1.bin"})
        assert tensors_of(path) == {"a": [1]}

    def test_the_index_decides_between_two_shards(self, tmp_path: Path) -> None:
        weights(tmp_path / "1.safetensors", a=1)
        weights(tmp_path / "2.safetensors", a=2, b=3)
        path = index(tmp_path / "i.json", {"a": "1.safetensors", "b": "2.safetensors"})
        assert tensors_of(path) == {"a": [1], "b": [3]}

    @pytest.mark.parametrize(
        "shard",
        ["../m.safetensors", "sub/../../m.safetensors", "/m.safetensors", "C:\\m.safetensors",
         "..\\m.safetensors", "\\\\host\\share\\m.safetensors", "C:m.safetensors"],
    )  # fmt: skip
    def test_shards_outside_the_folder_are_refused(self, shard: str, tmp_path: Path) -> None:
        weights(tmp_path / "m.safetensors", a=1)
        (tmp_path / "model" / "sub").mkdir(parents=True)
        with pytest.raises(FormatError, match="lies outside"):
            open_source(index(tmp_path / "model" / "i.json", {"a": shard}))

    def test_links_are_followed(self, tmp_path: Path) -> None:
        """Hugging Face's cache: names in one folder, contents in another."""
        blob = weights(tmp_path / "blobs" / "0123.safetensors", a=1).rename(
            tmp_path / "blobs" / "0123"
        )
        (tmp_path / "snapshot").mkdir()
        (tmp_path / "snapshot" / "m.safetensors").symlink_to(blob)
        index(tmp_path / "blobs" / "4567", {"a": "m.safetensors"})
        (tmp_path / "snapshot" / "i.json").symlink_to(tmp_path / "blobs" / "4567")
        assert tensors_of(tmp_path / "snapshot" / "i.json") == {"a": [1]}

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        weights(tmp_path / "m-1.safetensors", a=1)
        with pytest.raises(FormatError, match=r"the shard `m-2\.safetensors` is missing"):
            open_source(
                index(tmp_path / "i.json", {"a": "m-1.safetensors", "b": "m-2.safetensors"})
            )
        with pytest.raises(FormatError, match=r"promises `b` in `m-1\.safetensors`"):
            open_source(
                index(tmp_path / "i.json", {"a": "m-1.safetensors", "b": "m-1.safetensors"})
            )

    def test_a_damaged_shard_is_named(self, tmp_path: Path) -> None:
        weights(tmp_path / "1.safetensors", a=1)
        (tmp_path / "2.safetensors").write_bytes(b"")
        with pytest.raises(FormatError, match=r"2\.safetensors: the file is empty"):
            open_source(index(tmp_path / "i.json", {"a": "1.safetensors", "b": "2.safetensors"}))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "not a JSON text"),
            ("[" * 100_000, "not a JSON text"),
            ("\udcff", "not a JSON text"),
            ("[]", "no `weight_map`"),
            ("{}", "no `weight_map`"),
            ('{"weight_map": {}}', "no `weight_map`"),
            ('{"weight_map": ["a"]}', "no `weight_map`"),
            ('{"weight_map": {"a": 1}}', "must map keys to file names"),
            ('{"weight_map": {"a": ""}}', "the shard `` is missing"),
            ('{"weight_map": {"a": "x\\u0000y"}}', "lies outside"),
            ('{"weight_map": {"a": "\\ud800"}}', "is missing"),
            ('{"weight_map": {"a": "' + "x" * 300 + '"}}', "is missing"),
        ],
    )
    def test_bad_indexes(self, text: str, words: str, tmp_path: Path) -> None:
        path = tmp_path / "i.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(FormatError, match=words):
            open_source(path)

    def test_an_index_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="no such file"):
            open_source(tmp_path / "i.json")


class TestFolder:
    def test_a_pipeline_has_prefixes(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        weights(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", down_w=1)
        weights(tmp_path / "text_encoder" / "model.fp16.safetensors", q=2)
        weights(tmp_path / "text_encoder_2" / "m-1.safetensors", q=3)
        index(
            tmp_path / "text_encoder_2" / "model.safetensors.index.json", {"q": "m-1.safetensors"}
        )
        weights(tmp_path / "vae" / "diffusion_pytorch_model.bin", w=4)
        weights(tmp_path / "safety_checker" / "model.safetensors", w=5)
        assert tensors_of(tmp_path) == {
            "unet.down.w": [1], "text_encoder.q": [2], "text_encoder_2.q": [3], "vae.w": [4],
        }  # fmt: skip

    def test_full_precision_comes_first(self, tmp_path: Path) -> None:
        weights(tmp_path / "transformer" / "diffusion_pytorch_model.fp16.safetensors", w=1)
        weights(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", w=2)
        weights(tmp_path / "transformer" / "diffusion_pytorch_model.bin", w=3)
        assert tensors_of(tmp_path) == {"transformer.w": [2]}

    @pytest.mark.parametrize(
        ("name", "config", "prefix"),
        [
            ("unet", {}, "unet."),
            (
                "text_encoder_2",
                {"architectures": ["CLIPTextModelWithProjection"]},
                "text_encoder_2.",
            ),
            ("mine", {"_class_name": "UNet2DConditionModel"}, "unet."),
            ("mine", {"_class_name": "FluxTransformer2DModel"}, "transformer."),
            ("mine", {"_class_name": "WanTransformer3DModel"}, "transformer."),
            ("mine", {"_class_name": "AutoencoderKLWan"}, "vae."),
            ("mine", {"architectures": ["CLIPTextModel"]}, "text_encoder."),
            ("mine", {"_class_name": 3, "architectures": "x"}, ""),
            ("mine", None, ""),
        ],
    )
    def test_one_component(
        self,
        name: str,
        config: object,
        prefix: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        weights(tmp_path / name / "diffusion_pytorch_model.safetensors", w=1)
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        assert tensors_of(tmp_path / name) == {f"{prefix}w": [1]}
        monkeypatch.chdir(tmp_path / name)
        assert tensors_of(Path()) == {f"{prefix}w": [1]}

    def test_an_adapter_folder(self, tmp_path: Path) -> None:
        weights(tmp_path / "adapter_model.safetensors", w=1)
        (tmp_path / "adapter_config.json").write_text("{}")
        assert tensors_of(tmp_path) == {"w": [1]}

    def test_one_file_of_any_name(self, tmp_path: Path) -> None:
        weights(tmp_path / "style.safetensors", w=1)
        assert tensors_of(tmp_path) == {"w": [1]}
        weights(tmp_path / "other.safetensors", w=1)
        with pytest.raises(FormatError, match=r"several.*`other\.safetensors`.*give the file"):
            open_source(tmp_path)

    def test_folders_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=r"no weights.*give the file"):
            open_source(tmp_path)
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(FormatError, match="none of its components"):
            open_source(tmp_path)

    def test_a_damaged_component_is_named(self, tmp_path: Path) -> None:
        weights(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", w=1)
        weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", w=1).write_bytes(b"")
        with pytest.raises(FormatError, match=r"vae.diffusion_pytorch_model.*empty"):
            open_source(tmp_path)
        weights(tmp_path / "mine" / "model.safetensors", w=1)
        (tmp_path / "mine" / "config.json").write_text("{")
        with pytest.raises(FormatError, match=r"config\.json: cannot be read as JSON"):
            open_source(tmp_path / "mine")
