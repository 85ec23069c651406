"""Many tuned language models against one base: a folder of PEFT for each, as if alone; and budgets in them."""

from __future__ import annotations

import pytest
import torch
from checkpoints import trained
from extractions import alone, many
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import ArgumentError, Report, open_source


def language_model(seed: int) -> dict[str, Tensor]:
    """Names of a transformer of Hugging Face, and an embedding."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        **{f"model.layers.0.self_attn.{one}_proj.weight": (64, 64) for one in "qkvo"},
        "model.layers.0.mlp.down_proj.weight": (64, 96),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.embed_tokens.weight": (50, 64),
    }
    return {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


@pytest.mark.parametrize("rule", [3, "mean=4", "size=40kB"])
@pytest.mark.parametrize("embeddings", ["whole", "none"])
def test_folders_of_peft_are_those_of_single_extractions(tmp_path, rule, embeddings):
    base = language_model(0)
    save_file(base, tmp_path / "base.safetensors")
    tuned = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, path in enumerate(tuned):
        save_file(trained(base, seed=number), path)
    options = {"format": "peft", "embeddings": embeddings}
    reports = many(tmp_path / "base.safetensors", tuned, tmp_path / "all", rule, **options)
    (tmp_path / "one").mkdir()
    for path in tuned:
        report = alone(
            tmp_path / "base.safetensors", path, tmp_path / "one" / path.stem, rule, **options
        )
        found = reports[path]
        assert isinstance(found, Report)
        assert found.layers == report.layers
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            one, other = (tmp_path / where / path.stem / name for where in ("one", "all"))
            assert one.read_bytes() == other.read_bytes()
        low_rank = [one for one in report.layers if one.kind == "linear"]
        if rule == "mean=4":
            assert sum(one.rank for one in low_rank) == 4 * 5
        if rule == "size=40kB":
            assert 30_000 < report.size <= 40_000
    with pytest.raises(ArgumentError, match="exists already"):
        many(tmp_path / "base.safetensors", tuned, tmp_path / "all", rule, **options)


def test_the_record_of_a_folder_says_what_that_of_a_file_says(tmp_path):
    base = language_model(0)
    save_file(base, tmp_path / "base.safetensors")
    save_file(trained(base), tmp_path / "tuned.safetensors")
    told: dict[str, dict[str, str]] = {}
    for format, name in (("peft", "made"), ("comfy", "made.safetensors")):
        alone(
            *(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / name),
            "mean=4",
            format=format,
            relative=True,
            norm="frobenius",
        )
        with open_source(tmp_path / name) as made:
            told[format] = dict(made.metadata)
    of_folder, of_file = told["peft"], told["comfy"]
    assert of_folder["lorakit.relative_to"] == "base.safetensors"
    assert of_folder["lorakit.norm"] == "frobenius"
    assert of_file.keys() - of_folder.keys() == set()
    # PEFT's names of modules are others, and what is kept whole is more.
    apart = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}
    apart |= {f"lorakit.{one}" for one in ("error", "layers", "left_out", "components")}
    for key in of_file.keys() - apart:
        assert of_folder[key] == of_file[key], key
