"""`convert --to lora` from file to file: names with kinds, the record, the command, and what goes wrong."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PLAIN, SCRIPT, contents, lorakit_here
from kinds import change, kinds, numbers, weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, convert, decode
from lorakit.lora_ops.errors import (
    ArgumentError,
    LoraOpsError,
    MismatchError,
    NonFiniteError,
    QuantisedError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.peft_folder import CONFIG, WEIGHTS
from lorakit.lora_ops.run.devices import place

WIDTH = 16
QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
FINAL = "diffusion_model.final_layer.adaLN_modulation.1"
SPLIT = tuple(f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv")
ROWS = [slice(WIDTH * i, WIDTH * (i + 1)) for i in range(3)]
METADATA = {
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "9",
    "ss_network_args": json.dumps({"algo": "loha", "dropout": "0.1"}),
    "ss_tag_frequency": '{"set": {"a cat": 3}}',
}


def loha(out: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "hada_w1_a": numbers(out, 2, seed=seed + 1),
        "hada_w1_b": numbers(2, WIDTH, seed=seed + 2),
        "hada_w2_a": numbers(out, 2, seed=seed + 3),
        "hada_w2_b": numbers(2, WIDTH, seed=seed + 4),
        "alpha": torch.tensor(1.5),
    }


def oft(out: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"oft_blocks": numbers(out // 4, 4, 4, seed=seed + 5)}


def dora(out: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "lora_up.weight": numbers(out, 2, seed=seed + 1),
        "lora_down.weight": numbers(2, WIDTH, seed=seed + 2),
        "dora_scale": 1 + numbers(out, 1, seed=seed + 3).abs(),
    }


def named(module: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{module}.{suffix}": one for suffix, one in tensors.items()}


def flux() -> dict[str, torch.Tensor]:
    """Weights under the names that Flux's own files have."""
    return {
        f"{QKV}.weight": numbers(3 * WIDTH, WIDTH, seed=40),
        f"{FINAL}.weight": numbers(2 * WIDTH, WIDTH, seed=41),
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale": numbers(WIDTH, seed=42),
        "diffusion_model.guidance_in.in_layer.weight": numbers(WIDTH, WIDTH, seed=43),
        "diffusion_model.img_in.weight": numbers(WIDTH, 64, seed=44),
        "diffusion_model.txt_in.weight": numbers(WIDTH, 24, seed=45),
    }


def saved(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    save_file(tensors, path, metadata)
    return path


def converted(path: Path, output: Path, *, base: Path | None = None, **options):
    with open_source(path) as source:
        if base is None:
            return convert_file(source, output, to="lora", version="1.2", **options)
        with open_source(base) as checkpoint:
            return convert_file(
                source, output, to="lora", base=checkpoint, version="1.2", **options
            )


def deltas(path: Path) -> dict[str, np.ndarray]:
    with open_source(path) as source:
        return {
            name: layer.scale
            * (layer.up.double().flatten(1) @ layer.down.double().flatten(1)).numpy()
            for name, layer in decode(source).layers.items()
        }


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted.reshape(found.shape)) / np.linalg.norm(wanted))


# --- Names and kinds at once ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [loha, oft, dora])
def test_a_fused_layer_of_any_kind_is_cut_into_lora(make, tmp_path):
    path = saved(tmp_path / "a.safetensors", named(QKV, make(3 * WIDTH)))
    base = saved(tmp_path / "base.safetensors", flux())
    output = tmp_path / "b.safetensors"
    report = converted(path, output, format="diffusers", base=base, rule=WIDTH)
    wanted = change(make(3 * WIDTH), flux()[f"{QKV}.weight"])
    found = deltas(output)
    assert set(found) == set(SPLIT)
    for module, rows in zip(SPLIT, ROWS, strict=True):
        assert off(found[module], wanted[rows]) < 1e-6
    assert "1 fused layer became 3: this format has their rows in several modules" in report.notes
    assert any(note.startswith("3 layers became LoRA, from") for note in report.notes)
    if make is not dora:  # whose rows have their own magnitudes
        with open_source(path) as source, pytest.raises(UnsupportedLayerError, match='`to="lora"`'):
            convert_file(source, tmp_path / "c.safetensors", "diffusers")


