"""Add by methods that make factors: whole adapters, whatever their layers are."""

from __future__ import annotations

import pytest
import torch
from adapters import MODULES, Part, adapter, changes, module_name, tensors

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.errors import ArgumentError, UnsupportedLayerError
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.methods import FACTORED

FORMS = ("linear", "conv1x1", "conv3x3", "conv3d", "tucker")


def term(parts, strength=1.0):
    found = adapter(parts, "comfy")
    return Term(found, dict.fromkeys(found.layers, strength), "a")


def parts(seed, forms=FORMS, rank=3):
    return [Part(form=form, rank=rank, seed=seed + at) for at, form in enumerate(forms)]


def whole(own):
    """Changes by weight, float64, as matrices."""
    return {name: delta.flatten(1) for name, delta in changes(tensors(own, "comfy")).items()}


def made(result, form):
    return result.layers[module_name(MODULES[form], "comfy")].delta(torch.float64).flatten(1)


def trimmed(tile, density):
    kept = max(1, int(density * tile.numel()))
    bound = tile.abs().flatten().sort(descending=True).values[kept - 1]
    return tile * (tile.abs() >= bound)


def full_differences(seed):
    """An adapter of a matrix, a kernel and a bias, whole."""
    source = torch.Generator().manual_seed(seed)
    shapes = {"diff": (12, 10), "diff_b": (12,)}
    return {
        f"diffusion_model.x.{role}": torch.randn(shape, generator=source)
        for role, shape in shapes.items()
    }


@pytest.mark.parametrize("method", FACTORED)
def test_every_method_adds_every_kind_of_layer(method):
    terms = [term(parts(1)), term(parts(40), 0.5)]
    result, report = add(terms, method=method)
    assert set(result.layers) == {module_name(MODULES[form], "comfy") for form in FORMS}
    for layer in report.layers:
        assert layer.error < 1e-5
        assert -1 <= layer.cosine <= 1
        assert layer.coefficients == (1.0, 0.5)
    assert any("cosine with the plain sum" in note for note in report.notes)
    again, _ = add(terms, method=method)
    assert all(torch.equal(made(result, form), made(again, form)) for form in FORMS)


@pytest.mark.parametrize("method", FACTORED)
def test_a_layer_of_one_input_alone_is_carried(method):
    lone = parts(1, ("linear",))
    result, report = add([term(lone, 0.7), term(parts(9, ("conv1x1",)))], method=method)
    (wanted,) = whole(lone).values()
    assert torch.allclose(made(result, "linear"), 0.7 * wanted, atol=1e-6)
    assert all(layer.cosine is None for layer in report.layers)


@pytest.mark.parametrize("method", [name for name, one in FACTORED.items() if one.element])
def test_a_rank_cuts_the_method_s_result_not_the_sum(method):
    terms = [term(parts(1)), term(parts(40))]
    exact, _ = add(terms, method=method)
    cut, report = add(terms, 2, method=method)
    for form in FORMS:
        left, values, right = torch.linalg.svd(made(exact, form), full_matrices=False)
        wanted = left[:, :2] * values[:2] @ right[:2]
        assert float((made(cut, form) - wanted).norm() / wanted.norm()) < 1e-4
    assert all(layer.rank <= 2 for layer in report.layers)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_on_elements_it_is_the_definition_on_the_weight_s_own_elements(density):
    """At full rank nothing is lost: magnitude of each, then added."""
    one, other = parts(1), parts(40)
    options = {"scope": "element", "density": density}
    result, report = add(
        [term(one), term(other, -0.5)], 4096, method="magnitude", parameters=options
    )
    for name, delta in whole(one).items():
        layer = result.layers[name]
        wanted = trimmed(delta, density) - 0.5 * trimmed(whole(other)[name], density)
        found = layer.delta(torch.float64).flatten(1)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert report.notes[0].startswith("0% of what `magnitude` makes of the elements")


def test_what_has_no_room_in_the_rank_is_told_first():
    terms = [term(parts(1)), term(parts(40))]
    options = {"scope": "element", "density": 0.1}
    result, report = add(terms, 2, method="ties", parameters=options)
    energy = sum(layer.norm**2 for layer in report.layers)
    lost = (sum(layer.residual**2 for layer in report.layers) / energy) ** 0.5
    assert lost > 0.3
    assert report.notes[0].startswith(f"{lost:.0%} of what `ties` makes of the elements")
    assert "in a checkpoint all of it has room" in report.notes[0]
    for form, layer in zip(FORMS, report.layers, strict=True):
        both = sum(
            change
            for own in (parts(1), parts(40))
            for name, change in whole(own).items()
            if name == module_name(MODULES[form], "comfy")
        )
        found = made(result, form)
        cosine = float((found * both).sum() / (found.norm() * both.norm()))
        assert abs(cosine - layer.cosine) < 1e-4


def test_on_elements_a_rank_is_asked_for():
    with pytest.raises(ArgumentError, match="no LoRA holds"):
        add([term(parts(1)), term(parts(40))], method="ties", parameters={"scope": "element"})


@pytest.mark.parametrize("method", FACTORED)
def test_full_differences_stay_whole(method):
    """Biases have one axis: methods about directions add them, those on elements go on as on others."""
    found = [decode(DictSource(full_differences(seed))) for seed in (1, 2)]
    terms = [Term(one, dict.fromkeys(one.layers, 1.0), "a") for one in found]
    result, report = add(terms, method=method)
    matrix, bias = (result.layers[name].diff for name in sorted(result.layers, key=len))
    assert (matrix.shape, bias.shape) == ((12, 10), (12,))
    assert all(layer.error < 1e-6 for layer in report.layers)
    if FACTORED[method].element is None:
        vectors = [full_differences(seed)["diffusion_model.x.diff_b"] for seed in (1, 2)]
        assert torch.allclose(bias, vectors[0] + vectors[1])


def test_density_by_input_follows_those_that_hold_the_layer():
    """Of three numbers a layer of the last two takes the last two."""
    one, *others = parts(1, ("conv1x1",)), parts(40, ("linear",)), parts(80, ("linear",))
    terms = [term(one), *map(term, others)]
    options = {"density": (0.0, 1.0, 0.5)}
    result, _ = add(terms, method="magnitude", parameters=options)
    wanted, _ = add(terms[1:], method="magnitude", parameters={"density": (1.0, 0.5)})
    assert torch.equal(made(result, "linear"), made(wanted, "linear"))


def test_a_large_lokr_has_no_factors_to_work_with():
    source = torch.Generator().manual_seed(0)
    lokr = {
        f"lycoris_x.{role}": torch.randn(16, 16, generator=source)
        for role in ("lokr_w1", "lokr_w2")
    }
    pair = {
        "lycoris_x.lora_up.weight": torch.randn(256, 2, generator=source),
        "lycoris_x.lora_down.weight": torch.randn(2, 256, generator=source),
    }
    found = [decode(DictSource(one)) for one in (lokr, pair)]
    terms = [Term(one, dict.fromkeys(one.layers, 1.0), "a") for one in found]
    with pytest.raises(UnsupportedLayerError, match="make it a LoRA of a rank first"):
        add(terms, 8, method="tsv")
