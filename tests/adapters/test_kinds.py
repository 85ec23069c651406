"""Every kind of layer against float64 loops, and there and back through the names of a file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import WEIGHTS, change, dora, kinds, numbers, rotated, weight

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters import formats
from lorakit.lora_ops.adapters.formats import COMFY, KOHYA, PEFT
from lorakit.lora_ops.adapters.layers import DoraLayer, Layer, ReshapedLayer, fits
from lorakit.lora_ops.errors import (
    FormatError,
    LayerShapeError,
    QuantisedError,
    UnsupportedLayerError,
    WeightShapeError,
)
from lorakit.lora_ops.inspect.info import describe

CASES = [(form, name) for form in WEIGHTS for name in kinds(form)]
#: The kinds whose change is the same for every weight.
OWN = [
    (form, name) for form, name in CASES if name.startswith(("lo", "full")) and "DoRA" not in name
]
#: Those whose strength multiplies the change.
PROPORTIONAL = [case for case in CASES if not case[1].startswith(("boft", "oft, rescaled", "set"))]


def read(tensors: Mapping[str, torch.Tensor], module: str = "m") -> Layer:
    """The layer that these suffixes make in a file."""
    named = {f"{module}.{suffix}": tensor for suffix, tensor in tensors.items()}
    found = formats.modules(named)
    assert list(found.modules) == [module]
    assert found.extras == ()
    return formats.read_kind(DictSource(named, name="a.safetensors"), module, found.modules[module])


def close(found: torch.Tensor, meant: np.ndarray, tolerance: float = 2e-6) -> bool:
    """Whether two changes are the same but for a share of the whole."""
    assert found.shape == meant.shape
    return np.linalg.norm(found.double().numpy() - meant) <= tolerance * np.linalg.norm(meant)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_the_change_is_what_the_definition_says(form, name):
    tensors, base = kinds(form)[name], weight(form)
    kept = base.clone(), {role: tensor.clone() for role, tensor in tensors.items()}
    layer = read(tensors)
    meant = change(tensors, base)
    assert close(layer.change(base), meant)
    assert close(layer.change(base, dtype=torch.float64), meant, 2e-7)
    assert layer.change(base).dtype == torch.float32
    assert torch.equal(base, kept[0])
    assert all(torch.equal(tensors[role], kept[1][role]) for role in tensors)


@pytest.mark.parametrize(("form", "name"), PROPORTIONAL)
def test_half_the_strength_is_half_the_change(form, name):
    layer, base = read(kinds(form)[name]), weight(form)
    assert close(layer.change(base, -0.5), -0.5 * change(kinds(form)[name], base))


@pytest.mark.parametrize(("form", "name"), CASES)
def test_strength_zero_changes_nothing(form, name):
    layer, base = read(kinds(form)[name]), weight(form)
    assert float(layer.change(base, 0.0).norm()) <= 1e-6 * float(base.norm())


@pytest.mark.parametrize("name", ["oft", "oft, bounded", "oft, rescaled", "boft", "boft, bounded"])
def test_rotations_are_blended_with_the_identity_stage_by_stage(name):
    tensors, base = kinds("linear")[name], weight("linear")
    held = {role: tensor.double().numpy() for role, tensor in tensors.items()}
    flat = base.double().numpy()[..., None]
    bound = float(tensors.get("alpha", 0.0)) * len(base)
    meant = (rotated(held, flat, bound, 0.7) - flat)[..., 0]
    assert close(read(tensors).change(base, 0.7), meant)


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("name", ["oft", "oft, bounded", "oft, rescaled", "boft", "boft, bounded"])
def test_rotations_as_comfyui_computes_them(name, strength):
    """Its strength works twice, its bound is alpha itself; test_kinds_comfy.py asks it."""
    tensors, base = kinds("linear")[name], weight("linear")
    held = {role: tensor.double().numpy() for role, tensor in tensors.items()}
    flat, gains = base.double().numpy()[..., None], held.pop("rescale", None)
    bound = float(tensors.get("alpha", 0.0))
    if name.startswith("boft"):
        turned = rotated(held, flat, bound, strength)
        turned = turned if gains is None else turned * gains.reshape(-1, 1, 1)
        meant = strength * (turned - flat)
    else:
        meant = strength**2 * (rotated(held, flat, bound) - flat)
    assert close(read(tensors).change(base, strength, convention="comfy"), meant[..., 0])


@pytest.mark.parametrize(("form", "name"), OWN)
def test_factors_are_the_change_exactly(form, name):
    layer, base = read(kinds(form)[name]), weight(form)
    up, down = layer.factors(-2.0)
    assert (up.dtype, down.dtype) == (torch.float32, torch.float32)
    assert up.shape[1] == down.shape[0] == layer.rank
    product = (up.double() @ down.double()).reshape(base.shape)
    assert close(product, -2 * change(kinds(form)[name], base), 1e-6)
    assert close(
        layer.delta(torch.float64).reshape(base.shape), change(kinds(form)[name], base), 2e-7
    )
    assert not layer.needs_base


@pytest.mark.parametrize(
    ("form", "name", "rank"),
    [
        ("linear", "loha", 4),
        ("conv3x3", "loha, Tucker", 4),
        ("linear", "loha of unequal ranks", 3),
        ("conv3x3", "loha of high rank", 8),
        ("linear", "loha of high rank", 6),
        ("conv3x3", "lokr thin, thin", 2),
        ("conv3x3", "lokr whole, thin", 4),
        ("conv3x3", "lokr thin, whole", 4),
        ("conv3x3", "lokr whole, whole", 8),
        ("linear", "lokr thin, whole", 3),
        ("conv3x3", "lokr thin, Tucker", 2),
        ("linear", "glora", 4),
        ("linear", "glora, old", 4),
        ("linear", "full", 6),
        ("linear", "oft", 8),
        ("linear", "lora, DoRA", 2),
    ],
)
def test_ranks(form, name, rank):
    assert read(kinds(form)[name]).rank == rank


SIDES = st.integers(1, 5)


@settings(deadline=None)
@given(a=SIDES, b=SIDES, c=SIDES, d=SIDES, rank=SIDES, thin=st.tuples(st.booleans(), st.booleans()))
def test_factors_of_a_kronecker_product_of_any_size(a, b, c, d, rank, thin):
    tensors = {"alpha": torch.tensor(2.0)}
    for name, out, into, in_factors in (("lokr_w1", a, b, thin[0]), ("lokr_w2", c, d, thin[1])):
        if in_factors:
            tensors[f"{name}_a"], tensors[f"{name}_b"] = numbers(out, rank), numbers(rank, into)
        else:
            tensors[name] = numbers(out, into)
    layer = read(tensors)
    up, down = layer.factors()
    assert up.shape == (a * c, layer.rank)
    assert layer.rank <= min(a * c, b * d)
    assert close(up @ down, change(tensors, torch.ones(a * c, b * d)), 1e-5)


def test_the_rank_of_a_product_is_no_less_than_that():
    """Twin of the bound: the sum of both ranks, a common guess, is too small for a LoHa."""
    layer = read(
        kinds("linear")["loha of unequal ranks"]
        | {"hada_w2_a": numbers(8, 2), "hada_w2_b": numbers(2, 6)}
    )
    assert int(torch.linalg.matrix_rank(layer.delta(torch.float64))) == 6
    assert layer.rank == 6


@pytest.mark.parametrize(("form", "name"), CASES)
def test_a_layer_that_was_read_has_the_tensors_that_were_read(form, name):
    tensors = kinds(form)[name]
    named = {f"lora_unet_m.{suffix}": tensor for suffix, tensor in tensors.items()}
    module = formats.modules(named).modules["lora_unet_m"]
    layer = formats.read_kind(DictSource(named), "lora_unet_m", module)
    again = {module.keys[role]: tensor for role, tensor in layer.tensors().items()}
    assert again.keys() == named.keys()
    for key, tensor in again.items():
        assert torch.equal(tensor, named[key])
        assert tensor.dtype == named[key].dtype


def held_by(format: formats.Format, name: str) -> bool:
    """Whether the format's loaders know the kind, by docs/kinds.md."""
    if format is PEFT:
        return name.startswith("lora") and "on the input" not in name
    if format is KOHYA:
        return not name.startswith(("full", "set"))
    return not name.startswith("ia3")