@pytest.mark.parametrize("make", [loha, oft, dora])
def test_split_layers_of_any_kind_are_joined_into_lora(make, tmp_path):
    """The base has their weights as rows of one: each is made from its own."""
    parts = {module: make(WIDTH, seed) for seed, module in enumerate(SPLIT)}
    path = saved(
        tmp_path / "a.safetensors",
        {k: t for m, one in parts.items() for k, t in named(m, one).items()},
    )
    base = saved(tmp_path / "base.safetensors", flux())
    output = tmp_path / "b.safetensors"
    converted(path, output, format="comfy", base=base, rule=WIDTH)
    fused = flux()[f"{QKV}.weight"]
    wanted = np.concatenate(
        [change(one, fused[rows]) for one, rows in zip(parts.values(), ROWS, strict=True)]
    )
    (module,), (found,) = zip(*deltas(output).items(), strict=True)
    assert module == QKV
    assert off(found, wanted) < 1e-6
    turned = np.roll(wanted, WIDTH, 0)  # the twin: other parts in these rows
    assert off(found, turned) > 0.1


def test_each_piece_is_the_best_of_its_own_rows(tmp_path):
    """Cutting the best approximation of the whole would be a worse one of each."""
    path = saved(tmp_path / "a.safetensors", named(QKV, oft(3 * WIDTH)))
    base = saved(tmp_path / "base.safetensors", flux())
    report = converted(path, tmp_path / "b.safetensors", format="diffusers", base=base, rule=3)
    wanted = change(oft(3 * WIDTH), flux()[f"{QKV}.weight"])
    for module, rows, layer in zip(SPLIT, ROWS, report.layers, strict=True):
        s = np.linalg.svd(wanted[rows], compute_uv=False)
        best = math.sqrt(math.fsum(s[3:] ** 2) / math.fsum(s**2))
        assert layer.error == pytest.approx(best, rel=1e-5)
        assert off(deltas(tmp_path / "b.safetensors")[module], wanted[rows]) == pytest.approx(best)


def test_halves_in_the_other_order_are_made_from_their_own_rows(tmp_path):
    """diffusers has scale and shift of the last modulation the other way round."""
    made = dora(2 * WIDTH)
    path = saved(tmp_path / "a.safetensors", named("transformer.norm_out.linear", made) | named(SPLIT[0], loha(WIDTH)))  # fmt: skip
    base = saved(tmp_path / "base.safetensors", flux())
    converted(path, tmp_path / "b.safetensors", format="comfy", base=base, rule=2 * WIDTH)
    source = flux()[f"{FINAL}.weight"]
    swapped = torch.cat([source[WIDTH:], source[:WIDTH]])
    wanted = change(made, swapped)
    wanted = np.concatenate([wanted[WIDTH:], wanted[:WIDTH]])
    assert off(deltas(tmp_path / "b.safetensors")[FINAL], wanted) < 1e-6
    assert off(deltas(tmp_path / "b.safetensors")[FINAL], change(made, source)) > 0.05


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("name", ["loha", "lokr whole, thin", "oft", "ia3", "set", "lora, DoRA on the input", "full"])  # fmt: skip
def test_a_kind_that_the_format_cannot_hold_is_an_error_that_names_the_way_out(
    format, name, tmp_path
):
    block = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    module = f"diffusion_model.{block}"
    path = saved(tmp_path / "a.safetensors", named(module, kinds("linear")[name]))
    base = saved(tmp_path / "base.safetensors", {f"model.{module}.weight": weight("linear")})
    output = tmp_path / "b.safetensors"
    held = format == "kohya" and name != "set"
    with open_source(path) as source:
        if held:
            convert_file(source, output, format, architecture="sd1", force=True)
        else:
            with pytest.raises(
                UnsupportedLayerError, match=f'`{format}` has no place .*`to="lora"`'
            ):
                convert_file(source, output, format, architecture="sd1")
            assert not output.exists()
    output = tmp_path / "c"
    target = output if format == "peft" else output.with_suffix(".safetensors")
    converted(path, target, format=format, architecture="sd1", base=base, rule=8)
    written = target / WEIGHTS if format == "peft" else target
    (found,) = deltas(written).values()
    scale = 1.0
    if format == "peft":
        config = json.loads((target / CONFIG).read_text("utf-8"))
        assert (config["r"], config["use_dora"]) == (config["lora_alpha"], False)
    assert off(scale * found, change(kinds("linear")[name], weight("linear"))) < 1e-6
    assert any(key.endswith(".alpha") for key in load_file(written)) == (format == "kohya")


