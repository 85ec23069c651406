"""Checkpoints that are written with scales, and otherwise stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors.torch import load_file, save_file
from storing import SCHEMES, STORED, nearest
from tiny_flux import adapter, numbers

from lorakit.lora_ops import ArgumentError, open_source
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.requantise.preview import preview_requantise


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, lora = tmp_path / "model.safetensors", tmp_path / "lora.safetensors"
    save_file(numbers(1), model)
    save_file(adapter(), lora)
    return model, lora


@pytest.mark.parametrize("to", SCHEMES)
@pytest.mark.parametrize("ending", [".safetensors", ".safetensors.index.json"])
def test_requantised_twice_is_the_same(
    files: tuple[Path, Path], tmp_path: Path, to: str, ending: str
) -> None:
    """Each number is the nearest; and the second time it is copied."""
    one, two = tmp_path / f"one{ending}", tmp_path / "two.safetensors"
    with open_source(files[0]) as model:
        plan = plan_requantise_file(model, to, output=one, dtype=torch.bfloat16, shard_size=1 << 19)
        first = requantise_file(plan, one, shard_size=1 << 19)
        assert first.size <= preview_requantise(plan, one, shard_size=1 << 19).size_at_most
        with open_source(one) as found:
            for key in found.keys():  # noqa: SIM118
                is_stored = key.removesuffix(".weight") in STORED
                assert is_stored == (found.storage(key) != "bf16")
                lost = (found.tensor(key).double() - model.tensor(key).double()).abs()
                slack = 2e-6 * model.tensor(key).abs().max()
                if is_stored:
                    assert (lost <= nearest(model.tensor(key).double(), to) + slack).all()
    with open_source(one) as model:
        plan = plan_requantise_file(model, to, output=two)
        again = requantise_file(plan, two)
        assert again.size <= preview_requantise(plan, two).size_at_most
        before = {
            key: tensor
            for path in model.paths
            if path.suffix == ".safetensors"
            for key, tensor in load_file(path).items()
        }
    after = load_file(two)
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key].float(), tensor.float()), key
    assert again.error == 0 < first.error
    assert [one.target for one in again.layers] == [one.target for one in first.layers]
    told = [note for note in again.notes if "bits" in note]
    numbers_of = sum(tensor.numel() for tensor in numbers(1).values())
    bits = sum(tensor.numel() * tensor.itemsize * 8 for tensor in after.values()) / numbers_of
    assert told == [f"{bits:.2f} bits per weight, scales included"]


def test_other_scales_are_not_copied(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Float8 by rows is read, and written with one scale."""
    key, tensors = "double_blocks.0.img_attn.qkv.weight", numbers(1)
    scales = tensors[key].abs().amax(dim=1, keepdim=True) / 448
    tensors[key] = (tensors[key] / scales).to(torch.float8_e4m3fn)
    tensors[key.replace("weight", "weight_scale")] = scales
    save_file(tensors, tmp_path / "rows.safetensors")
    output = tmp_path / "out.safetensors"
    with open_source(tmp_path / "rows.safetensors") as model:
        report = requantise_file(plan_requantise_file(model, "fp8_scaled", output=output), output)
        truth = model.tensor(key)
    assert load_file(output)[key.replace("weight", "weight_scale")].shape == ()
    with open_source(output) as found:
        lost = (found.tensor(key).double() - truth.double()).abs()
        assert (lost <= nearest(truth.double(), "fp8_scaled") + 1e-6).all()
    assert all(layer.error > 0.02 for layer in report.layers)


