"""Resize with the base weights at hand: what is made from them becomes the best LoRA of its true change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from commands import contents, lorakit_here
from kinds import WEIGHTS, change, kinds, numbers, weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Adapter, DictSource, convert, decode, open_source, resize
from lorakit.lora_ops.adapters.layers import DoraLayer, FullLayer, LohaLayer, LoraLayer
from lorakit.lora_ops.errors import (
    MismatchError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)
from lorakit.lora_ops.operations.resize.file import resize_file

MODULE = "diffusion_model.blocks.0.q"
OF_BASE = [
    (form, name)
    for form in WEIGHTS
    for name in kinds(form)
    if "DoRA" in name or name.startswith(("glora", "oft", "boft", "ia3", "set"))
]


def tensors(form: str, name: str, module: str = MODULE) -> dict[str, torch.Tensor]:
    return {f"{module}.{suffix}": one for suffix, one in kinds(form)[name].items()}


def adapter(form: str, name: str) -> Adapter:
    return decode(DictSource(tensors(form, name), name="lora"))


def base(form: str) -> DictSource:
    return DictSource({f"model.{MODULE}.weight": weight(form)}, name="base")


def off(layer: LoraLayer, wanted: np.ndarray) -> float:
    found = layer.delta(torch.float64).numpy().reshape(wanted.shape)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def least(wanted: np.ndarray, rank: int) -> float:
    s = np.linalg.svd(wanted.reshape(len(wanted), -1), compute_uv=False)
    return math.sqrt(math.fsum(s[rank:] ** 2) / math.fsum(s**2))


#: DoRA over a change of its own stays DoRA.
DORA = [(form, name) for form, name in OF_BASE if "DoRA" in name and not name.startswith("glora")]


@pytest.mark.parametrize("rule", [2, "error=0.3", "mean=2"])
@pytest.mark.parametrize(("form", "name"), [case for case in OF_BASE if case not in DORA])
def test_it_becomes_the_best_lora_of_its_change(form, name, rule):
    before = adapter(form, name)
    with pytest.raises(
        UnsupportedLayerError, match="the checkpoint that it was trained on as `base=`"
    ):
        resize(before, rule)
    after, report = resize(before, rule, base=base(form))
    (layer,), (told,) = after.layers.values(), report.layers
    assert isinstance(layer, LoraLayer)
    assert layer.shape == WEIGHTS[form]
    wanted = change(kinds(form)[name], weight(form))
    assert off(layer, wanted) == pytest.approx(least(wanted, layer.rank), rel=1e-5, abs=1e-6)
    assert told.error == pytest.approx(off(layer, wanted), rel=1e-5, abs=1e-6)
    (old,) = before.layers.values()
    assert told.was == (old.rank,)
    assert f"1 layer became LoRA, from {old.title}" in report.notes
    if rule == "error=0.3":
        assert told.error <= 0.3
        assert layer.rank == 1 or least(wanted, layer.rank - 1) > 0.3
    else:
        assert layer.rank == min(2, np.linalg.matrix_rank(wanted.reshape(8, -1)))


@pytest.mark.parametrize("rule", [1, "error=0.5", "mean=1"])
@pytest.mark.parametrize(("form", "name"), DORA)
def test_dora_stays_dora_over_the_best_inner_change(form, name, rule):
    before = adapter(form, name)
    with pytest.raises(
        UnsupportedLayerError, match="the checkpoint that it was trained on as `base=`"
    ):
        resize(before, rule)
    after, report = resize(before, rule, base=base(form))
    (old,), (layer,), (told,) = before.layers.values(), after.layers.values(), report.layers
    assert isinstance(layer, DoraLayer)
    assert layer.magnitude is old.magnitude
    magnitudes = ("dora_scale", "lora_magnitude_vector")
    own = {suffix: one for suffix, one in kinds(form)[name].items() if suffix not in magnitudes}
    inner = change(own, weight(form))
    assert off(layer.inner, inner) == pytest.approx(least(inner, layer.rank), rel=1e-5, abs=1e-6)
    # The error is that of the whole change, by the definition of both.
    tensors_ = {
        "lora_up.weight": layer.inner.up,
        "lora_down.weight": layer.inner.down,
        **{suffix: one for suffix, one in kinds(form)[name].items() if suffix in magnitudes},
    }
    tensors_ |= {} if layer.inner.alpha is None else {"alpha": torch.tensor(layer.inner.alpha)}
    wanted = change(kinds(form)[name], weight(form))
    lost = np.linalg.norm(change(tensors_, weight(form)) - wanted)
    assert told.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    assert told.residual == pytest.approx(lost, rel=1e-4, abs=1e-6)
    assert (told.was, told.rank) == ((old.rank,), layer.rank)
    kind = old.inner.title
    assert report.notes == (() if kind == "LoRA" else (f"1 layer became LoRA, from {kind}",))


def test_magnitudes_hold_more_than_a_lora_of_their_change():
    """Why: scaled rows are a change of any rank."""
    out, rank = 48, 8
    source = numbers(out, 40, seed=1)
    up, down = numbers(out, rank, seed=2) * 0.2, numbers(rank, 40, seed=3) * 0.2
    lengths = (source + up @ down).norm(dim=1, keepdim=True) * (1 + 0.1 * numbers(out, 1, seed=4))
    found = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": lengths}
    given = decode(DictSource({f"{MODULE}.{suffix}": one for suffix, one in found.items()}))
    checkpoint = DictSource({f"model.{MODULE}.weight": source})
    _, kept = resize(given, 4, base=checkpoint)
    _, lora = convert(given, to="lora", rule=4, base=checkpoint)
    assert kept.error < 0.8 * lora.error


def test_magnitudes_over_no_change_are_kept():
    found = kinds("linear")["lora, DoRA"] | {"lora_up.weight": torch.zeros(8, 2)}
    given = decode(DictSource({f"{MODULE}.{suffix}": one for suffix, one in found.items()}))
    after, report = resize(given, 1, base=base("linear"))
    (layer,) = after.layers.values()
    assert isinstance(layer, DoraLayer)
    assert (report.skips, report.error) == ((), 0)
    assert report.layers[0].norm > 0
    with pytest.raises(MismatchError, match="1 layer rank 0 by the rule"):
        resize(adapter("conv3x3", "lora, DoRA"), "2,conv=0", base=base("conv3x3"))


def test_the_convention_counts():
    """For what becomes LoRA and for what stays DoRA."""
    given = adapter("linear", "glora, DoRA")
    paper, comfy = (
        resize(given, 8, base=base("linear"), dora=one)[0] for one in ("paper", "comfy")
    )
    (one,), (other,) = paper.layers.values(), comfy.layers.values()
    assert (one.delta() - other.delta()).norm() > 1e-2 * one.delta().norm()
    given = adapter("linear", "lora, DoRA")
    errors = {
        resize(given, 1, base=base("linear"), dora=one)[1].error for one in ("paper", "comfy")
    }
    assert len(errors) == 2


def test_what_has_a_change_of_its_own_is_treated_as_without_a_base():
    found = tensors("linear", "loha") | tensors("linear", "lora", "diffusion_model.blocks.1.q")
    found |= tensors("linear", "full", "diffusion_model.blocks.2.q")
    given = decode(DictSource(found))
    for rule in (1, 8, "mean=1"):
        plain, report = resize(given, rule)
        with_base, other = resize(given, rule, base=base("linear"))
        for target, layer in plain.layers.items():
            theirs = with_base.layers[target].tensors()
            assert all(torch.equal(theirs[role], one) for role, one in layer.tensors().items())
        assert report.notes == other.notes
    assert isinstance(resize(given, 8, base=base("linear"))[0].layers[MODULE], LohaLayer)


def test_a_replaced_vector_becomes_a_full_difference():
    found = {"diffusion_model.norm.set_weight": numbers(8, seed=1)} | tensors("linear", "oft")
    source = {
        "diffusion_model.norm.weight": numbers(8, seed=2),
        f"{MODULE}.weight": weight("linear"),
    }
    after, report = resize(decode(DictSource(found)), 2, base=DictSource(source))
    layer = after.layers["diffusion_model.norm"]
    assert isinstance(layer, FullLayer)
    assert torch.equal(layer.diff, numbers(8, seed=1) - numbers(8, seed=2))
    assert after.keys["diffusion_model.norm"] == {
        "diff": "diffusion_model.norm.diff", "alpha": "diffusion_model.norm.alpha"
    }  # fmt: skip
    assert report.layers[0].error == 0


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ({"model.diffusion_model.blocks.1.q.weight": weight("linear")}, TargetMismatchError,
         f"1 of 1 layer of the adapter are not in base: `{MODULE}`, nearest: `diffusion_model.blocks.1.q`"),
        ({f"model.{MODULE}.weight": numbers(9, 6)}, WeightShapeError, "for another model"),
        ({f"model.{MODULE}.weight": numbers(8, 7)}, None, ""),
        (tensors("linear", "lora"), MismatchError, "is an adapter"),
    ],
)  # fmt: skip
def test_a_wrong_base_is_told(source, error, words):
    given = DictSource(source, name="base")
    if error is None:  # rotations of the outputs do not tell how many inputs there are
        resize(adapter("linear", "oft"), 2, base=given)
    else:
        with pytest.raises(error, match=words):
            resize(adapter("linear", "oft"), 2, base=given)


# --- Files and the command ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    save_file(tensors("linear", "oft") | tensors("linear", "lora, DoRA", "diffusion_model.blocks.1.q"), tmp_path / "a.safetensors", {"ss_network_module": "lycoris.kohya"})  # fmt: skip
    keys = (f"model.{MODULE}.weight", "model.diffusion_model.blocks.1.q.weight")
    save_file({key: weight("linear").clone() for key in keys}, tmp_path / "base.safetensors")
    return tmp_path


def test_the_file_holds_lora_and_says_of_which_base(files):
    output = files / "b.safetensors"
    run = lorakit_here("resize", files / "a.safetensors", "-o", output, "--rank", "2", "--base", files / "base.safetensors", "--dtype", "fp16")  # fmt: skip
    assert (run.status, run.err) == (0, "")
    assert "1 layer became LoRA, from OFT" in run.out
    with safe_open(output, "pt") as file:
        found = file.metadata()
    assert (found["lorakit.base"], found["lorakit.dora"]) == ("base.safetensors", "paper")
    assert found["ss_network_module"].startswith("networks.lora")
    assert {key.rsplit(".", 1)[-1] for key in load_file(output)} == {
        "weight",
        "alpha",
        "dora_scale",
    }
    squares = []
    with open_source(output) as source:
        for (module, layer), name in zip(
            decode(source).layers.items(), ("oft", "lora, DoRA"), strict=True
        ):
            wanted = change(kinds("linear")[name], weight("linear"))
            found = layer.change(weight("linear"), dtype=torch.float64).numpy()
            squares.append((np.linalg.norm(found - wanted) ** 2, np.linalg.norm(wanted) ** 2))
            assert module == MODULE or name != "oft"
    lost, whole = map(math.fsum, zip(*squares, strict=True))
    with safe_open(output, "pt") as file:
        told = float(file.metadata()["lorakit.error"])
    assert told == pytest.approx(math.sqrt(lost / whole), rel=1e-4)


def test_a_folder_is_resized_with_one_base(files):
    folder = files / "in"
    folder.mkdir()
    (files / "a.safetensors").rename(folder / "a.safetensors")
    save_file(tensors("linear", "loha"), folder / "c.safetensors")
    words = ("resize", folder, "-o", files / "out", "--rank", "2")
    assert lorakit_here(*words).status == 1
    run = lorakit_here(*words, "--base", files / "base.safetensors", "--force")
    assert (run.status, run.err) == (0, "")
    assert sorted(contents(files / "out")) == ["a.safetensors", "c.safetensors"]


def test_changes_can_be_compared_with_the_weights_they_are_made_from(files):
    with (
        open_source(files / "a.safetensors") as source,
        open_source(files / "base.safetensors") as one,
    ):
        report = resize_file(
            source, files / "b.safetensors", "mean=2", relative_to=one, base=one, norm="frobenius"
        )
    assert sum(layer.rank for layer in report.layers) == 4