# --- What is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", [None, 3])
def test_the_error_that_is_reported_is_that_of_the_file(dtype, rule, tmp_path):
    made = {key: one.to(dtype) for key, one in loha(48).items()}
    path = saved(tmp_path / "a.safetensors", named(QKV, made))
    report = converted(path, tmp_path / "b.safetensors", rule=rule)
    wanted = change({key: one.double() for key, one in made.items()}, torch.zeros(48, WIDTH))
    (found,) = deltas(tmp_path / "b.safetensors").values()
    assert load_file(tmp_path / "b.safetensors")[f"{QKV}.lora_A.weight"].dtype == dtype
    assert report.layers[0].error == pytest.approx(off(found, wanted), rel=1e-4, abs=2e-7)
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        told = float(file.metadata()["lorakit.error"])
    assert told == pytest.approx(off(found, wanted), rel=1e-3, abs=2e-7)
    limit = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}[dtype]
    assert (report.error < limit) == (rule is None)


def test_the_record_is_true(tmp_path):
    path = saved(tmp_path / "a.safetensors", named(QKV, oft(48)) | {"bundle_emb.cat.clip_l": torch.ones(2, 8)}, METADATA)  # fmt: skip
    base = saved(tmp_path / "base.safetensors", flux())
    output = tmp_path / "b.safetensors"
    report = converted(path, output, base=base, rule=4, dora="comfy")
    with safe_open(output, "pt") as file:
        found = file.metadata()
    assert (found["ss_network_module"], found["ss_network_dim"]) == ("networks.lora_flux", "4")
    assert json.loads(found["ss_network_args"]) == {"dropout": "0.1"}
    assert found["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    record = {key.removeprefix("lorakit."): text for key, text in found.items()}
    assert [record[key] for key in ("operation", "to", "rank", "base", "dora")] == [
        *("convert", "lora", "4", "base.safetensors", "comfy"),
    ]
    assert "format" not in {key for key in found if key == "lorakit.format"}
    keys = {f"{QKV}.{suffix}" for suffix in ("lora_B.weight", "lora_A.weight", "alpha")}
    assert set(load_file(output)) == {*keys, "bundle_emb.cat.clip_l"}
    assert report.size == output.stat().st_size


def test_the_size_of_the_file_is_the_budget(tmp_path):
    tensors = {
        key: one
        for index in range(6)
        for key, one in named(
            f"diffusion_model.double_blocks.{index}.img_mlp.0", loha(64, index)
        ).items()
    }
    path = saved(tmp_path / "a.safetensors", tensors)
    report = converted(path, tmp_path / "b.safetensors", rule="size=9kB")
    assert 8000 < report.size <= 9000


def test_batches_and_single_layers_give_one_result(tmp_path):
    made = {QKV: oft(48), FINAL: dora(32), "diffusion_model.guidance_in.in_layer": loha(WIDTH)}
    path = saved(tmp_path / "a.safetensors", {k: t for m, one in made.items() for k, t in named(m, one).items()})  # fmt: skip
    base = saved(tmp_path / "base.safetensors", flux())
    for name, placement in {"b": None, "c": place("cpu", memory=10**8)}.items():
        converted(path, tmp_path / f"{name}.safetensors", base=base, rule=3, placement=placement)
    one, other = (deltas(tmp_path / f"{name}.safetensors") for name in "bc")
    assert all(off(one[name], other[name]) < 1e-6 for name in made)


def test_the_weights_are_read_one_at_a_time(tmp_path):
    """However large the base is, few of its weights are in memory."""
    count, alive, most, read = 24, 0, 0, []

    def gone() -> None:
        nonlocal alive
        alive -= 1

    class Watched(DictSource):
        def tensor(self, key):
            nonlocal alive, most
            found = super().tensor(key).clone()
            read.append(key)
            alive += 1
            most = max(most, alive)
            weakref.finalize(found, gone)
            return found

    modules = [f"diffusion_model.double_blocks.{index}.img_attn.proj" for index in range(count)]
    others = {f"diffusion_model.other.{index}.weight": numbers(4, 4) for index in range(9)}
    base = Watched({f"{m}.weight": numbers(32, WIDTH) for m in modules} | others, name="base")
    source = DictSource({k: t for m in modules for k, t in named(m, oft(32)).items()}, name="a")
    convert(decode(source), to="lora", rule=2, base=base)
    gc.collect()
    assert sorted(read) == sorted(f"{module}.weight" for module in modules)
    assert alive == 0
    assert most <= 8


# --- What goes wrong ------------------------------------------------------------------------------

WRONG = {
    "lacks the weight": (
        {"diffusion_model.double_blocks.1.img_attn.proj.weight": torch.ones(48, WIDTH)},
        TargetMismatchError,
        rf"1 of 1 layer of .*a.safetensors are not in .*base.safetensors: `{QKV}`, nearest: ",
    ),
    "of another architecture": (
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 3, 3)},
        TargetMismatchError,
        "give the checkpoint that the LoRA was made for$",
    ),
    "of another shape": (
        {f"{QKV}.weight": torch.ones(96, 32)},
        WeightShapeError,
        r"changes a weight of shape \(48, -1\).* is \(96, 32\); the LoRA is for another model",
    ),
    "not a number": (
        {f"{QKV}.weight": torch.full((48, WIDTH), math.nan)},
        NonFiniteError,
        f"base.safetensors: `{QKV}.weight` holds NaN or infinite values",
    ),
    "of integers": (
        {f"{QKV}.weight": torch.ones((48, WIDTH), dtype=torch.int8)},
        QuantisedError,
        "packed integers",
    ),
    "quantised": (
        {f"{QKV}.weight": torch.ones((48, WIDTH), dtype=torch.float8_e4m3fn), f"{QKV}.scale_weight": torch.ones(7)},
        QuantisedError,
        "scale",
    ),
    "an adapter": (named(QKV, loha(48)), MismatchError, "is an adapter .*not a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_base_is_told(name, tmp_path):
    tensors, error, words = WRONG[name]
    path = saved(tmp_path / "a.safetensors", named(QKV, oft(48)))
    base = saved(tmp_path / "base.safetensors", tensors)
    before = contents(tmp_path)
    with pytest.raises(error, match=words):
        converted(path, tmp_path / "b.safetensors", base=base, rule=2)
    assert contents(tmp_path) == before


def test_the_outputs_folder_is_checked_first(tmp_path):
    path = saved(tmp_path / "a.safetensors", named(QKV, loha(48)))
    base = saved(tmp_path / "base.safetensors", flux())
    with pytest.raises(ArgumentError, match="same file as the input"):
        converted(path, base, base=base, force=True)
    with pytest.raises(ArgumentError, match="`force=True`"):
        converted(path, saved(tmp_path / "b.safetensors", flux()))


def test_what_needs_a_rank_leaves_no_file(tmp_path):
    path = saved(tmp_path / "a.safetensors", named(QKV, loha(48)) | named(FINAL, oft(32)))
    base = saved(tmp_path / "base.safetensors", flux())
    with pytest.raises(ArgumentError, match=rf"1 layer, the first `{FINAL}` \(OFT\)"):
        converted(path, tmp_path / "b.safetensors", base=base)
    with pytest.raises(LoraOpsError, match=rf"`{FINAL}`, is of kind OFT; give the checkpoint"):
        converted(path, tmp_path / "b.safetensors", rule=2)
    assert sorted(contents(tmp_path)) == ["a.safetensors", "base.safetensors"]


# --- The command ----------------------------------------------------------------------------------


def test_the_command_writes_lora_and_says_so(tmp_path):
    path = saved(tmp_path / "a.safetensors", named(QKV, loha(48)) | named(FINAL, oft(32)))
    base = saved(tmp_path / "base.safetensors", flux())
    output = tmp_path / "b.safetensors"
    run = lorakit_here("convert", path, "-o", output, "--to", "lora", "--rank", "4", "--base", base)
    assert (run.status, run.err) == (0, "")
    assert "1 layer became LoRA, from OFT" in run.out
    assert "2 layers, relative error 0." in run.out
    assert run.out.endswith(f"wrote {output}\n")
    shown = lorakit_here("convert", path, "-o", output, "--to", "lora", "--rank", "4", "--base", base, "--force", "--json", "-")  # fmt: skip
    assert [one["from_kind"] for one in json.loads(shown.out)["layers"]] == ["LoHa", "OFT"]


def test_the_command_says_what_is_missing(tmp_path):
    path = saved(tmp_path / "a.safetensors", named(FINAL, oft(32)))
    output = tmp_path / "b.safetensors"
    run = lorakit_here("convert", path, "-o", output)
    assert (run.status, run.err) == (2, "Error: nothing to convert; give --format, or --to lora, or both\n")  # fmt: skip
    run = lorakit_here("convert", path, "-o", output, "--to", "lora", "--rank", "4")
    assert run.status == 1
    assert run.err.count("\n") == 1
    assert run.err.endswith("give the checkpoint that it was trained on as --base\n")
    run = lorakit_here("scale", path, "-o", output, "--strength", "0.5")
    assert (run.status, "`lorakit convert LORA --to lora --base CHECKPOINT`" in run.err) == (
        1,
        True,
    )
    run = lorakit_here("add", path, path, "-o", output)
    assert (run.status, "`lorakit convert LORA --to lora --base CHECKPOINT`" in run.err) == (
        1,
        True,
    )
    run = lorakit_here("resize", path, "-o", output, "--rank", "2")
    assert (run.status, "as --base, or bake it into its checkpoint" in run.err) == (1, True)
    assert not output.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_leaves_nothing(tmp_path):
    side, modules = 1024, [f"diffusion_model.double_blocks.{i}.img_attn.proj" for i in range(24)]
    blocks, source = numbers(side // 8, 8, 8), numbers(side, side)
    path = saved(tmp_path / "a.safetensors", {f"{m}.oft_blocks": blocks + i for i, m in enumerate(modules)})  # fmt: skip
    base = saved(tmp_path / "base.safetensors", {f"{m}.weight": source + i for i, m in enumerate(modules)})  # fmt: skip
    before = contents(tmp_path)
    output = tmp_path / "b.safetensors"
    process = subprocess.Popen(
        [SCRIPT, "convert", path, "-o", output, "--to", "lora", "--rank", "64", "--base", base, "--exact", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not any(one.stat().st_size > 0 for one in tmp_path.glob(".*.partial")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no data after two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (out, err.split()) == ("", ["Aborted!"])
    assert contents(tmp_path) == before