@pytest.mark.parametrize("format", [KOHYA, COMFY, PEFT], ids=lambda format: format.name)
@pytest.mark.parametrize(("form", "name"), CASES)
def test_written_and_read_again_it_means_the_same(form, name, format):
    tensors, base = kinds(form)[name], weight(form)
    layer = read(tensors)
    if not held_by(format, name):
        with pytest.raises(UnsupportedLayerError, match="has no place for"):
            formats.encode_layer(format, lambda _: "x", "m", layer)
        return
    written = formats.encode_layer(format, lambda _: "lora_unet_x", "m", layer)
    again = read({key.removeprefix("lora_unet_x."): one for key, one in written.items()})
    assert torch.equal(again.change(base), layer.change(base))


def test_an_alpha_is_written_where_tools_fail_without():
    layer = read(kinds("linear")["loha of high rank"])
    written = formats.encode_layer(KOHYA, lambda _: "x", "m", layer)
    assert written["x.alpha"].item() == 4
    assert "x.alpha" not in formats.encode_layer(COMFY, lambda _: "x", "m", layer)


# --- What needs the weight ------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), [case for case in CASES if case not in OWN])
def test_without_the_weight_there_is_no_change(form, name):
    layer = read(kinds(form)[name])
    assert layer.needs_base
    for ask in (layer.delta, layer.factors):
        with pytest.raises(UnsupportedLayerError, match="give the base checkpoint"):
            ask()


