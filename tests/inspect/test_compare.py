"""Compare: cosines, distances and norms of changes, against dense float64."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from adapters import DTYPES, EVERY_FORM, FORMATS, Part, adapter, changes, module_name, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from keys.adapters import spelled

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.adapter import Adapter
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.layers import FullLayer
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.inspect.compare import compare
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.resize.resize import resize
from lorakit.lora_ops.operations.scale.scale import scale


def change_of(part):
    (found,) = changes(tensors([part])).values()
    return found


def flat(parts, names):
    """All changes in one row, zero where there is none; of every form or of some."""
    own = {part.name: change_of(part) for part in parts}
    sizes = {part.name: math.prod(part.weight) for part in EVERY_FORM}
    return torch.cat(
        [own[n].flatten() if n in own else torch.zeros(sizes[n]).double() for n in names]
    )


def dense(one, other):
    """Cosine, distance and norms from the definition."""
    names = sorted({part.name for part in (*one, *other)})
    a, b = flat(one, names), flat(other, names)
    na, nb = float(a.norm()), float(b.norm())
    return float(a @ b) / (na * nb), float((b - a).norm()) / na, (na, nb)


PART = st.builds(
    Part,
    form=st.sampled_from([part.form for part in EVERY_FORM]),
    rank=st.integers(1, 9),
    alpha=st.sampled_from([None, 0.7, 4.0, -3.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 3),
)
PARTS = st.lists(PART, min_size=1, max_size=5, unique_by=lambda part: part.form)


@settings(max_examples=60, deadline=None)
@given(PARTS, PARTS, st.sampled_from(FORMATS))
def test_it_is_what_dense_changes_give(one, other, format):
    found = compare(adapter(one, format), adapter(other, format))
    cosine, distance, norms = dense(one, other)
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.distance == pytest.approx(distance, rel=1e-5, abs=1e-6)
    assert found.norms == pytest.approx(norms, rel=1e-6)
    assert found.shared == len({p.form for p in one} & {p.form for p in other})
    assert len(found.layers) == len({p.form for p in (*one, *other)})
    for layer in found.layers:
        pair = [
            [p for p in parts if module_name(p.name, format) == layer.target]
            for parts in (one, other)
        ]
        assert layer.ranks == tuple(parts[0].rank if parts else 0 for parts in pair)
        if all(pair):
            cosine, distance, norms = dense(*pair)
            assert layer.cosine == pytest.approx(cosine, abs=1e-6)
            assert layer.distance == pytest.approx(distance, rel=1e-5, abs=1e-6)
            assert layer.norms == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_itself(dtype):
    """Exactly nothing apart, which squares alone would not say."""
    parts = [Part(p.form, p.rank, 0.7, dtype, p.seed) for p in EVERY_FORM]
    found = compare(adapter(parts), adapter(parts))
    assert (found.distance, [layer.distance for layer in found.layers]) == (0, [0] * len(parts))
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.shared == len(parts)


def test_a_small_difference_is_not_nothing():
    """Twin of the threshold under which a distance is called 0."""
    one = adapter()
    moved, _ = scale(one, 1 + 1e-6)
    assert compare(one, moved).distance == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("strength", [0.5, -1.0, 3.0])
def test_with_itself_scaled(strength):
    one = adapter()
    other, _ = scale(one, strength)
    found = compare(one, other)
    assert found.cosine == pytest.approx(math.copysign(1, strength), abs=1e-12)
    assert found.distance == pytest.approx(abs(strength - 1), rel=1e-6)
    assert found.norms[1] == pytest.approx(abs(strength) * found.norms[0], rel=1e-6)


def test_with_itself_resized_the_distance_is_the_error():
    one = adapter()
    smaller, report = resize(one, 3)
    found = compare(one, smaller)
    assert found.distance == pytest.approx(report.error, rel=1e-5)
    assert found.cosine == pytest.approx(math.sqrt(1 - report.error**2), rel=1e-6)
    assert report.error > 0.1


def test_with_a_sum_that_holds_it():
    one, other = [Part(rank=3)], [Part(rank=3, seed=1)]
    both, _ = add([Term(adapter(one)), Term(adapter(other))])
    distance = float(change_of(other[0]).norm() / change_of(one[0]).norm())
    assert compare(adapter(one), both).distance == pytest.approx(distance, rel=1e-6)


def test_without_a_common_layer():
    one, other = [Part("linear"), Part("conv1x1")], [Part("conv3x3", seed=2)]
    found = compare(adapter(one), adapter(other))
    assert (found.cosine, found.shared, len(found.layers)) == (0.0, 0, 3)
    _, distance, norms = dense(one, other)
    assert found.distance == pytest.approx(distance, rel=1e-6)
    assert found.norms == pytest.approx(norms)
    assert [layer.distance for layer in found.layers] == [1.0, 1.0, math.inf]
    assert [layer.ranks for layer in found.layers] == [(6, 0), (6, 0), (0, 6)]


def test_zero_layers():
    zero, other = adapter([Part(size=0.0)]), adapter([Part()])
    assert compare(zero, zero).distance == 0
    assert compare(zero, other).distance == math.inf
    found = compare(other, zero)
    assert (found.cosine, found.distance, found.norms[1]) == (0.0, 1.0, 0.0)


def test_full_differences_beside_factors():
    part = Part(rank=3)
    diff = torch.randn(part.weight)
    target = module_name(part.name, "comfy")
    whole = Adapter({target: FullLayer(diff)}, {}, {}, "comfy")
    found = compare(adapter([part], "comfy"), whole)
    exact = change_of(part)
    cosine = float((exact * diff.double()).sum() / exact.norm() / diff.double().norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.distance == pytest.approx(
        oracles.error_of(exact, diff) / float(exact.norm()), rel=1e-6
    )


def test_across_names_dtypes_and_layouts():
    """kohya's diffusers names against ComfyUI's own; 1x1 kernels against matrices."""
    name = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    one = Part(rank=4, shape=(16, 768))
    point = Part("conv1x1", 3)
    native = {**tensors([point], "comfy")} | {
        f"{name}{suffix}": tensor
        for suffix, tensor in (
            (".lora_B.weight", one.factors()["up"]),
            (".lora_A.weight", one.factors()["down"]),
        )
    }
    flat_ = {
        f"{spelled(name, True, True)}.lora_up.weight": one.factors()["up"].half(),
        f"{spelled(name, True, True)}.lora_down.weight": one.factors()["down"].half(),
    }
    proj = spelled(module_name(point.name, "comfy"), True, True)
    factors = point.factors()
    flat_ |= {
        f"{proj}.lora_up.weight": factors["up"].flatten(1),
        f"{proj}.lora_down.weight": factors["down"].flatten(1),
    }
    found = compare(decode(DictSource(native)), decode(DictSource(flat_)))
    assert found.shared == len(found.layers) == 2
    assert 1e-5 < found.distance < 1e-3, "only the rounding to float16"
    assert {layer.target for layer in found.layers} == {
        name,
        module_name(point.name, "comfy"),
    }


def test_as_plain_data():
    found = compare(adapter(), adapter(EVERY_FORM[:2])).to_dict()
    assert list(found)[:4] == ["cosine", "distance", "norms", "shared"]
    assert len(found["layers"]) == len(EVERY_FORM)
    assert {"target", "kind", "ranks", "norms", "inner", "cosine", "distance"} <= set(
        found["layers"][0]
    )
