"""Work on Nunchaku's files gives what it gives on the numbers that they stand for, under the model's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_equal
from commands import lorakit_here
from nunchaku_models import FIRST, LAST, metadata, quantised, tiny, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import DictSource, TensorSource, extract, open_source, save_adapter, verify
from lorakit.lora_ops.errors import MismatchError
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.resize.importance import importance

BASE = tiny()
RANK = 3
#: A layer of each kind: a part of fused ones, behind GELU, of two of Nunchaku's, modulations.
CHANGED = (
    *(f"{FIRST}.{name}" for name in ("attn.to_v", "attn.to_add_out", "ff.net.2", "norm1.linear")),
    *(f"{LAST}.{name}" for name in ("attn.to_k", "proj_out")),
)


def changes() -> dict[str, Tensor]:
    """Of a rank, somewhat larger than the rounding."""
    draw = torch.Generator().manual_seed(5)
    found: dict[str, Tensor] = {}
    for layer in CHANGED:
        out, width = BASE[f"{layer}.weight"].shape
        change = torch.randn(out, RANK, generator=draw) @ torch.randn(RANK, width, generator=draw)
        found[f"{layer}.weight"] = change * 0.01
    return found


CHANGES = changes()
TUNED = BASE | {key: (BASE[key].float() + one).bfloat16() for key, one in CHANGES.items()}
STORES: dict[str, dict[str, Any]] = {
    "int4": {},
    "int4, smoothed before": {"fused": True, "seed": 2},
    "nvfp4": {"floats": True, "seed": 3},
}


def file(model: dict[str, Tensor], store: str, path: Path) -> Path:
    """A file of a model, in bfloat16 or as Nunchaku has it."""
    if store == "bf16":
        save_file(model, path)
    else:
        layers = quantised(model, **STORES[store])
        save_file(written(model, layers), path, metadata(store == "nvfp4"))
    return path


def numbers(source: TensorSource) -> DictSource:
    return DictSource({key: source.tensor(key) for key in source.keys()}, name=source.name)  # noqa: SIM118


@pytest.mark.parametrize(
    ("base", "other"),
    [("bf16", "int4"), ("bf16", "int4, smoothed before"), ("nvfp4", "bf16"), ("int4", "nvfp4")],
)
def test_extract_and_verify(base: str, other: str, tmp_path: Path) -> None:
    """Layers and rank that were changed are found by the rule that is the default, and no others."""
    old = file(BASE, base, tmp_path / "base.safetensors")
    new = file(TUNED, other, tmp_path / "tuned.safetensors")
    with open_source(old) as first, open_source(new) as second:
        found, report = extract(first, second)
        assert {one.rank for one in report.layers} == {RANK}
        assert len(found.layers) == len(CHANGED)
        assert any("are stored in 8 bits or fewer (SVDQuant" in note for note in report.notes)
        fixed, _ = extract(first, second, 4)
        expected, _ = extract(numbers(first), numbers(second), 4, dtype=torch.bfloat16)
        for target, one in fixed.layers.items():
            assert torch.equal(
                one.delta(torch.float32), expected.layers[target].delta(torch.float32)
            )
        save_adapter(found, tmp_path / "lora.safetensors")
        with open_source(tmp_path / "lora.safetensors") as adapter:
            checked = verify(first, second, adapter)
            assert checked.error == pytest.approx(report.error, rel=1e-4)
    # Baked into the base in bfloat16, it is nearer to the change than the stored difference is.
    plain = file(BASE, "bf16", tmp_path / "plain.safetensors")
    out = tmp_path / "out.safetensors"
    assert lorakit_here("bake", plain, tmp_path / "lora.safetensors", "-o", out).status == 0
    baked = load_file(out)
    with open_source(old) as first, open_source(new) as second:
        for key, change in CHANGES.items():
            stored = second.tensor(key).float() - first.tensor(key).float()
            off = (baked[key].float() - BASE[key].float() - change).norm() / change.norm()
            assert off < min(0.2, 0.5 * float((stored - change).norm() / change.norm())), key


@pytest.mark.parametrize("base", ["bf16", *STORES])
@pytest.mark.parametrize("other", STORES)
def test_one_model_stored_in_two_ways_is_no_change(base: str, other: str, tmp_path: Path) -> None:
    sides = [file(BASE, one, tmp_path / f"{i}.safetensors") for i, one in enumerate((base, other))]
    with open_source(sides[0]) as first, open_source(sides[1]) as second:
        for rule in (None, 4):
            with pytest.raises(MismatchError, match=r"no layer differs|identical"):
                extract(first, second, rule)


@pytest.mark.parametrize("store", STORES)
def test_bake(store: str, tmp_path: Path) -> None:
    """What is written is in bfloat16 throughout, under diffusers' names, and says nothing of Nunchaku."""
    model = file(BASE, store, tmp_path / "model.safetensors")
    with (
        open_source(file(BASE, "bf16", tmp_path / "base.safetensors")) as base,
        open_source(file(TUNED, "bf16", tmp_path / "tuned.safetensors")) as tuned,
    ):
        save_adapter(extract(base, tuned, RANK)[0], tmp_path / "lora.safetensors")
    out, plain = tmp_path / "out.safetensors", tmp_path / "numbers.safetensors"
    done = lorakit_here("bake", model, tmp_path / "lora.safetensors", "-o", out)
    assert (done.status, done.err) == (0, "")
    kind = "nvfp4" if store == "nvfp4" else "int4"
    words = " ".join(done.out.split())
    assert f"17 weights stored as SVDQuant {kind} written as bf16" in words
    assert "3 weights stored as AWQ int4 written as bf16" in words
    with open_source(model) as source:
        held = numbers(source)
        save_file({key: held.tensor(key).contiguous() for key in held.keys()}, plain)  # noqa: SIM118
    asked = ("-o", tmp_path / "expected.safetensors", "--dtype", "bf16")
    assert lorakit_here("bake", plain, tmp_path / "lora.safetensors", *asked).status == 0
    found, expected = load_file(out), load_file(tmp_path / "expected.safetensors")
    assert found.keys() == BASE.keys() == expected.keys()
    for key, tensor in found.items():
        assert_equal(tensor, expected[key])
    with safe_open(out, "pt") as opened:
        told = opened.metadata()
    assert told["config"] == metadata()["config"]
    assert not told.keys() & {"quantization_config", "model_class", "comfy_config"}