@pytest.mark.parametrize(("form", "name"), CASES)
def test_a_weight_of_another_shape_is_refused(form, name):
    layer = read(kinds(form)[name])
    out, into, *kernel = WEIGHTS[form]
    for wrong in ((out + 1, into + 1, *kernel), (out, into, *kernel, 5), (3,), (out * into,)):
        if "-1" in str(layer.shape) and wrong[:2] == (out, into):
            continue  # a rotation of the outputs is for any input
        with pytest.raises(WeightShapeError, match="for another model"):
            layer.change(torch.ones(wrong))


def test_a_butterfly_without_an_alpha_does_nothing_in_comfyui():
    tensors = {s: one for s, one in kinds("linear")["boft"].items() if s != "alpha"}
    base = weight("linear")
    assert not bool(read(tensors).change(base, convention="comfy").any())
    assert bool(read(tensors).change(base).any())


@pytest.mark.parametrize(
    ("layer", "base", "fitting"),
    [
        ((8, 6), (8, 6), True),
        ((8, 6), (8, 6, 1, 1), True),
        ((8, 6, 1, 1), (8, 6), True),
        ((8, 54), (8, 6, 3, 3), True),
        ((8, 6), (8, 6, 3, 3), False),
        ((8, 1), (8,), True),
        ((8, -1), (8, 6, 3, 3), True),
        ((8, -1), (6, 8), False),
        ((-1, 6), (8, 6, 3, 3), True),
        ((-1, 54), (8, 6, 3, 3), False),
        ((-1, 6), (6,), False),
        ((8,), (8,), True),
        ((), (), True),
    ],
)
def test_which_weights_a_layer_fits(layer, base, fitting):
    assert fits(layer, base) is fitting


@pytest.mark.parametrize("old", [False, True])
def test_the_layouts_of_glora_are_told_apart_over_a_square_weight(old):
    a, b = (6, 2), (2, 6)
    tall = ("a2", "b2") if old else ("a1", "b1")
    tensors = {
        f"{name}.weight": numbers(*(a if name in tall else b), seed=seed)
        for seed, name in enumerate(("a1", "a2", "b1", "b2"))
    }
    base = numbers(6, 6, seed=9)
    layer = read(tensors)
    assert (layer.is_old, layer.rank) == (old, 4)
    assert close(layer.change(base), change(tensors, base))


def test_a_1d_weight_takes_a_lora_of_a_column():
    layer = read({"lora_up.weight": numbers(8, 2), "lora_down.weight": numbers(2, 1)})
    assert torch.equal(layer.change(torch.ones(8)), layer.delta()[:, 0])


def test_a_replacement_is_there_or_not():
    layer, base = read(kinds("linear")["set"]), weight("linear")
    for strength in (0.3, 1.0, -2.0):
        torch.testing.assert_close(
            base + layer.change(base, strength), layer.tensors()["set_weight"]
        )


# --- DoRA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora, DoRA", "loha, DoRA", "lokr whole, thin, DoRA"])
def test_comfyui_measures_rows_of_the_weight_as_it_was(name):
    tensors, base = kinds("linear")[name], weight("linear")
    inner = change({role: one for role, one in tensors.items() if role != "dora_scale"}, base)
    flat = base.double().numpy()
    meant = (
        dora(flat, flat + inner, tensors["dora_scale"].double().numpy().ravel(), rows=True) - flat
    )
    layer = read(tensors)
    assert close(layer.change(base, convention="comfy"), meant)
    assert close(layer.change(base, 0.25, convention="comfy"), 0.25 * meant)
    assert not close(layer.change(base), meant, 1e-2)


