"""Every kind of layer through the operations, against dense changes in float64."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from kinds import WEIGHTS, change, kinds, numbers, weight
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Adapter, DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.layers import (
    FullLayer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
    ReshapedLayer,
)
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import UnsupportedLayerError, WeightShapeError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.inspect.compare import compare
from lorakit.lora_ops.inspect.verify import verify
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.bake.plan import plan_bake
from lorakit.lora_ops.operations.convert.convert import convert
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.resize.resize import resize
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.operations.scale.scale import scale

MODULE = "diffusion_model.blocks.0.q"
KEY = "blocks.0.q.weight"
CASES = [(form, name) for form in WEIGHTS for name in kinds(form)]
OF_BASE = [
    (form, name)
    for form, name in CASES
    if "DoRA" in name or name.startswith(("glora", "oft", "boft", "ia3", "set"))
]
OWN = [case for case in CASES if case not in OF_BASE]
#: Those that an operation may have to turn into a LoRA.
PRODUCTS = [case for case in OWN if case[1].startswith(("loha", "lokr"))]
PROPORTIONAL = [
    case for case in OF_BASE if "DoRA" not in case[1] and case[1].startswith(("glora", "ia3"))
]


def tensors_of(form: str, name: str, module: str = MODULE) -> dict[str, torch.Tensor]:
    return {f"{module}.{suffix}": tensor for suffix, tensor in kinds(form)[name].items()}


def source(form: str, name: str) -> DictSource:
    return DictSource(tensors_of(form, name), name="lora")


def adapter(form: str, name: str) -> Adapter:
    return decode(source(form, name))


def meant(form: str, name: str) -> np.ndarray:
    return change(kinds(form)[name], weight(form))


def delta(found: Adapter) -> torch.Tensor:
    (layer,) = found.layers.values()
    return layer.delta(torch.float64)


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = 2e-6) -> bool:
    difference = found.double().numpy().reshape(wanted.shape) - wanted
    return np.linalg.norm(difference) <= tolerance * np.linalg.norm(wanted)


def best(wanted: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(wanted.reshape(len(wanted), -1), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(wanted.shape)


# --- Resize ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), PRODUCTS)
def test_a_lowered_rank_is_the_best_approximation_as_a_lora(form, name):
    smaller, report = resize(adapter(form, name), 1)
    (layer,) = smaller.layers.values()
    assert isinstance(layer, LoraLayer)
    assert (layer.rank, layer.alpha) == (1, 1.0 if "alpha" in kinds(form)[name] else None)
    wanted = meant(form, name)
    assert close(layer.delta(torch.float64), best(wanted, 1), 1e-5)
    lost = np.linalg.norm(wanted - best(wanted, 1)) / np.linalg.norm(wanted)
    assert report.error == pytest.approx(lost, abs=1e-5)
    kind = "LoHa" if name.startswith("loha") else "LoKr"
    assert report.layers[0].from_kind == kind
    assert f"1 layer became LoRA, from {kind}" in report.notes
    assert set(smaller.keys[MODULE]) <= {"up", "down", "alpha"}


@pytest.mark.parametrize(("form", "name"), PRODUCTS)
def test_a_rank_that_is_not_lowered_keeps_the_kind_and_its_tensors(form, name):
    before = adapter(form, name)
    (old,) = before.layers.values()
    same, report = resize(before, old.rank)
    (new,) = same.layers.values()
    assert type(new) is type(old)
    assert all(new.tensors()[role] is one for role, one in old.tensors().items() if role != "alpha")
    assert report.error == 0
    assert not any("became" in note for note in report.notes)
    half, report = resize(before, old.rank, dtype=torch.bfloat16)
    assert next(iter(half.layers.values())).dtype == torch.bfloat16
    assert 1e-5 < report.error < 0.02


def test_a_budget_counts_what_is_kept_and_what_becomes_lora():
    _, report = resize(adapter("linear", "loha"), "total_error=0.3")
    assert report.error <= 0.3
    assert report.layers[0].rank < 4


def test_a_layer_for_a_weight_that_grows_stays_one():
    tensors = tensors_of("linear", "lora") | {f"{MODULE}.reshape_weight": torch.tensor([8, 6])}
    for rank in (1, 2):
        (layer,) = resize(decode(DictSource(tensors)), rank)[0].layers.values()
        assert isinstance(layer, ReshapedLayer)
        assert layer.rank == rank
    (doubled,) = scale(decode(DictSource(tensors)), 2.0)[0].layers.values()
    assert isinstance(doubled, ReshapedLayer)
    both = [Term(decode(DictSource(tensors))), Term(adapter("linear", "loha"))]
    (joined,) = add(both)[0].layers.values()
    assert isinstance(joined, ReshapedLayer)
    wanted = meant("linear", "lora") + meant("linear", "loha")
    assert close(joined.delta(torch.float64), wanted)


# --- Scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), OWN + PROPORTIONAL)
def test_the_strength_is_in_the_file(form, name):
    scaled, report = scale(adapter(form, name), -0.3)
    (layer,) = scaled.layers.values()
    assert close(layer.change(weight(form)), -0.3 * meant(form, name))
    assert report.error < 1e-6
    (before,) = adapter(form, name).layers.values()
    assert type(layer) is type(before)


@pytest.mark.parametrize(
    ("form", "name"), [case for case in OF_BASE if case not in PROPORTIONAL and case[0] == "linear"]
)
def test_what_is_not_proportional_to_its_numbers_is_not_scaled(form, name):
    words = "has DoRA magnitudes" if "DoRA" in name else "is of kind"
    with pytest.raises(UnsupportedLayerError, match=f"layer `{MODULE}` {words}.*not proportional"):
        scale(adapter(form, name), 0.5)


# --- Add and compare ------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), PRODUCTS)
@pytest.mark.parametrize("other", ["lora", "loha", "full", "lokr whole, thin"])
def test_a_sum_is_that_of_the_dense_changes(form, name, other):
    terms = [Term(adapter(form, name), {MODULE: 0.5}), Term(adapter(form, other), {MODULE: -2.0})]
    result, report = add(terms)
    wanted = 0.5 * meant(form, name) - 2.0 * meant(form, other)
    assert close(delta(result), wanted, 1e-5)
    assert report.error < 1e-5
    assert not close(delta(result), wanted + 0.1 * meant(form, other), 1e-3)
    cut, report = add(terms, 2)
    assert close(delta(cut), best(wanted, 2), 1e-5)
    assert "became LoRA" in " ".join(report.notes)


@pytest.mark.parametrize(("form", "name"), PRODUCTS)
def test_a_layer_of_one_input_alone_stays_what_it_is(form, name):
    other = {key.replace("q", "k"): one for key, one in tensors_of(form, "lora").items()}
    terms = [Term(adapter(form, name), {MODULE: 0.5}), Term(decode(DictSource(other)))]
    result, report = add(terms)
    layer = result.layers[MODULE]
    assert isinstance(layer, LohaLayer | LokrLayer)
    assert close(layer.delta(torch.float64), 0.5 * meant(form, name))
    assert report.error < 1e-6
    (renamed, _) = add(terms, 1)[0].layers.values()
    assert isinstance(renamed, LoraLayer)


@pytest.mark.parametrize(("form", "name"), PRODUCTS)
def test_compared_as_the_dense_changes_are(form, name):
    found = compare(adapter(form, name), adapter(form, "lora"))
    one, other = meant(form, name).ravel(), meant(form, "lora").ravel()
    sizes = np.linalg.norm(one), np.linalg.norm(other)
    assert found.norms == pytest.approx(sizes, rel=1e-5)
    assert found.cosine == pytest.approx(one @ other / math.prod(sizes), abs=1e-5)
    assert compare(adapter(form, name), adapter(form, name)).distance < 1e-6


@pytest.mark.parametrize(("form", "name"), [case for case in OF_BASE if case[0] != "conv3d"])
def test_without_the_base_there_is_nothing_to_add_compare_or_resize(form, name):
    words = "has DoRA magnitudes" if "DoRA" in name else "is of kind"
    good, bad = adapter(form, "lora"), adapter(form, name)
    for do in (
        lambda: resize(bad, 1),
        lambda: resize(bad, "mean=1"),
        lambda: add([Term(good), Term(bad)]),
        lambda: compare(good, bad),
    ):
        with pytest.raises(UnsupportedLayerError, match=f"{words}.*bake it into its checkpoint"):
            do()


# --- Bake and verify ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("form", "name"), CASES)
def test_baked_is_the_weight_and_its_change(form, name, dtype):
    base = weight(form).to(dtype)
    kept = base.clone()
    baked, report = bake(DictSource({KEY: base}), [Ingredient(source(form, name))])
    tolerance = 2e-6 if dtype == torch.float32 else 3e-7
    assert close(baked[KEY] - base, meant(form, name), tolerance)
    assert report.layers[0].norm == pytest.approx(np.linalg.norm(meant(form, name)), rel=1e-5)
    assert torch.equal(base, kept)


@pytest.mark.parametrize(("form", "name"), [case for case in OF_BASE if case[0] == "conv3x3"])
@pytest.mark.parametrize("convention", ["paper", "comfy"])
def test_baked_at_a_strength_by_the_convention_that_is_asked_for(form, name, convention):
    base = weight(form).double()
    given = [Ingredient(source(form, name), 0.6)]
    baked, _ = bake(DictSource({KEY: base}), given, dora=convention)
    (layer,) = adapter(form, name).layers.values()
    wanted = layer.change(base, 0.6, torch.float64, convention).numpy()
    assert close(baked[KEY] - base, wanted, 1e-9)


def test_programs_differ_on_dora_by_rows():
    base, given = DictSource({KEY: weight("linear")}), [Ingredient(source("linear", "lora, DoRA"))]
    paper, comfy = (bake(base, given, dora=one)[0][KEY] for one in ("paper", "comfy"))
    assert (paper - comfy).norm() > 1e-2 * comfy.norm()


@pytest.mark.parametrize("name", [name for form, name in OF_BASE if form == "linear"])
def test_what_is_made_from_rows_of_a_fused_tensor(name):
    stem = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    fused = torch.cat([numbers(8, 6, seed=50), weight("linear"), numbers(8, 6, seed=51)])
    module = "lora_te_text_model_encoder_layers_0_self_attn_k_proj"
    given = Ingredient(DictSource(tensors_of("linear", name, module)))
    others = {"cond_stage_model.model.ln_final.weight": torch.ones(6)}
    baked, _ = bake(DictSource({stem: fused} | others), [given])
    assert close(baked[stem][8:16] - fused[8:16], meant("linear", name))
    assert torch.equal(baked[stem][:8], fused[:8])
    assert torch.equal(baked[stem][16:], fused[16:])


def test_several_layers_of_one_weight_are_made_from_the_same_weight():
    """Their changes are added; ComfyUI, which applies one after another, gets another weight."""
    base, names = weight("linear"), ("oft", "lora, DoRA", "loha")
    given = [Ingredient(source("linear", name)) for name in names]
    baked, report = bake(DictSource({KEY: base}), given)
    assert close(baked[KEY] - base, sum(meant("linear", name) for name in names))
    assert any("ComfyUI applies one after another" in note for note in report.notes)
    plain = [Ingredient(source("linear", name)) for name in ("lora", "loha")]
    assert not any("ComfyUI" in note for note in bake(DictSource({KEY: base}), plain)[1].notes)


@pytest.mark.parametrize(("form", "name"), OF_BASE)
def test_what_was_made_from_the_weight_is_not_taken_out(form, name):
    checkpoint = DictSource({KEY: weight(form)})
    with pytest.raises(UnsupportedLayerError, match="cannot be taken out again"):
        plan_bake(checkpoint, [Ingredient(source(form, name))], sign=-1)


@pytest.mark.parametrize(("form", "name"), OWN)
def test_a_change_of_its_own_is_taken_out(form, name):
    base, given = weight(form), [Ingredient(source(form, name))]
    baked, _ = bake(DictSource({KEY: base}), given)
    back, _ = bake(DictSource(baked), given, sign=-1)
    assert torch.allclose(back[KEY], base, atol=1e-6)


@pytest.mark.parametrize("name", [name for form, name in CASES if form == "linear"])
def test_a_weight_of_another_shape_is_refused_before_the_work(name):
    checkpoint = DictSource({KEY: numbers(10, 7)})
    with pytest.raises(WeightShapeError, match="for another model"):
        plan_bake(checkpoint, [Ingredient(source("linear", name))])


@pytest.mark.parametrize(("form", "name"), CASES)
def test_verified_against_the_true_change(form, name):
    base = weight(form)
    tuned = base + torch.from_numpy(meant(form, name)).float()
    sides = DictSource({KEY: base}), DictSource({KEY: tuned})
    assert verify(*sides, source(form, name)).error < 1e-5
    if not name.startswith("set"):  # which is the same at every strength
        assert verify(*sides, source(form, name), strength=0.5).error > 0.1


# --- Files ----------------------------------------------------------------------------------------

SIZES = {"lora": 2, "loha": 2, "lokr whole, thin": 2, "full": 6}


def mixed() -> dict[str, torch.Tensor]:
    found = {}
    for index, name in enumerate(SIZES):
        found |= tensors_of("linear", name, f"diffusion_model.blocks.{index}.q")
    return found


def written(path, *extra):
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "9",
        "ss_network_args": json.dumps({"algo": "loha", "dropout": "0.1"}),
    }
    save_file(dict(mixed(), **{k: v for one in extra for k, v in one.items()}), path, metadata)
    return path


def dense(path) -> list[torch.Tensor]:
    with open_source(path) as found:
        return [layer.delta(torch.float64) for layer in decode(found).layers.values()]


def test_a_file_of_mixed_kinds_is_resized(tmp_path):
    with open_source(written(tmp_path / "a.safetensors")) as found:
        report = resize_file(found, tmp_path / "b.safetensors", 1)
    assert {one.from_kind for one in report.layers} == {"", "LoHa", "LoKr"}
    for name, found in zip(SIZES, dense(tmp_path / "b.safetensors"), strict=True):
        wanted = meant("linear", name)
        assert close(found, wanted if name == "full" else best(wanted, 1), 1e-5)
    with open_source(tmp_path / "b.safetensors") as result:
        assert not any("hada" in key or "lokr" in key for key in result.keys())  # noqa: SIM118
        assert result.metadata["ss_network_module"] != "lycoris.kohya"
        assert json.loads(result.metadata["ss_network_args"]) == {"dropout": "0.1"}


def test_a_file_of_mixed_kinds_is_scaled(tmp_path):
    with open_source(written(tmp_path / "a.safetensors")) as found:
        scale_file(Ingredient(found, 0.5), tmp_path / "b.safetensors")
    before, after = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.endswith((".alpha", ".diff"))}
    for name, found in zip(SIZES, dense(tmp_path / "b.safetensors"), strict=True):
        assert close(found, 0.5 * meant("linear", name))
    with open_source(tmp_path / "b.safetensors") as result:
        assert result.metadata["ss_network_module"] == "lycoris.kohya"
        assert json.loads(result.metadata["ss_network_args"])["algo"] == "loha"


def test_the_record_has_the_inner_size_of_a_loha(tmp_path):
    path, result = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors_of("linear", "loha"), path, {"ss_network_dim": "2"})
    with open_source(path) as found:
        scale_file(Ingredient(found, 2.0), result)
    with open_source(result) as found:
        assert (found.metadata["ss_network_dim"], found.metadata["ss_network_alpha"]) == ("2", "3")


def test_files_of_mixed_kinds_are_added(tmp_path):
    other = tmp_path / "c.safetensors"
    save_file(tensors_of("linear", "loha", "diffusion_model.blocks.0.q"), other)
    with open_source(written(tmp_path / "a.safetensors")) as one, open_source(other) as two:
        add_files([Ingredient(one, 0.5), Ingredient(two)], tmp_path / "b.safetensors")
    first, *others = dense(tmp_path / "b.safetensors")
    assert close(first, 0.5 * meant("linear", "lora") + meant("linear", "loha"), 1e-5)
    for name, found in zip(list(SIZES)[1:], others, strict=True):
        assert close(found, 0.5 * meant("linear", name), 1e-5)
    with open_source(tmp_path / "b.safetensors") as result:
        kinds_held = [type(layer) for layer in decode(result).layers.values()]
    assert kinds_held == [LoraLayer, LohaLayer, LokrLayer, FullLayer]


@pytest.mark.parametrize("name", ["oft", "lora, DoRA"])
def test_one_layer_that_needs_the_base_stops_the_whole_file(tmp_path, name):
    path = written(tmp_path / "a.safetensors", tensors_of("linear", name, "diffusion_model.x.q"))
    with (
        open_source(path) as found,
        pytest.raises(UnsupportedLayerError, match=r"diffusion_model.x.q"),
    ):
        resize_file(found, tmp_path / "b.safetensors", 1)
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("form", WEIGHTS)
def test_every_kind_is_rounded_to_the_dtype_that_is_asked_for(form):
    """Tucker's cores too, and kinds that are made from the weight; DoRA's magnitudes are kept."""
    for name in kinds(form):
        before = adapter(form, name)
        format = "kohya" if name.startswith("ia3") else "comfy"
        after, report = convert(before, format, dtype=torch.float16)
        ((target, layer),) = after.layers.items()
        kept = before.layers[MODULE].tensors()
        for role, tensor in layer.tensors().items():
            if role not in ("alpha", "on_input", "dora_scale", "reshape_weight"):
                assert tensor.dtype == torch.float16, (name, role)
                assert tensor.shape == kept[role].shape
        assert 0 < report.error < 1e-2, (name, target)
