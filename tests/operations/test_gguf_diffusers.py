"""GGUF files from checkpoints of diffusers: the names, shapes and numbers of the model's own program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import lorakit_here
from namings import TRANSLATED, both
from safetensors.torch import save_file

from lorakit.lora_ops import ArgumentError, DictSource, open_source
from lorakit.lora_ops.models.architectures import architecture_named, detect, parameters
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file

FLUX = architecture_named("flux")
#: Those that what `both` makes of them is enough to know by.
KNOWN = [
    one
    for one in TRANSLATED
    if all(detect(parameters(DictSource(side))) is one for side in both(one))
]


def written(tensors: dict[str, torch.Tensor], path: Path, to: str = "f32") -> dict[str, Any]:
    """What a GGUF file of a checkpoint has, by canonical names: as it is stored, and its numbers."""
    save_file(tensors, path.with_suffix(".safetensors"))
    with open_source(path.with_suffix(".safetensors")) as source:
        requantise_file(plan_requantise_file(source, to, output=path), path)
    with open_source(path) as found:
        return {
            name: (found.storage(one.key), found.tensor(one.key))
            for name, one in parameters(found).items()
        }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, (stored, tensor) in expected.items():
        assert found[name][0] == stored, name
        assert torch.equal(found[name][1], tensor), name


@pytest.mark.parametrize("architecture", KNOWN, ids=[one.name for one in KNOWN])
def test_both_namings_give_one_file(architecture: Any, tmp_path: Path) -> None:
    native, theirs = both(architecture, dtype=torch.bfloat16)
    expected = written(native, tmp_path / "native.gguf")
    assert_same(written(theirs, tmp_path / "theirs.gguf"), expected)
    assert all(
        torch.equal(expected[key][1].reshape(one.shape), one.float()) for key, one in native.items()
    )


def test_norms_of_flux_are_called_as_it_was_published(tmp_path: Path) -> None:
    _, theirs = both(FLUX)
    written(theirs, tmp_path / "a.gguf")
    with open_source(tmp_path / "a.gguf") as found:
        names = set(found.keys())
    assert "double_blocks.0.img_attn.norm.query_norm.scale" in names
    assert "double_blocks.0.img_attn.qkv.weight" in names
    assert not [name for name in names if "transformer" in name or "to_q" in name]


def test_a_tensor_that_no_table_knows_is_named(tmp_path: Path) -> None:
    _, theirs = both(FLUX)
    theirs["transformer.transformer_blocks.0.attn.odd.weight"] = torch.ones(4, 4)
    save_file(theirs, tmp_path / "a.safetensors")
    with (
        open_source(tmp_path / "a.safetensors") as source,
        pytest.raises(
            ArgumentError,
            match=r"1 tensor .*`transformer\.transformer_blocks\.0\.attn\.odd\.weight`",
        ),
    ):
        plan_requantise_file(source, "f16", output=tmp_path / "a.gguf")


def test_a_lora_is_baked_and_a_model_merged_on_the_way(tmp_path: Path) -> None:
    native, theirs = both(FLUX)
    save_file(native, tmp_path / "native.safetensors")
    save_file(theirs, tmp_path / "theirs.safetensors")
    other, _ = both(FLUX, seed=1)
    save_file(other, tmp_path / "other.safetensors")
    layer = "diffusion_model.double_blocks.0.img_attn.qkv"
    rows, columns = native[f"{layer}.weight"].shape
    tensors = {f"{layer}.lora_up.weight": torch.ones(rows, 1)}
    save_file(
        {**tensors, f"{layer}.lora_down.weight": torch.ones(1, columns)}, tmp_path / "l.safetensors"
    )
    for name in ("native", "theirs"):
        out, file = tmp_path / f"{name}-baked.gguf", tmp_path / f"{name}.safetensors"
        run = lorakit_here("bake", file, tmp_path / "l.safetensors", "-o", out, "--to", "f32")
        assert run.status == 0, run.err
        out = tmp_path / f"{name}-merged.gguf"
        both_files = [f"{tmp_path / one}.safetensors:0.5" for one in (name, "other")]
        run = lorakit_here("merge", *both_files, "-o", out, "--to", "f32")
        assert run.status == 0, run.err
    weight, second = (one[f"{layer}.weight"] for one in (native, other))
    for kind, exact in (("baked", weight + 1), ("merged", (weight + second) / 2)):
        sources = [open_source(tmp_path / f"{name}-{kind}.gguf") for name in ("native", "theirs")]
        key = layer.removeprefix("diffusion_model.") + ".weight"
        found, same = (one.tensor(key) for one in sources)
        assert torch.equal(found, same)
        assert torch.allclose(found, exact, atol=1e-6)
        for one in sources:
            one.close()


def test_enough_are_known() -> None:
    assert len(KNOWN) >= 20
