"""Codes rounded by chance: each a neighbour, the mean the number itself, the same for any tiles and threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors.torch import load_file, save_file
from storing import SCHEMES, STORED, exact, grid, stored_by_others, turned
from tiny_flux import STRENGTH, adapter, numbers
from torch import Tensor

from lorakit.lora_ops import ArgumentError, Ingredient, open_source
from lorakit.lora_ops.files.quantised.integers import Integers
from lorakit.lora_ops.files.quantised.weight import Parts
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.requantise import file as requantise
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file
from lorakit.lora_ops.operations.weights import terms
from lorakit.lora_ops.run.devices import Placement

KEY = "double_blocks.0.img_attn.proj.weight"
QKV = "double_blocks.0.img_attn.qkv.weight"
SEEDS = 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file({KEY: numbers(1)[KEY], QKV: numbers(1)[QKV]} | _rest(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def _rest() -> dict[str, Tensor]:
    """Just so much of a Flux that it is known as one."""
    found = numbers(1)
    return {key: found[key] for key in found if "single" in key or "txt_attn" in key}


def written(model: Path, output: Path, to: str, **asked: object) -> dict[str, Tensor]:
    with open_source(model) as source:
        plan = plan_requantise_file(source, to, output=output, force=True, **asked)
        requantise.requantise_file(plan, output, force=True)
    return load_file(output)


def read(path: Path, key: str) -> Tensor:
    with open_source(path) as source:
        return source.tensor(key).double()


@pytest.mark.parametrize("to", [*SCHEMES, "nf4", "fp4"])
def test_the_mean_over_seeds_is_the_number(model: Path, tmp_path: Path, to: str) -> None:
    """Each is at most a step away; their mean as near as that of so many draws is."""
    output, truth = tmp_path / "out.safetensors", numbers(1)[KEY].double()
    written(model, output, to)
    near = (read(output, KEY) - truth).norm()
    total, steps = torch.zeros_like(truth), torch.zeros_like(truth)
    for seed in range(SEEDS):
        written(model, output, to, rounding="stochastic", seed=seed)
        found = read(output, KEY)
        with open_source(output) as source:
            steps = source.grid(KEY, torch.maximum(truth.abs(), found.abs()))
        # A block's largest number in nvfp4 may lie beyond its scale, which is rounded.
        outside = (found - truth).abs() > steps * 1.001 + 1e-6
        assert outside.sum() <= (0.01 * truth.numel() if to == "nvfp4" else 0)
        total += found
    inside = (total / SEEDS - truth).abs() < 4 * steps / (SEEDS**0.5) + 1e-6
    assert inside.double().mean() > 0.999
    # By chance one draw is off by sqrt(2) times as much as the nearest is.
    assert (total / SEEDS - truth).norm() < 1.5 * 2**0.5 * near / SEEDS**0.5
    assert abs(float((total / SEEDS - truth).sum() / truth.norm())) < 0.5


@pytest.mark.parametrize("to", [*SCHEMES, "nf4", "fp4"])
def test_tiles_and_threads_give_the_same_bytes(
    model: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.safetensors"
    first = written(model, output, to, rounding="stochastic", seed=5)
    monkeypatch.setattr(terms, "TILE", 8192)
    one = Placement(torch.device("cpu"), 1)
    monkeypatch.setattr(requantise, "place", lambda _: one)
    again = written(model, output, to, rounding="stochastic", seed=5)
    assert all(torch.equal(first[key].float(), again[key].float()) for key in first)
    other = written(model, output, to, rounding="stochastic", seed=6)
    assert not torch.equal(first[KEY].float(), other[KEY].float())
    monkeypatch.undo()
    nearest = written(model, output, to)
    assert not torch.equal(first[KEY].float(), nearest[KEY].float())


def test_what_is_stored_so_already_is_copied(model: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    first = written(model, one, "int8")
    again = written(one, tmp_path / "two.safetensors", "int8", rounding="stochastic")
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("store", ["old fp8", "int8 rotated", "fp8 by tiles"])
def test_a_bake_rounds_by_chance_what_it_changes(tmp_path: Path, store: str) -> None:
    """All else is copied; the mean over seeds is the sum."""
    model, lora = tmp_path / "model.safetensors", tmp_path / "lora.safetensors"
    save_file(stored_by_others(store, numbers(1)), model)
    save_file(adapter(), lora)
    total, count = torch.zeros_like(exact()[QKV]), 12
    near = torch.zeros(())
    for seed in range(-1, count):
        output = tmp_path / f"{seed}.safetensors"
        with open_source(model) as source, open_source(lora) as loras:
            truth = source.tensor(QKV).double() + exact()[QKV] - exact(0.0)[QKV]
            asked = ("nearest", 0) if seed < 0 else ("stochastic", seed)
            plan = plan_bake_file(
                *(source, [Ingredient(loras, STRENGTH)]),
                output=output,
                rounding=asked[0],
                seed=asked[1],
            )
            bake_file(plan, source, output)
        lost = read(output, QKV) - truth
        if seed < 0:
            near = lost.norm()
        else:
            total += turned(lost) if "rotated" in store else lost
        assert torch.equal(load_file(output)[KEY].float(), load_file(model)[KEY].float())
    assert (total / count).norm() < 1.5 * 2**0.5 * near / count**0.5


def test_what_is_recorded_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    asked = ("--to", "nvfp4", "--rounding", "stochastic", "--seed", "7", "--whole", "single*.lin*")
    done = lorakit_here("requantise", model, "-o", output, *asked)
    assert (done.status, done.err) == (0, "")
    with open_source(output) as source:
        told = source.metadata
    record = {"to": "nvfp4", "rounding": "stochastic", "seed": "7", "whole": '["single*.lin*"]'}
    assert {key: told[f"lorakit.{key}"] for key in record} == record
    found = written(*(model, again, "nvfp4"), rounding="stochastic", seed=7, whole=["single*.lin*"])
    first = load_file(output)
    assert all(torch.equal(first[key].float(), found[key].float()) for key in first)
    done = lorakit_here("requantise", model, "-o", output, "--to", "int8", "--seed", "1")
    assert (done.status, "give --rounding stochastic" in done.err) == (2, True)
    with pytest.raises(ArgumentError, match="rounding `up`"):
        written(model, output, "int8", rounding="up")


@pytest.mark.parametrize("to", ["fp8_scaled", "mxfp8"])
def test_codes_are_neighbours_of_the_number(model: Path, tmp_path: Path, to: str) -> None:
    """By all numbers of 8 bits: none lies between the number and its code."""
    output = tmp_path / "out.safetensors"
    found = written(model, output, to, rounding="stochastic", seed=3)
    codes, truth = found[KEY].double(), numbers(1)[KEY].double()
    with open_source(output) as source:
        scales = (source.tensor(KEY).double() / codes).nan_to_num(0)
    known = grid(torch.float8_e4m3fn)
    number = truth / scales
    is_told = scales > 0
    after = torch.bucketize(number, known).clamp(1, len(known) - 1)
    near = (codes - known[after]).abs().minimum((codes - known[after - 1]).abs())
    assert float(near[is_told].max()) < 1e-6 * 448
    assert KEY.removesuffix(".weight") in STORED


@pytest.mark.parametrize("baked", [False, True])
def test_what_is_decoded_is_decoded_once(
    model: Path, tmp_path: Path, baked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a scale of the whole weight needs two passes over it."""
    written(model, tmp_path / "int8.safetensors", "int8")
    save_file(adapter(), tmp_path / "lora.safetensors")
    seen: list[str] = []
    decode = Integers.decode

    def counted(one: Integers, parts: Parts) -> Tensor:
        seen.append(one.key)
        return decode(one, parts)

    monkeypatch.setattr(Integers, "decode", counted)
    output = tmp_path / "out.safetensors"
    if baked:
        with (
            open_source(tmp_path / "int8.safetensors") as source,
            open_source(tmp_path / "lora.safetensors") as lora,
        ):
            plan = plan_bake_file(
                source, [Ingredient(lora)], output=output, to="fp8_scaled", allow_partial=True
            )
            bake_file(plan, source, output)
    else:
        written(tmp_path / "int8.safetensors", output, "fp8_scaled")
    assert KEY in seen
    assert len(seen) == len(set(seen))