def test_on_the_input_both_conventions_are_one():
    layer, base = read(kinds("conv3x3")["lora, DoRA on the input"]), weight("conv3x3")
    assert torch.equal(layer.change(base), layer.change(base, convention="comfy"))


def test_a_square_convolution_of_peft_is_not_taken_for_one_of_columns():
    """(1, 6, 1, 1) is one number an input channel in kohya's files, an output channel in PEFT's."""
    factors = {"lora_up.weight": numbers(6, 2, 1, 1), "lora_down.weight": numbers(2, 6, 3, 3)}
    magnitude = 1 + numbers(1, 6, 1, 1).abs()
    base = numbers(6, 6, 3, 3, seed=5)
    rows = read(factors | {"lora_magnitude_vector": magnitude})
    columns = read(factors | {"dora_scale": magnitude})
    assert (rows.axis, columns.axis) == (0, 1)
    assert not torch.allclose(rows.change(base), columns.change(base), atol=1e-2)
    meant = change(factors | {"dora_scale": magnitude.reshape(6, 1, 1, 1)}, base)
    assert close(rows.change(base), meant)
    named = {f"m.{suffix}": one for suffix, one in factors.items()}
    named |= {"m.lora_magnitude_vector": magnitude}
    module = formats.modules(named).modules["m"]
    assert close(formats.read_kind(DictSource(named), "m", module).change(base), meant)


def test_magnitudes_of_another_weight_are_refused():
    """A kernel stored flat does not tell the channels: the weight does."""
    layer = read(kinds("conv3x3")["loha"] | {"dora_scale": torch.ones(1, 9, 1, 1)})
    with pytest.raises(WeightShapeError, match="for another model"):
        layer.change(weight("conv3x3"))


def test_rows_of_zeros_stay_finite():
    tensors = kinds("linear")["lora, DoRA"] | {"lora_up.weight": torch.zeros(8, 2)}
    for convention in ("paper", "comfy"):
        result = read(tensors).change(torch.zeros(8, 6), convention=convention)
        assert torch.equal(result, torch.zeros(8, 6))


# --- What does not fit together -------------------------------------------------------------------