def test_no_other_scales_can_be_asked_for(tmp_path: Path) -> None:
    """As of any model under diffusers' names."""
    model = file(BASE, "int4", tmp_path / "model.safetensors")
    done = lorakit_here("requantise", model, "--to", "nvfp4", "-o", tmp_path / "out.safetensors")
    assert (done.status, done.out) == (2, "")
    assert "under the names of its own program" in " ".join(done.err.split())
    assert not (tmp_path / "out.safetensors").exists()


def test_merge_and_importance(tmp_path: Path) -> None:
    recipe = parse_line("A + 0.5*(B - C)")
    paths = [
        file(model, store, tmp_path / f"{name}.safetensors")
        for name, model, store in zip("ABC", (BASE, TUNED, BASE), STORES, strict=True)
    ]
    with (
        open_source(paths[0]) as a,
        open_source(paths[1]) as b,
        open_source(paths[2]) as c,
    ):
        models = {"A": a, "B": b, "C": c}
        expected, _ = merge(recipe, {name: numbers(one) for name, one in models.items()})
        output = tmp_path / "out.safetensors"
        plan = plan_merge_file(recipe.with_output(dtype="bf16"), models, output=output)
        merge_file(plan, output, version="0")
        found = load_file(output)
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert_equal(tensor, expected[key].bfloat16())
        names = [f"transformer.{layer}" for layer in CHANGED]
        assert importance(names, a) == importance(names, numbers(a))


def test_info(tmp_path: Path) -> None:
    done = lorakit_here("info", file(BASE, "int4", tmp_path / "model.safetensors"))
    assert (done.status, done.err) == (0, "")
    words = " ".join(done.out.split())
    assert "architecture Flux.1" in words
    assert "naming diffusers" in words
    assert "AWQ int4: 3; SVDQuant int4: 17; bf16: 3" in words
    assert "bf16, 1 added: 3; bf16, packed: 14; bf16, shifted: 3" in words
