"""GGUF files of baked and merged models: each weight in the type that is asked for, or that it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import lorakit_here
from gguf_files import blocks, kind_of, numbers_of, read
from safetensors.torch import save_file
from storing import exact
from tiny_flux import LAYERS, STRENGTH, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import ArgumentError, Ingredient, open_source
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.bake.preview import preview_bake
from lorakit.lora_ops.report import Report

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

CLIP = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
TOKENS = ["a", "b", "ü"]


def stored(folder: Path, kinds: dict[str, str], tensors: dict[str, Tensor]) -> Path:
    """A GGUF file by the package, as other programs write it; types by layer, others in float32."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "flux")
    writer.add_string("general.name", "a model")
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_float32("some.number", 0.25)
    for name, tensor in tensors.items():
        kind = kinds.get(name.removesuffix(".weight"), "F32")
        array = tensor.float().numpy()
        if kind.endswith("_K"):
            array = blocks(kind, *tensor.shape)
        elif kind != "F32":
            array = gguf.quants.quantize(array, kind_of(kind))
        writer.add_tensor(name, array, raw_dtype=kind_of(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def baked(
    model: Path, lora: dict[str, Tensor], output: Path, to: str | None = None, **options: Any
) -> Report:
    save_file(lora, output.with_name("lora.safetensors"))
    with (
        open_source(model) as checkpoint,
        open_source(output.with_name("lora.safetensors")) as source,
    ):
        ingredients = [Ingredient(source, STRENGTH)]
        plan = plan_bake_file(checkpoint, ingredients, output=output, to=to, **options)
        report = bake_file(plan, checkpoint, output)
        assert output.stat().st_size <= preview_bake(plan, output).size_at_most
    return report


@pytest.mark.parametrize("to", ["q8_0", "q4_1", "f16"])
def test_a_bake_is_rounded_once(tmp_path: Path, to: str) -> None:
    """Codes are the package's of the exact sum, and the report's numbers those that they stand for."""
    save_file(numbers(1), tmp_path / "model.safetensors")
    report = baked(tmp_path / "model.safetensors", adapter(), tmp_path / "out.gguf", to)
    found, told = read(tmp_path / "out.gguf")
    assert told["lorakit.operation"] == "bake"
    base, sums = numbers(1), exact()
    changed = {layer.target.removeprefix("diffusion_model."): layer for layer in report.layers}
    assert changed.keys() == {*LAYERS, f"{LAYERS[0]}.bias"}
    for layer in LAYERS:
        key = f"{layer}.weight"
        assert found[key].tensor_type.name == to.upper()
        kind = found[key].tensor_type
        codes = gguf.quants.quantize(sums[key].float().numpy(), kind)
        assert (found[key].data.view(np.uint8) == codes.view(np.uint8)).mean() > 0.999
        moved = numbers_of(found[key]).view(base[key].shape).double() - base[key].double()
        meant = sums[key] - base[key].double()
        cosine = float((moved * meant).sum() / moved.norm() / meant.norm())
        assert changed[layer].cosine == pytest.approx(cosine, abs=1e-4)


def test_into_gguf_each_weight_keeps_its_type(tmp_path: Path) -> None:
    """What does not change keeps its bytes; what is in a type that is only read becomes `Q8_0`."""
    kinds = {
        LAYERS[0]: "Q5_1",
        LAYERS[1]: "Q4_K",
        "double_blocks.0.img_mlp.2": "Q6_K",
        "double_blocks.0.img_attn.proj": "Q4_0",
        "single_blocks.0.linear2": "BF16",
        "img_in": "F16",
    }
    tensors = numbers(1)
    lora = {key: one for key, one in adapter().items() if LAYERS[2] not in key}
    kinds = {
        name: kind
        for name, kind in kinds.items()
        if not kind.endswith("_K") or tensors[f"{name}.weight"].shape[1] % 256 == 0
    }
    assert {"Q4_K", "Q6_K"} <= {*kinds.values()}
    model = stored(tmp_path, kinds, tensors)
    report = baked(model, lora, tmp_path / "out.gguf")
    before, _ = read(model)
    after, told = read(tmp_path / "out.gguf")
    assert (told["general.name"], told["some.number"]) == ("a model", 0.25)
    assert told["tokenizer.ggml.tokens"] == TOKENS
    assert list(after) == list(before)
    changed = {f"{layer}.weight" for layer in LAYERS[:2]} | {f"{LAYERS[0]}.bias"}
    for name, tensor in before.items():
        is_same = after[name].data.tobytes() == tensor.data.tobytes()
        assert is_same == (name not in changed), name
        assert after[name].shape.tolist() == tensor.shape.tolist()
    types = {name: one.tensor_type.name for name, one in after.items()}
    assert types[f"{LAYERS[0]}.weight"] == "Q5_1"
    assert types[f"{LAYERS[1]}.weight"] == "Q8_0"
    assert types["double_blocks.0.img_mlp.2.weight"] == "Q6_K"
    assert [note for note in report.notes if "Q4_K" in note][-1:] == [
        "1 weight stored as Q4_K, which the package gguf does not encode, the first "
        f"`{LAYERS[1]}.weight`: it is written as Q8_0"
    ]
    assert {one.target.removeprefix("diffusion_model.") for one in report.stored} == {*LAYERS[:2]}
    with open_source(model) as old, open_source(tmp_path / "out.gguf") as new:
        for layer in LAYERS[:2]:
            up, down = (
                lora[f"diffusion_model.{layer}.lora_{part}.weight"] for part in ("up", "down")
            )
            meant = old.tensor(f"{layer}.weight") + STRENGTH * 3 / 4 * (up @ down)
            lost = (new.tensor(f"{layer}.weight") - meant).norm() / meant.norm()
            assert lost < (0.05 if layer == LAYERS[0] else 0.006)


def test_layers_of_text_encoders_are_reported(tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{key}": one for key, one in numbers(1).items()}
    save_file(tensors | {f"{CLIP}.weight": torch.ones(64, 64)}, tmp_path / "model.safetensors")
    more = {
        f"{CLIP}.lora_up.weight": torch.ones(64, 2),
        f"{CLIP}.lora_down.weight": torch.ones(2, 64),
    }
    report = baked(tmp_path / "model.safetensors", adapter() | more, tmp_path / "out.gguf", "q8_0")
    left = {(skip.target, skip.norm > 0) for skip in report.skips}
    assert left == {(CLIP, True), (CLIP, False)}
    assert report.left_out > 0
    with pytest.raises(ArgumentError, match="text encoders alone"):
        baked(tmp_path / "model.safetensors", more, tmp_path / "two.gguf", "q8_0")
    assert not (tmp_path / "two.gguf").exists()


def test_what_the_types_are_must_be_said(tmp_path: Path) -> None:
    save_file(numbers(1), tmp_path / "model.safetensors")
    with pytest.raises(ArgumentError, match=r"say in what the GGUF file is to hold.*q8_0"):
        baked(tmp_path / "model.safetensors", adapter(), tmp_path / "out.gguf")


def test_a_baked_text_encoder_keeps_the_names_of_llama_cpp(tmp_path: Path) -> None:
    """Names are turned back where the file is written; turned rows of llama are not written into."""
    draw = torch.Generator().manual_seed(3)
    tensors = {
        "enc.blk.0.attn_q.weight": torch.randn(64, 64, generator=draw),
        "enc.blk.0.attn_k.weight": torch.randn(64, 64, generator=draw),
        "token_embd.weight": torch.randn(96, 64, generator=draw),
        "enc.output_norm.weight": torch.ones(64),
    }
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    for name, tensor in tensors.items():
        kind = kind_of("Q8_0" if tensor.ndim > 1 else "F32")
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    lora = {
        f"{target}.lora_up.weight": torch.randn(64, 2, generator=draw),
        f"{target}.lora_down.weight": torch.randn(2, 64, generator=draw),
    }
    baked(tmp_path / "t5.gguf", lora, tmp_path / "out.gguf")
    before, _ = read(tmp_path / "t5.gguf")
    after, told = read(tmp_path / "out.gguf")
    assert told["general.architecture"] == "t5encoder"
    assert list(after) == list(before)
    for name, tensor in before.items():
        is_same = after[name].data.tobytes() == tensor.data.tobytes()
        assert is_same == (name != "enc.blk.0.attn_q.weight")


@pytest.mark.parametrize("base", ["model.safetensors", "model.gguf"])
def test_a_merge_into_gguf(tmp_path: Path, base: str) -> None:
    one, two = numbers(1), numbers(2)
    key = "single_blocks.0.linear1.weight"
    save_file(one, tmp_path / "model.safetensors")
    stored(tmp_path, {key.removesuffix(".weight"): "Q5_0"}, one)
    save_file(two, tmp_path / "other.safetensors")
    output = tmp_path / "out.gguf"
    to = ("--to", "q4_0") if base.endswith("safetensors") else ()
    asked = ("merge", f"{tmp_path / base}:0.25", f"{tmp_path / 'other.safetensors'}:0.75")
    assert lorakit_here(*asked, "-o", output, *to, "--dry-run").status == 0
    done = lorakit_here(*asked, "-o", output, *to)
    assert (done.status, done.err) == (0, "")
    found, told = read(output)
    assert told["lorakit.operation"] == "merge"
    kind = found[key].tensor_type
    assert kind.name == ("Q4_0" if to else "Q5_0")
    with open_source(tmp_path / base) as source:
        meant = 0.25 * source.tensor(key).float() + 0.75 * two[key]
    codes = gguf.quants.quantize(meant.numpy(), kind)
    assert (found[key].data == codes).mean() > 0.999
    assert found["img_in.bias"].tensor_type.name == "F32"
    for options in ((), ("--verify", "--search", tmp_path)):
        again = lorakit_here("recipe", output, *options)
        assert again.status == 0, again.err


def test_what_was_baked_is_taken_out_again(tmp_path: Path) -> None:
    """By the record in the header."""
    save_file(numbers(1), tmp_path / "model.safetensors")
    baked(tmp_path / "model.safetensors", adapter(), tmp_path / "out.gguf", "f32")
    lora = f"{tmp_path / 'lora.safetensors'}:{STRENGTH}"
    done = lorakit_here("unbake", tmp_path / "out.gguf", lora, "-o", tmp_path / "back.gguf")
    assert done.status == 0, done.err
    other = f"{tmp_path / 'lora.safetensors'}:0.1"
    refused = lorakit_here("unbake", tmp_path / "out.gguf", other, "-o", tmp_path / "no.gguf")
    assert (refused.status, "0.8" in refused.err) == (1, True)
    found, told = read(tmp_path / "back.gguf")
    assert told["lorakit.operation"] == "unbake"
    for key, weight in numbers(1).items():
        assert torch.allclose(numbers_of(found[key]).view(weight.shape), weight, atol=2e-6), key


def test_weights_of_a_gguf_stay_whole_where_that_is_asked_for(tmp_path: Path) -> None:
    """By a pattern some, by a dtype all; what is copied is not said to be anything else."""
    model = stored(tmp_path, {LAYERS[0]: "Q8_0", LAYERS[2]: "MXFP4", "img_in": "Q8_0"}, numbers(1))
    asked = {"whole": ["double_blocks.*", "none.*"], "rounding": "stochastic"}
    report = baked(model, adapter(), tmp_path / "some.gguf", **asked)
    types = {name: one.tensor_type.name for name, one in read(tmp_path / "some.gguf")[0].items()}
    assert types[f"{LAYERS[0]}.weight"] == "BF16"
    assert (types[f"{LAYERS[2]}.weight"], types["img_in.weight"]) == ("MXFP4", "Q8_0")
    told = [note for note in report.notes if "Q" in note or "FP4" in note or "pattern" in note]
    assert told[1:4] == [
        "MXFP4 is always rounded to the nearest",
        "no weight stays whole by the pattern `none.*`",
        "1 weight stored as Q8_0 written as bf16",
    ]
    baked(model, adapter(), tmp_path / "all.gguf", dtype=torch.float16)
    found, _ = read(tmp_path / "all.gguf")
    assert {one.tensor_type.name for one in found.values()} == {"F16"}
    with pytest.raises(ArgumentError, match="named, but not how"):
        baked(model, adapter(), tmp_path / "none.gguf", quantise=["img_in*"])
    assert not (tmp_path / "none.gguf").exists()


def test_chance_is_no_help_where_all_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    small = {k: one * 1e-3 if "lora_up" in k else one for k, one in adapter().items()}
    model = stored(tmp_path, dict.fromkeys(LAYERS, "MXFP4"), numbers(1))
    for rounding in ("nearest", "stochastic"):
        output = tmp_path / f"{rounding}.gguf"
        report = baked(model, small, output, rounding=rounding)
        (told,) = [note for note in report.notes if note.startswith("rounding ate 3 layers of 4")]
        assert "`whole=`" in told
        assert "stochastic" not in told
