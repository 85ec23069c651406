"""Conversions in memory: the same changes under other names, whatever is fused, split or swapped."""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import replace

import adapters
import pytest
import torch
from adapters import Part
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.layers import LoraLayer
from lorakit.lora_ops.adapters.matching.align import match_adapters
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.repacking.rows import Block, stacked
from lorakit.lora_ops.errors import (
    ArgumentError,
    NonFiniteError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)
from lorakit.lora_ops.models.architectures import (
    ARCHITECTURES,
    UNET,
    architecture_named,
    module_renames,
)
from lorakit.lora_ops.models.architectures.unet_blocks import is_in_layout
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.convert.convert import convert

KNOWN = {one.name: one for one in ARCHITECTURES if one.diffusers is not None}
FLUX = architecture_named("flux")
FORMATS = ("kohya", "comfy", "diffusers", "peft")
WIDTH = 32
QKV = f"{UNET}double_blocks.0.img_attn.qkv"
LINEAR1 = f"{UNET}single_blocks.7.linear1"
FINAL = f"{UNET}final_layer.adaLN_modulation.1"
SPLIT = tuple(f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv")


def lora(module, out, into=WIDTH, rank=4, alpha=2.0, seed=0, dtype=torch.float32):
    """The tensors of one LoRA layer; alpha None for a file without."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{module} {seed}".encode()))
    found = {
        f"{module}.lora_B.weight": torch.randn((out, rank), generator=generator).to(dtype),
        f"{module}.lora_A.weight": torch.randn((rank, into), generator=generator).to(dtype),
    }
    return found if alpha is None else found | {f"{module}.alpha": torch.tensor(alpha)}


def adapter_of(*parts, metadata=None):
    tensors = {key: tensor for part in parts for key, tensor in part.items()}
    return decode(DictSource(tensors, metadata or {}, name="lora.safetensors"))


def meant(adapter, heights):
    """The change of each native weight, float64, put together from whatever modules hold it.

    Args:
        adapter: In any format.
        heights: By native target, rows by module name, in order; '<' in front of swapped halves.
    """
    found = {}
    for target, parts in heights.items():
        rows = []
        for module, height in parts:
            layer = adapter.layers.get(module.removeprefix("<"))
            if layer is None:
                rows.append(torch.zeros(height, WIDTH, dtype=torch.float64))
                continue
            delta = layer.scale * layer.up.double() @ layer.down.double()
            assert len(delta) == height
            if module.startswith("<"):
                delta = torch.cat([delta[height // 2 :], delta[: height // 2]])
            rows.append(delta)
        found[target] = torch.cat(rows)
    return found


def heights_of(module, parts, swapped=False):
    return [("<" * swapped + name, height) for name, height in parts]


def fused():
    """A Flux adapter as ComfyUI has it: fused, unequal, swapped and plain."""
    return adapter_of(
        lora(QKV, 3 * WIDTH), lora(LINEAR1, 7 * WIDTH, alpha=3.0), lora(FINAL, 2 * WIDTH),
        lora(f"{UNET}double_blocks.0.img_mlp.0", 4 * WIDTH, alpha=None),
    )  # fmt: skip


IN_DIFFUSERS = {
    QKV: [(module, WIDTH) for module in SPLIT],
    LINEAR1: [
        *((f"transformer.single_transformer_blocks.7.attn.to_{part}", WIDTH) for part in "qkv"),
        ("transformer.single_transformer_blocks.7.proj_mlp", 4 * WIDTH),
    ],
    FINAL: [("<transformer.norm_out.linear", 2 * WIDTH)],
    f"{UNET}double_blocks.0.img_mlp.0": [
        ("transformer.transformer_blocks.0.ff.net.0.proj", 4 * WIDTH)
    ],
}
NATIVE = {target: [(target, sum(n for _, n in parts))] for target, parts in IN_DIFFUSERS.items()}


def assert_same(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for target, exact in expected.items():
        error = torch.linalg.vector_norm(found[target] - exact)
        assert error <= tolerance * torch.linalg.vector_norm(exact), target


# --- what a layer becomes


def test_fused_layers_are_cut_where_diffusers_cuts_them():
    before = fused()
    after, report = convert(before, "diffusers")
    modules = {name.removeprefix("<") for parts in IN_DIFFUSERS.values() for name, _ in parts}
    assert after.layers.keys() == modules
    assert_same(meant(after, IN_DIFFUSERS), meant(before, NATIVE), 1e-6)
    assert "2 fused layers became 7" in report.notes[0]
    assert report.notes[-1] == "4 layers in, 9 layers out"
    equal = {**IN_DIFFUSERS, LINEAR1: [(name, WIDTH) for name, _ in IN_DIFFUSERS[LINEAR1]]}
    with pytest.raises(AssertionError):  # the twin: four parts of one height
        meant(after, equal)


def test_cutting_copies_and_computes_nothing():
    """In a format that has alphas the parts keep the bits of the factors."""
    before = adapter_of(lora(QKV, 3 * WIDTH, dtype=torch.bfloat16, alpha=0.7))
    layer = before.layers[QKV]
    # A power of two goes into up without rounding; alpha 2 at rank 4 is one half.
    exact = adapter_of(lora(QKV, 3 * WIDTH, dtype=torch.bfloat16, alpha=2.0))
    split, report = convert(exact, "diffusers")
    assert report.error == 0
    for index, module in enumerate(SPLIT):
        rows = slice(index * WIDTH, (index + 1) * WIDTH)
        assert torch.equal(split.layers[module].up, exact.layers[QKV].up[rows] / 2)
        assert torch.equal(split.layers[module].down, exact.layers[QKV].down)
        assert split.layers[module].alpha is None
    rounded, report = convert(before, "diffusers")
    assert 0 < report.error < 2**-8
    up = torch.cat([rounded.layers[module].up for module in SPLIT]).double()
    lost = (up - layer.up.double() * 0.7 / 4) @ layer.down.double()
    whole = 0.7 / 4 * layer.up.double() @ layer.down.double()
    assert report.error == pytest.approx(float(lost.norm() / whole.norm()), rel=1e-6)


def test_parts_of_one_layer_are_joined_at_their_own_rank():
    """What was cut has one down: there and back gives the rank that it had, bit by bit."""
    before = fused()
    there, _ = convert(before, "diffusers")
    back, report = convert(there, "comfy", architecture=FLUX)
    assert report.error == 0
    for target, layer in before.layers.items():
        assert back.layers[target].rank == layer.rank
        assert torch.equal(back.layers[target].down, layer.down)
    assert_same(meant(back, NATIVE), meant(before, NATIVE), 1e-6)


def test_parts_with_factors_of_their_own_are_joined_block_by_block():
    """Different ranks, alphas and dtypes; the twin that keeps the alphas' sum is wrong."""
    parts = [
        lora(SPLIT[0], WIDTH, rank=2, alpha=1.0),
        lora(SPLIT[1], WIDTH, rank=4, alpha=6.0, dtype=torch.bfloat16),
        lora(SPLIT[2], WIDTH, rank=3, alpha=None, dtype=torch.float16),
    ]
    before = adapter_of(*parts)
    exact = meant(before, {QKV: IN_DIFFUSERS[QKV]})
    after, report = convert(before, "comfy", architecture=FLUX)
    layer = after.layers[QKV]
    assert layer.rank == 9
    assert layer.dtype == torch.float32
    assert layer.alpha == pytest.approx(1.5 * 9)  # the strongest scale, at the joined rank
    assert torch.equal(layer.up[WIDTH : 2 * WIDTH, 2:6], before.layers[SPLIT[1]].up.float())
    assert_same(meant(after, {QKV: NATIVE[QKV]}), exact, 1e-6)
    assert "3 layers became 1" in report.notes[0]
    twin = replace(after, layers={QKV: replace(layer, alpha=1.5)})
    with pytest.raises(AssertionError):
        assert_same(meant(twin, {QKV: NATIVE[QKV]}), exact, 1e-6)


def test_rows_without_a_layer_stay_as_they_are():
    before = adapter_of(lora(SPLIT[2], WIDTH))
    after, report = convert(before, "comfy", architecture=FLUX)
    exact = meant(before, {QKV: IN_DIFFUSERS[QKV]})
    assert not after.layers[QKV].delta()[: 2 * WIDTH].any()
    assert_same(meant(after, {QKV: NATIVE[QKV]}), exact, 1e-6)
    assert report.notes[1] == "1 fused layer had no change for some rows, which stay as they are"


def test_halves_of_the_last_modulation_change_places():
    before = fused()
    after, _ = convert(before, "diffusers")
    up, theirs = before.layers[FINAL].up, after.layers["transformer.norm_out.linear"].up
    assert torch.equal(theirs, torch.cat([up[WIDTH:], up[:WIDTH]]) / 2)
    kept, _ = convert(before, "kohya")
    assert torch.equal(kept.layers["lora_unet_final_layer_adaLN_modulation_1"].up, up)


@pytest.mark.parametrize(("rows", "swapped"), [(2, True), (6, False)])
def test_only_the_last_block_of_sd3_is_swapped(rows, swapped):
    """Its modulation of the text has shift and scale alone, in the other order."""
    target = f"{UNET}joint_blocks.23.context_block.adaLN_modulation.1"
    before = adapter_of(lora(target, rows * WIDTH, alpha=None))
    after, _ = convert(before, "diffusers")
    up = after.layers["transformer.transformer_blocks.23.norm1_context.linear"].up
    assert torch.equal(up, before.layers[target].up) is not swapped


def test_the_bias_of_a_modulation_does_not_say_what_it_is():
    """Two halves, which are swapped, or six parts, which are not: the weight would tell."""
    before = adapter_of(
        {"lycoris_transformer_blocks_0_norm1_context_linear.diff_b": torch.ones(64)}
    )
    with pytest.raises(UnsupportedLayerError, match="bias of a modulation"):
        convert(before, "comfy", architecture=architecture_named("sd3"))


def test_a_joined_layer_at_the_rank_of_a_rule():
    parts = [lora(module, WIDTH, rank=6, seed=seed) for seed, module in enumerate(SPLIT)]
    before = adapter_of(
        *parts, lora("transformer.single_transformer_blocks.0.proj_out", 64, 160, rank=9)
    )
    exact = meant(before, {QKV: IN_DIFFUSERS[QKV]})[QKV]
    after, report = convert(before, "comfy", rule="8")
    layer = after.layers[QKV]
    assert layer.rank == 8
    assert after.layers[f"{UNET}single_blocks.0.linear2"].rank == 9, (
        "renamed layers are not touched"
    )
    lost = float((layer.delta(torch.float64) - exact).norm())
    best = float(torch.linalg.svdvals(exact)[8:].norm())
    assert lost == pytest.approx(best, rel=1e-4)
    written = next(one for one in report.layers if one.target == QKV)
    assert written.residual == pytest.approx(lost, rel=1e-4)
    same, _ = convert(before, "comfy", rule="rank=18")
    assert same.layers[QKV].rank == 18
    assert_same({QKV: same.layers[QKV].delta(torch.float64)}, {QKV: exact}, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_dtype_is_measured(dtype):
    before = fused()
    after, report = convert(before, "comfy", dtype=dtype)
    assert {layer.dtype for layer in after.layers.values()} == {dtype}
    exact, found = (
        torch.cat([one.flatten() for one in meant(adapter, NATIVE).values()])
        for adapter in (before, after)
    )
    assert report.error == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-4)


def test_kohya_gets_alphas_and_others_keep_what_there_is():
    before = fused()
    bare = f"{UNET}double_blocks.0.img_mlp.0"
    assert before.layers[bare].alpha is None
    kohya, _ = convert(before, "kohya")
    assert kohya.layers["lora_unet_double_blocks_0_img_mlp_0"].alpha == 4
    comfy, _ = convert(before, "comfy")
    assert comfy.layers[bare].alpha is None
    assert comfy.layers[QKV].alpha == 2
    assert kohya.keys["lora_unet_double_blocks_0_img_attn_qkv"]["up"].endswith(".lora_up.weight")


# --- there and back, for every architecture and pair of formats


def whole_adapter(architecture):
    """A layer on every module that all formats have of an architecture, as small as can be."""
    table = module_renames(architecture)
    natives = dict.fromkeys(
        packing.native for found in table.native.values() for _, packing, _ in found
    )
    parts = []
    width = 48  # what 1:1:1, 1:1:1:4 and 3:1:1 divide
    for native in natives:
        number = "0" if "transformer_blocks" in native else "1"  # a UNet may have one only
        name = re.sub(r"\{\}", number, native)
        spread = table.foreign_parts(name)
        if not spread or table.find(spread[0][0]).native != name:
            continue  # the other place that an upsampler can have
        if architecture.layout and not is_in_layout(spread[0][0], architecture.layout):
            continue  # a level without attention
        if architecture.unadapted and re.search(architecture.unadapted, name):
            continue
        first = spread[0][1]
        unit = (first.stop - first.start) if len(spread) > 1 else 1
        rows = int(width / unit) if len(spread) > 1 else 2 * width
        parts.append(lora(UNET + name, rows, width, rank=2, alpha=1.0 + len(parts) % 3))
    return adapter_of(*parts)


def canonical(adapter):
    """Change of each weight in ComfyUI's names, float64."""
    return {target: layer.delta(torch.float64) for target, layer in adapter.layers.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_there_and_back_is_the_same_change(name):
    architecture = KNOWN[name]
    start = whole_adapter(architecture)
    exact = canonical(start)
    assert len(exact) > 10
    reached = {"comfy": start}
    for format in FORMATS:
        reached[format], _ = convert(start, format, architecture=architecture)
    for one, other in itertools.permutations(FORMATS, 2):
        there, _ = convert(reached[one], other, architecture=architecture)
        assert there.layers.keys() == reached[other].layers.keys(), (one, other)
        back, _ = convert(there, "comfy", architecture=architecture)
        assert_same(canonical(back), exact, 1e-6)
        assert {layer.rank for layer in back.layers.values()} == {2}


# A small file of a pruned model says too little.
@pytest.mark.parametrize("name", [name for name in KNOWN if not KNOWN[name].variant_of])
def test_the_model_is_told_by_the_names(name):
    """Where nobody says which model it is, the right rows are found all the same."""
    start = whole_adapter(KNOWN[name])
    there, _ = convert(start, "diffusers", architecture=KNOWN[name])
    told, _ = convert(start, "diffusers")
    assert told.layers.keys() == there.layers.keys()
    assert_same(canonical(told), canonical(there), 0)


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_models_of_the_same_names_are_told_by_their_shapes(name):
    width = {"lumina2": 48, "z_image": WIDTH}[name]
    rows = {"lumina2": 80, "z_image": 96}[name]
    before = adapter_of(lora(f"{UNET}layers.3.attention.qkv", rows, width))
    after, _ = convert(before, "diffusers")
    heights = [layer.up.shape[0] for layer in after.layers.values()]
    assert heights == {"lumina2": [48, 16, 16], "z_image": [32, 32, 32]}[name]


# --- kinds


def test_full_differences_are_cut_joined_and_swapped():
    diff = torch.arange(3.0 * WIDTH * WIDTH).reshape(3 * WIDTH, WIDTH)
    bias = torch.arange(3.0 * WIDTH)
    lycoris = adapter_of(
        {f"lycoris_transformer_blocks_0_attn_to_{part}.diff": diff[i * WIDTH : (i + 1) * WIDTH]
         for i, part in enumerate("qkv")},
        {f"lycoris_transformer_blocks_0_attn_to_{part}.diff_b": bias[i * WIDTH : (i + 1) * WIDTH]
         for i, part in enumerate("qkv")},
    )  # fmt: skip
    after, _ = convert(lycoris, "comfy", architecture=FLUX)
    assert set(after.layers) == {QKV, f"{QKV}.bias"}
    assert torch.equal(after.layers[QKV].diff, diff)
    assert torch.equal(after.layers[f"{QKV}.bias"].diff, bias)
    assert after.keys[f"{QKV}.bias"] == {"diff": f"{QKV}.diff_b"}
    with pytest.raises(UnsupportedLayerError, match=r"full differences.*use format `comfy`"):
        convert(after, "diffusers")


def dora(module, out, seed=0):
    return lora(module, out, seed=seed) | {
        f"{module}.dora_scale": torch.rand((out, 1), generator=torch.Generator().manual_seed(seed))
    }


def test_dora_of_all_rows_is_cut_and_joined():
    """Magnitudes along the output belong to rows: each row of the weight is a layer of its own."""
    before = adapter_of(dora(QKV, 3 * WIDTH))
    there, _ = convert(before, "diffusers")
    assert there.keys[SPLIT[1]]["magnitude"] == f"{SPLIT[1]}.lora_magnitude_vector"
    assert there.layers[SPLIT[1]].magnitude.shape == (WIDTH,)
    back, _ = convert(there, "comfy", architecture=FLUX)
    layer = back.layers[QKV]
    base = torch.randn(3 * WIDTH, WIDTH)
    whole, _ = convert(before, "comfy")
    expected = whole.layers[QKV].change(base, dtype=torch.float64)
    assert torch.allclose(layer.change(base, dtype=torch.float64), expected, atol=1e-6)
    assert back.keys[QKV]["dora_scale"] == f"{QKV}.dora_scale"


def test_dora_of_some_rows_or_of_the_input_is_refused():
    with pytest.raises(UnsupportedLayerError, match=r'DoRA.*`to="lora"`'):
        convert(
            adapter_of(dora(SPLIT[0], WIDTH), lora(SPLIT[1], WIDTH)), "comfy", architecture=FLUX
        )
    with pytest.raises(UnsupportedLayerError, match='`to="lora"`'):
        convert(adapter_of(dora(SPLIT[0], WIDTH)), "comfy", architecture=FLUX)
    by_input = lora(QKV, 3 * WIDTH) | {f"{QKV}.dora_scale": torch.rand(1, WIDTH)}
    with pytest.raises(UnsupportedLayerError, match=r'magnitude for each input.*`to="lora"`'):
        convert(adapter_of(by_input), "diffusers")
    kept, _ = convert(adapter_of(by_input), "kohya")
    assert len(kept.layers) == 1


def test_tuckers_form_has_no_place_in_diffusers():
    before = adapters.adapter([Part("tucker")])
    sd1 = architecture_named("sd1")
    with pytest.raises(UnsupportedLayerError, match=r'`.lora_mid.weight`.*`to="lora"`'):
        convert(before, "diffusers", architecture=sd1)
    after, _ = convert(before, "comfy", architecture=sd1)
    module = f"{UNET}input_blocks.2.0.in_layers.2"
    assert after.keys[module]["up"] == f"{module}.lora_up.weight"
    assert_same(
        canonical(after), {module: before.layers[next(iter(before.layers))].delta(torch.float64)}, 0
    )


# --- what cannot be done


def test_names_without_dots_need_a_model():
    before = adapter_of(lora("lora_unet_some_new_block_0_to_q", 8, 8))
    with pytest.raises(
        ArgumentError,
        match=r"1 layer of 1 cannot be found.*`lora_unet_some_new_block_0_to_q`.*`reference=`",
    ):
        convert(before, "comfy")
    same, _ = convert(before, "kohya")
    assert same.layers.keys() == before.layers.keys(), "its own format needs no model"
    target = f"{UNET}some_new.block.0.to_q"
    known, _ = convert(before, "comfy", reference=[target])
    assert list(known.layers) == [target]


def test_names_of_diffusers_without_a_table_are_not_taken_for_native_ones():
    """Flux, SD3 and Qwen-Image all have these: which rows they are, only the model tells."""
    for prefix in ("transformer.", "base_model.model.", ""):
        before = adapter_of(lora(f"{prefix}transformer_blocks.0.attn.to_q", WIDTH))
        with pytest.raises(ArgumentError, match="`architecture=`"):
            convert(before, "comfy")
        assert convert(before, "comfy", architecture=FLUX)[0].layers.keys() == {QKV}


def test_an_unknown_model_is_converted_where_no_table_is_needed():
    target = f"{UNET}new.blocks.0.to_q"
    before = adapter_of(lora(target, 8, 8))
    assert list(convert(before, "kohya")[0].layers) == ["lora_unet_new_blocks_0_to_q"]
    assert list(convert(before, "peft")[0].layers) == ["base_model.model.new.blocks.0.to_q"]
    with pytest.raises(UnsupportedLayerError, match=f"`{target}` of an unknown architecture"):
        convert(before, "diffusers")


def test_two_layers_of_the_same_rows_are_refused():
    with pytest.raises(TargetMismatchError, match="the same rows"):
        convert(adapter_of(lora(QKV, 3 * WIDTH), lora(SPLIT[0], WIDTH)), "comfy")


def test_a_layer_of_another_shape_is_refused():
    with pytest.raises(WeightShapeError, match=r"not packed as .* of Flux\.1 is.*`architecture=`"):
        convert(adapter_of(lora(QKV, 90)), "diffusers", architecture=FLUX)
    odd = adapter_of(lora(SPLIT[0], WIDTH), lora(SPLIT[1], 2 * WIDTH))
    with pytest.raises(WeightShapeError, match="not the rows of one"):
        convert(odd, "comfy", architecture=FLUX)


def test_a_text_encoder_has_no_name_in_peft():
    clip = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    with pytest.raises(UnsupportedLayerError, match=f"`peft` has no name for `{clip}`"):
        convert(adapter_of(lora(QKV, 96), lora(clip, 8, 8)), "peft", architecture=FLUX)
    there, _ = convert(adapter_of(lora(QKV, 96), lora(clip, 8, 8)), "diffusers")
    assert "text_encoder.text_model.encoder.layers.0.mlp.fc1" in there.layers


def test_numbers_that_are_none_are_found_where_they_are_computed_with():
    tensors = lora(QKV, 3 * WIDTH, alpha=3.0)
    tensors[f"{QKV}.lora_B.weight"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        convert(adapter_of(tensors), "diffusers")


# --- rows


@settings(deadline=None, max_examples=60)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    alphas=st.lists(st.sampled_from([None, 1.0, -2.0, 0.0, 0.3]), min_size=4, max_size=4),
    gap=st.integers(0, 3),
)
def test_stacked_rows_are_the_rows_of_each_block(ranks, alphas, gap):
    generator = torch.Generator().manual_seed(sum(ranks))
    blocks, exact, start = [], torch.zeros(40, 6, dtype=torch.float64), gap
    for index, rank in enumerate(ranks):
        up, down = (torch.randn(shape, generator=generator) for shape in ((5, rank), (rank, 6)))
        layer = LoraLayer(up, down, alphas[index])
        blocks.append(Block(f"part {index}", layer, start))
        scale = 1.0 if alphas[index] is None else alphas[index] / rank
        exact[start : start + 5] = scale * up.double() @ down.double()
        start += 5 + gap
    result = stacked(blocks, 40, "whole")
    assert result.rank == sum(ranks)
    assert torch.allclose(result.delta(torch.float64), exact, atol=1e-5)
    assert (result.alpha is None) == all(alpha is None for alpha in alphas[: len(ranks)])


# --- several adapters


def test_fused_and_split_adapters_can_be_added():
    one, other = fused(), convert(fused(), "diffusers")[0]
    for first, second in ((one, other), (other, one)):
        terms = match_adapters([Term(first), Term(second, name="other")]).terms
        total, report = add(terms)
        assert len(total.layers) == len(first.layers) == len(report.layers)
        back, _ = convert(total, "comfy", architecture=FLUX)
        expected = {target: 2 * delta for target, delta in meant(one, NATIVE).items()}
        assert_same(meant(back, NATIVE), expected, 1e-5)


def test_strengths_of_parts_are_in_the_layer_that_joins_them():
    split = convert(adapter_of(lora(QKV, 3 * WIDTH)), "diffusers")[0]
    whole = adapter_of(lora(QKV, 3 * WIDTH, seed=1))
    strengths = {SPLIT[0]: 0.5, SPLIT[1]: -1.0, SPLIT[2]: 0.0}
    terms = match_adapters([Term(whole, {QKV: 3.0}), Term(split, strengths)]).terms
    assert terms[0].strength(QKV) == 3
    assert terms[1].strength(QKV) == 1
    parts = [strengths[module] * split.layers[module].delta(torch.float64) for module in SPLIT]
    assert torch.allclose(terms[1].layer(QKV).delta(torch.float64), torch.cat(parts), atol=1e-6)
    alike = match_adapters([Term(whole), Term(split, dict.fromkeys(SPLIT, 0.5))]).terms
    assert alike[1].strength(QKV) == 0.5


@pytest.mark.parametrize("name", ["wan", "flux", "lumina2", "sd3", "sdxl"])
def test_native_and_diffusers_adapters_are_one_model(name):
    """Also where modules only have another name: without the table each weight would be there twice."""
    native = whole_adapter(KNOWN[name])
    theirs, _ = convert(native, "diffusers", architecture=KNOWN[name])
    total, _ = add(match_adapters([Term(native), Term(theirs, name="other")]).terms)
    assert total.layers.keys() == native.layers.keys()
    assert_same(canonical(total), {name: 2 * one for name, one in canonical(native).items()}, 1e-5)


def test_adapters_that_agree_are_left_alone():
    terms = [Term(fused()), Term(convert(fused(), "kohya")[0])]
    assert match_adapters(terms).terms == terms