LOHA = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (LOHA | {"hada_w1_a": (8, 3)}, r"w1_a is \(8, 3\) and w1_b is \(2, 6\): their ranks, 3 and 2, differ"),
        (LOHA | {"hada_w2_b": (2, 5)}, r"w1 makes \(8, 6\) and w2 makes \(8, 5\)"),
        (LOHA | {"hada_t1": (2, 2, 3, 3)}, "there is t1 alone"),
        (LOHA | {"hada_w1_a": (8,)}, "a factor has two axes"),
        (LOHA | {"hada_w1_a": (8, 0), "hada_w1_b": (0, 6)}, "an axis is empty"),
        ({"hada_w1_a": (8, 2)}, "layer `m` has no w1_b factor, only `m.hada_w1_a`"),
        ({"hada_w1_a": (2, 8), "hada_w1_b": (2, 6), "hada_t1": (3, 2, 3, 3),
          "hada_w2_a": (2, 8), "hada_w2_b": (2, 6), "hada_t2": (2, 2, 3, 3)}, r"must begin \(2, 2\)"),
        ({"lokr_w1": (2, 2)}, "w2 is incomplete"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)}, "w2 is incomplete"),
        ({"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w2": (4, 3)}, "w1 is there whole"),
        ({"lokr_w1": (2, 2, 1), "lokr_w2": (4, 3)}, r"w1 is \(2, 2, 1\): it has two axes"),
        ({"lokr_w1": (4,), "lokr_w2": (4, 3)}, r"w1 is \(4,\): it has two axes or more"),
        ({"a1.weight": (6, 2), "a2.weight": (2, 6), "b1.weight": (8, 2), "b2.weight": (3, 6)}, "neither layout"),
        ({"a1.weight": (6,), "a2.weight": (2, 6), "b1.weight": (8, 2), "b2.weight": (3, 6)}, "two axes or more"),
        ({"oft_blocks": (2, 4, 3)}, "the last two alike"),
        ({"oft_blocks": (4, 4)}, "3 axes"),
        ({"oft_blocks": (2, 4, 4), "rescale": (7, 1)}, "make 8 channels"),
        ({"oft_blocks": (3, 2, 4, 4)}, "do not pair up 3 times"),
        ({"oft_blocks": (1, 2, 3, 3)}, "do not pair up"),
        ({"weight": (2, 8), "on_input": ()}, "one row of gains"),
        ({"weight": (8,), "on_input": (2,)}, "not one number"),
        ({"on_input": ()}, "has no weight factor"),
        (LOHA | {"dora_scale": (5, 1)}, r"dora_scale is \(5, 1\) over a layer of \(8, 6\)"),
        (LOHA | {"dora_scale": (0,)}, r"dora_scale is \(0,\)"),
        ({"diff": (8,), "dora_scale": (8,)}, r"over a layer of \(8,\)"),
        (LOHA | {"dora_scale": (8, 1), "lora_magnitude_vector": (8,)}, "magnitudes can be there once"),
        (LOHA | {"alpha": (2,)}, r"alpha `m.alpha` is \(2,\), not one number"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused(shapes, text):
    with pytest.raises(LayerShapeError, match=text) as caught:
        read({suffix: torch.ones(shape) for suffix, shape in shapes.items()})
    assert str(caught.value.path) == "a.safetensors"


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(sorted(kinds("conv3x3"))),
    beside=st.sets(st.sampled_from(["dora_scale", "reshape_weight", "alpha", "rescale"])),
    data=st.data(),
)
def test_any_shapes_end_in_a_layer_or_in_a_sentence(name, beside, data):
    suffixes = sorted({*kinds("conv3x3")[name], *beside})
    tensors = {f"m.{one}": torch.ones(data.draw(SHAPES, label=one)) for one in suffixes}
    base = torch.ones(data.draw(SHAPES, label="base"))
    module = formats.modules(tensors).modules["m"]
    with contextlib.suppress(FormatError, WeightShapeError):
        layer = formats.read_kind(DictSource(tensors), "m", module)
        assert all(one >= -1 for one in layer.shape)
        assert layer.rank >= 0
        shape = layer.shape if isinstance(layer, ReshapedLayer) else base.shape
        assert layer.change(base).shape == shape


@pytest.mark.parametrize(
    ("suffixes", "text"),
    [
        (["lokr_w1", "hada_w1_a"], "kind mixed"),
        (["diff", "set_weight"], "kind mixed"),
        (["oft_diag"], "kind OFT with `m.oft_diag`"),
        (["diff", "alpha"], "kind full difference with `m.alpha`"),
    ],
)
def test_what_belongs_to_no_kind_is_named(suffixes, text):
    with pytest.raises(UnsupportedLayerError, match=text):
        read(dict.fromkeys(suffixes, torch.ones(2, 2)))


def test_integers_are_not_read_as_numbers():
    with pytest.raises(QuantisedError, match=r"`m.hada_w2_a` is stored as torch.int8"):
        read(kinds("linear")["loha"] | {"hada_w2_a": torch.ones(8, 2, dtype=torch.int8)})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora", "LoRA adapter"),
        ("lora, DoRA of PEFT", "DoRA adapter"),
        ("loha", "LoHa adapter"),
        ("loha, DoRA", "LoHa adapter with DoRA"),
        ("oft", "OFT adapter"),
        ("boft", "BOFT adapter"),
        ("ia3", "IA3 adapter"),
        ("glora", "GLoRA adapter"),
        ("set", "adapter of replacements"),
        ("full", "adapter of full differences"),
    ],
)
def test_info_names_the_kind(name, kind):
    named = {f"lora_unet_m.{suffix}": one for suffix, one in kinds("linear")[name].items()}
    info = describe(DictSource(named))
    assert info.kind == kind
    assert list(info.targets.values()) == [1]
    beside = named | {"lora_unet_n.diff_b": torch.ones(2), "lora_unet_o.set_weight": torch.ones(2)}
    if not kind.startswith("adapter"):
        assert describe(DictSource(beside)).kind == kind


# --- Beside the kinds -----------------------------------------------------------------------------