def test_requantise_by_the_command(files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    asked = ("requantise", files[0], "-o", output, "--to", "int8")
    done = lorakit_here(*asked, "--dry-run")
    assert (done.status, output.exists()) == (0, False)
    done = lorakit_here(*asked)
    assert (done.status, done.err) == (0, "")
    assert "13 weights written with scales, relative error 0.006" in " ".join(done.out.split())
    with open_source(output) as found:
        assert found.storage("single_blocks.0.linear1.weight") == "int8"
        assert found.metadata["lorakit.operation"] == "requantise"
    done = lorakit_here("requantise", files[0], "-o", tmp_path / "x.safetensors")
    assert (done.status, "'--to'" in done.err) == (2, True)
    done = lorakit_here("requantise", files[1], "-o", tmp_path / "x.safetensors", "--to", "int8")
    assert done.status == 1


def test_other_components_stay_whole(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a whole checkpoint, the diffusion model alone is written with scales."""
    others = {
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": (64, 64),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (64, 64),
        "vae.decoder.mid.attn_1.q.weight": (64, 64, 1, 1),
    }
    tensors = {f"model.diffusion_model.{key}": one for key, one in numbers(1).items()}
    tensors |= {key: torch.ones(shape) for key, shape in others.items()}
    save_file(tensors, tmp_path / "whole.safetensors")
    output = tmp_path / "out.safetensors"
    with open_source(tmp_path / "whole.safetensors") as model:
        requantise_file(plan_requantise_file(model, "mxfp8", output=output), output)
    with open_source(output) as found:
        stored = {key for key in found.keys() if found.storage(key) == "mxfp8"}  # noqa: SIM118
        assert stored == {f"model.diffusion_model.{name}.weight" for name in STORED}
        for key in others:
            assert torch.equal(found.tensor(key), tensors[key])


def test_what_cannot_be_written_so(tmp_path: Path) -> None:
    text = {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": 64}
    save_file({key: torch.ones(n, n) for key, n in text.items()}, tmp_path / "te.safetensors")
    with (
        open_source(tmp_path / "te.safetensors") as model,
        pytest.raises(ArgumentError, match="has no weight to write as `int8`"),
    ):
        plan_requantise_file(model, "int8")
    folder = tmp_path / "folder" / "transformer"
    folder.mkdir(parents=True)
    weights = {f"transformer_blocks.{n}.attn.to_q.weight": torch.ones(64, 64) for n in range(2)}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "QwenImageTransformer2DModel"}')
    (folder.parent / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    with (
        open_source(folder.parent) as model,
        pytest.raises(ArgumentError, match="folder of diffusers"),
    ):
        plan_requantise_file(model, "int8")


def test_sides_that_are_no_blocks_stay_whole(tmp_path: Path) -> None:
    tensors = numbers(1)
    odd = "double_blocks.0.img_mlp.0.weight"
    tensors[odd] = torch.ones(500, 128)
    save_file(tensors, tmp_path / "odd.safetensors")
    with open_source(tmp_path / "odd.safetensors") as model:
        for to, is_stored in (("int8", True), ("mxfp8", False), ("nvfp4", False)):
            plan = plan_requantise_file(model, to)
            assert (plan.tensors[odd].storing is not None) == is_stored


def test_all_that_stays_whole_by_a_pattern_is_told(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    with (
        open_source(files[0]) as model,
        pytest.raises(ArgumentError, match="all stay whole by `whole=`"),
    ):
        plan_requantise_file(model, "int8", whole=["*"])
    told = lorakit_here(
        *("requantise", files[0], "--to", "bf16", "-o", tmp_path / "out.gguf", "--dry-run")
    )
    assert "bits per weight" in told.out
    assert "scales included" not in told.out


def test_keep_is_whole_by_another_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    for option in ("whole", "keep"):
        output = tmp_path / f"{option}.safetensors"
        asked = ("requantise", files[0], "--to", "int8", f"--{option}", "double_*.img_mlp.*")
        assert lorakit_here(*asked, "-o", output).status == 0
    found, same = (load_file(tmp_path / f"{option}.safetensors") for option in ("keep", "whole"))
    assert found.keys() == same.keys()
    assert all(torch.equal(found[key], same[key]) for key in found)
    assert found["double_blocks.0.img_mlp.0.weight"].dtype == torch.float32
    assert found["double_blocks.0.img_attn.qkv.weight"].dtype == torch.int8


def test_info_and_report_tell_one_number_of_bits(files: tuple[Path, Path], tmp_path: Path) -> None:
    for to in ("nvfp4", "nf4"):
        output = tmp_path / f"{to}.safetensors"
        said = lorakit_here("requantise", files[0], "--to", to, "-o", output).out
        (told,) = (line for line in said.splitlines() if "bits per weight" in line)
        shown = lorakit_here("info", output).out
        assert f"{told.split()[1]} per weight, scales included" in shown


def test_a_storage_is_named_and_known(files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    for name in ("", "fp16", "q3_k"):
        done = lorakit_here("requantise", files[0], "--to", name, "-o", output)
        assert done.status == 2
        assert f"the storage `{name}` is unknown: fp8_scaled" in done.err
        assert not output.exists()
    assert lorakit_here("requantise", files[0], "--to", "INT8", "-o", output).status == 0
    with open_source(output) as source:
        assert source.storage(f"{STORED[0]}.weight") == "int8"