def test_gains_are_found_by_the_flag_beside_them_and_nothing_else_is():
    keys = ["a.on_input", "a.weight", "b.weight", "c.lora_up.weight", "c.weight"]
    found = formats.modules(keys)
    assert found.modules["a"].keys == {"on_input": "a.on_input", "weight": "a.weight"}
    assert sorted(found.extras) == ["b.weight", "c.weight"]


def test_a_configuration_gives_a_scale_to_every_kind_that_has_one():
    for name, rank in (("loha of high rank", 4), ("glora", 2), ("lokr whole, thin", 2)):
        tensors = {s: one for s, one in kinds("linear")[name].items() if s != "alpha"}
        named = {f"m.{suffix}": one for suffix, one in tensors.items()}
        module = formats.modules(named).modules["m"]
        layer = formats.read_kind(DictSource(named), "m", module, scale=0.25)
        assert (layer.scale, layer.alpha) == (0.25, 0.25 * rank)
        named["m.alpha"] = torch.tensor(8.0)
        module = formats.modules(named).modules["m"]
        assert formats.read_kind(DictSource(named), "m", module, scale=0.25).alpha == 8


def test_two_whole_matrices_have_no_scale_whatever_alpha_says():
    layer = read(kinds("linear")["lokr whole, whole"] | {"alpha": torch.tensor(float("inf"))})
    assert (layer.scale, layer.factor_rank) == (1.0, None)
    assert bool(layer.delta().isfinite().all())


def test_a_weight_grows_before_it_is_changed():
    """As ComfyUI does for Flux control LoRAs, whose first layer takes more channels."""
    tensors = {
        "lora_up.weight": numbers(8, 2),
        "lora_down.weight": numbers(2, 10),
        "reshape_weight": torch.tensor([8, 10]),
    }
    layer, base = read(tensors), weight("linear")
    assert isinstance(layer, ReshapedLayer)
    assert layer.shape == (8, 10)
    result = layer.padded(base) + layer.change(base)
    meant = numbers(8, 2).double() @ numbers(2, 10).double()
    meant[:, :6] += base
    torch.testing.assert_close(result.double(), meant, rtol=1e-6, atol=1e-6)
    for wrong in ((9, 6), (8, 6, 1)):
        with pytest.raises(WeightShapeError, match="cannot grow"):
            layer.change(torch.ones(wrong))
    with pytest.raises(LayerShapeError, match="reshape_weight is"):
        read(tensors | {"reshape_weight": torch.tensor([8, 9])})
    assert set(formats.encode_layer(COMFY, lambda _: "x", "m", layer)) == {
        "x.lora_B.weight", "x.lora_A.weight", "x.reshape_weight"
    }  # fmt: skip
    with pytest.raises(UnsupportedLayerError, match="has no place"):
        formats.encode_layer(KOHYA, lambda _: "x", "m", layer)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_shapes_alone_are_enough_to_know_the_face(form, name):
    real = read(kinds(form)[name])

    def bare(layer):
        if isinstance(layer, DoraLayer):
            return dataclasses.replace(
                layer, inner=bare(layer.inner), magnitude=layer.magnitude.to("meta")
            )
        moved = {
            field.name: value.to("meta")
            for field in dataclasses.fields(layer)
            if isinstance(value := getattr(layer, field.name), torch.Tensor)
            and field.name != "on_input"
        }
        return dataclasses.replace(layer, **moved)

    layer = bare(real)
    for ask in ("title", "shape", "rank", "scale", "dtype", "needs_base"):
        assert getattr(layer, ask) == getattr(real, ask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_dtypes_are_computed_in_the_one_asked_for(dtype):
    for name, suffixes in kinds("linear").items():
        stored = {
            s: one.to(dtype) if one.is_floating_point() and one.numel() > 1 else one
            for s, one in suffixes.items()
        }
        wide = {s: one.float() if one.is_floating_point() else one for s, one in stored.items()}
        assert close(read(stored).change(weight("linear")), change(wide, weight("linear"))), name


@pytest.mark.parametrize(("form", "name"), CASES)
def test_the_order_in_which_numbers_lie_does_not_matter(form, name):
    """A node or a program may hand on views."""
    turned = {
        suffix: one.mT.contiguous().mT if one.ndim > 1 else one
        for suffix, one in kinds(form)[name].items()
    }
    layer, base = read(turned), weight(form)
    assert close(layer.change(base), change(turned, base))
    if not layer.needs_base:
        up, down = layer.factors()
        assert close((up @ down).reshape(base.shape), change(turned, base))
