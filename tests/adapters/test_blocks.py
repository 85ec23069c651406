from __future__ import annotations

import json
import re

import numpy as np
import pytest
from commands import KEYS, ROOT
from keys import checkpoints
from keys.adapters import (
    ATTENTION,
    FLUX,
    SD1,
    SDXL,
    UNET,
    WAN,
    label,
    numbers,
    spelled,
    targets,
)
from safetensors import safe_open

from lorakit.lora_ops.adapters.strengths.blocks import ALL_BLOCKS, PRESETS, SCHEMES, flat, locate
from lorakit.lora_ops.adapters.strengths.rules import parse_rules, strengths
from lorakit.lora_ops.errors import ArgumentError

REAL = ROOT.parent / "shared/data/real_loras"
SD1_BLOCKS = json.loads((KEYS / "sd15_blocks.json").read_text())


# --- lists


@pytest.mark.parametrize("kohya", [False, True], ids=["dotted", "kohya"])
@pytest.mark.parametrize("diffusers", [False, True], ids=["native", "diffusers"])
@pytest.mark.parametrize(
    ("model", "last", "count"), [(SD1, "OUT11", 26), (SDXL, "OUT08", 20), (SDXL, "OUT08", 26)]
)
def test_a_module_has_its_blocks_number_in_every_spelling(model, last, count, diffusers, kohya):
    text, values = numbers(count)
    found = strengths([spelled(one, diffusers, kohya) for one in model], strength=2, blocks=text)
    assert list(found.values()) == [2 * values[label(one, last)] for one in model]


def test_blocks_of_sd1_are_those_of_the_known_table():
    """The table of names that others made, not ours."""
    text, values = numbers(26)
    names = {
        f"lora_unet_{to.replace('.', '_')}": values[label(of, "OUT11")]
        for of, to in SD1_BLOCKS.items()
    }
    assert strengths(names, blocks=text) == names


@pytest.mark.parametrize("prefix", ["lycoris_", "base_model.model.", "", "lora_transformer_"])
def test_other_prefixes(prefix):
    text, values = numbers(26)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    name = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
    assert strengths([name], blocks=text) == {name: values["IN04"]}


@pytest.mark.parametrize("file", ["analog_svd_rank4_kohya", "lora_disney_kohya"])
def test_blocks_of_real_loras(file):
    path = REAL / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in shared/data/real_loras beside the checkout")
    with safe_open(path, "pt") as opened:
        names = {key.partition(".")[0] for key in opened.keys()}  # noqa: SIM118
    text, values = numbers(17)
    expected = dict.fromkeys(names, values["M00"])
    for name in names - {one for one in names if "_mid_" in one}:
        side, level, place = re.findall(r"^lora_unet_(down|up)_blocks_(\d)_attentions_(\d)", name)[
            0
        ]
        index = 3 * int(level) + int(place)
        expected[name] = values[f"IN{index + 1:02}" if side == "down" else f"OUT{index:02}"]
    assert strengths(names, blocks=text) == expected
    assert len(names) == 9 * 16
    assert len(set(expected.values())) == 16


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (12, targets(checkpoints.sdxl(), ATTENTION)),
        (17, targets(checkpoints.sd1(), ATTENTION)),
        (20, SDXL),
        (25, SD1),
        (26, SD1),
        (61, FLUX),
    ],
)
def test_every_number_of_every_list_reaches_a_layer(count, names):
    text, values = numbers(count)
    rules = parse_rules(names, blocks=text)
    assert {rule.pattern: rule.strength for rule in rules} == values
    assert all(rule.names for rule in rules)
    reached = set().union(*(rule.names for rule in rules))
    spared = {one for one in names if count == 25 and one.startswith("text_encoders.")}
    assert reached == {*names} - spared
    assert {strengths(names, blocks=text)[one] for one in spared} <= {1.0}


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_double_blocks_12_txt_mlp_0", "D12"),
        ("lora_unet_single_blocks_3_linear2", "S03"),
        ("transformer.transformer_blocks.12.attn.to_q", "D12"),
        ("transformer.single_transformer_blocks.30.proj_out", "S30"),
        ("base_model.model.transformer_blocks.1.ff.net.2", "D01"),
        ("transformer.x_embedder", "IN"),
        ("transformer.proj_out", "OUT"),
        ("lora_te1_text_model_encoder_layers_11_mlp_fc1", "CLIP"),
        ("lora_te3_encoder_block_23_layer_0_SelfAttention_k", "T5"),
        ("text_encoder_2.encoder.block.3.layer.1.DenseReluDense.wo", "T5"),
    ],
)
def test_blocks_of_flux_in_every_spelling(name, block):
    text, values = numbers(61)
    assert strengths([*FLUX, name], blocks=text)[name] == values[block]


def test_a_number_reaches_its_own_block_alone():
    """Twin: the block found by its beginning takes IN10 and IN11 for IN01."""
    names = [one for one in SD1 if "input_blocks" in one]
    given = {one: 0.0 if ".input_blocks.1." in one else 1.0 for one in names}
    faulty = {one: 0.0 if ".input_blocks.1" in one else 1.0 for one in names}
    assert strengths(names, blocks="IN01=0") == given != faulty


# --- presets

LBW = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}


@pytest.mark.parametrize("name", LBW)
def test_presets_of_lora_block_weight_are_its_seventeen_numbers(name):
    names = targets(checkpoints.sd1(), ATTENTION)
    assert strengths(names, blocks=name) == strengths(names, blocks=LBW[name])
    assert strengths(names, blocks=name.lower()) == strengths(names, blocks=name)


@pytest.mark.parametrize(
    ("name", "twelve"),
    [("INALL", "1,1,1,1,1,0,0,0,0,0,0,0"), ("OUTALL", "1,0,0,0,0,0,1,1,1,1,1,1")],
)
def test_presets_mean_on_sdxl_what_they_say(name, twelve):
    """As in the list of ComfyUI-Inspire-Pack. Twin: the 17 numbers by label lose OUT00 to OUT02."""
    names = targets(checkpoints.sdxl(), ATTENTION)
    by_label = dict(zip(SCHEMES[17].labels, map(float, LBW[name].split(",")), strict=True))
    lost = {one: by_label.get(label(one, "OUT08"), 0.0) for one in names}
    assert strengths(names, blocks=name) == strengths(names, blocks=twelve)
    assert (strengths(names, blocks=name) == lost) is (name == "INALL")


# Some of the published numbers of supermerger's table: place in the list, strength.
MBW = {
    "GRAD_V": {1: 1, 4: 0.75, 13: 0, 24: 0.9166666667},
    "WRAP14": {7: 1, 8: 0, 18: 0, 19: 1},
    "MID12_50": {5: 0, 6: 0.5, 19: 0.5, 20: 0},
    "RING08_SOFT": {5: 0, 6: 0.5, 7: 1, 10: 0.5, 15: 0, 16: 0.5, 20: 0.5, 21: 0},
    "OUT12_5": {12: 0, 13: 0.5, 14: 1},
    "SMOOTHSTEP": {2: 0.00506365740740741, 11: 0.376157407407407, 25: 1},
    "R_SMOOTHSTEP*3": {10: 0.05078125, 16: 0.94921875, 24: 0.0151909722222232},
    "SMOOTHSTEP/3": {4: 0.31640625, 9: 1, 17: 0},
    "COSINE": {2: 0.995722430686905, 5: 0.933012701892219, 25: 0},
    "TRUE_CUBIC_HERMITE": {
        1: 0,
        2: 0.199031876929012,
        13: 0.520833333333333,
        24: 0.842634789737655,
    },
    "FAKE_REVERSE_CUBIC_HERMITE": {2: 0.842423804012346, 12: 0.476152584876543, 25: 0},
    "FLAT_75": {1: 0.75, 25: 0.75},
}


@pytest.mark.parametrize("name", MBW)
def test_presets_of_merge_block_weighted(name):
    found = strengths(SD1, blocks=name)
    by_block = {label(one, "OUT11"): found[one] for one in SD1}
    assert by_block["BASE"] == 0
    for place, strength in MBW[name].items():
        assert by_block[ALL_BLOCKS.labels[place]] == pytest.approx(strength, abs=1e-9)


def test_all_presets_are_there():
    assert len(PRESETS) == len(LBW) + 38
    assert {len(values) for values in PRESETS.values()} == {26}
    assert all(0 <= value <= 1 for values in PRESETS.values() for value in values)


@pytest.mark.parametrize("names", [SD1, SDXL, FLUX, WAN, ["lora_te1_text_model_x", "other"]])
@pytest.mark.parametrize(("preset", "strength"), [("NONE", 0), ("ALL", 1), ("ALL0.5", 0.5)])
def test_even_presets_fit_any_file(names, preset, strength):
    assert strengths(names, blocks=preset) == dict.fromkeys(names, strength)


# --- labels and gradients


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IN04=0.5", {"IN04": 0.5}),
        ("in4=0.5, m=0", {"IN04": 0.5, "M00": 0}),
        ("OUT=0,OUT02=-1", {"OUT01": 0, "OUT02": -1, "OUT08": 0}),
        ("OUT02=-1,OUT=0", {"OUT02": 0}),
        ("IN08-OUT01=3", {"IN08": 3, "M00": 3, "OUT00": 3, "OUT01": 3}),
        ("OUT01-IN08=3", {"IN08": 3, "M00": 3, "OUT00": 3, "OUT01": 3}),
        ("BASE-IN00=0", {"BASE": 0, "IN00": 0}),
        ("ALL=0,BASE=1", {"IN04": 0, "M00": 0, "BASE": 1}),
    ],
)
def test_labels(text, expected):
    found = strengths(SDXL, blocks=text)
    by_block = {label(one, "OUT08"): found[one] for one in SDXL}
    changed = {block: value for block, value in by_block.items() if value != 1 or block in expected}
    assert {block: changed[block] for block in expected} == expected
    if "OUT=" not in text and "ALL=" not in text:
        assert changed == expected


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (WAN, r"blocks\.(\d+)"),
        ([f"lora_unet_blocks_{i}_cross_attn_k" for i in range(30)], r"blocks_(\d+)"),
        ([f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(60)], r"blocks\.(\d+)"),
        ([f"{UNET}layers.{i}.attention.qkv" for i in range(30)], r"layers\.(\d+)"),
        ([f"joint_blocks.{i}.x_block.attn.qkv" for i in range(24)], r"blocks\.(\d+)"),
        ([f"{UNET}blocks.block{i}.blocks.0.block.attn.to_q.0" for i in range(28)], r"block(\d+)"),
        ([f"some_new.thing_layers.{i}.q" for i in range(12)], r"layers\.(\d+)"),
    ],
)
@pytest.mark.parametrize("values", [[0, 1, 0.5], [0.25], [-1, 2], [0.0, 1.0, 1.0, 0.0, 3.0]])
def test_gradient_is_linear_over_depth_in_any_model(names, pattern, values):
    found = strengths(names, blocks="depth=" + ",".join(map(str, values)))
    depth = np.array([int(re.search(pattern, name)[1]) for name in names]) / (len(names) - 1)
    expected = np.interp(depth, np.linspace(0, 1, len(values)), values)
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (SD1, ALL_BLOCKS.labels[1:]),
        (SDXL, SCHEMES[20].labels[1:]),
        (targets(checkpoints.sdxl(), ATTENTION), SCHEMES[20].labels[1:]),
        (FLUX, SCHEMES[61].labels[3:-1]),
    ],
)
def test_gradient_runs_through_the_model_in_order_of_execution(names, order):
    """Over the whole model, also where an adapter has some of its blocks."""
    rules = {rule.pattern: rule.strength for rule in parse_rules(names, blocks="depth=0,1")}
    assert {*rules} <= {*order}
    assert list(rules) == sorted(rules, key=order.index)
    for block, strength in rules.items():
        assert strength == pytest.approx(order.index(block) / (len(order) - 1))
    outside = {*names} - set().union(*(one.names for one in parse_rules(names, blocks="depth=0")))
    assert all(value == 1 for value in strengths(outside).values())
    assert any("text_encoders" in name for name in outside)


def test_the_list_that_is_offered_does_what_it_says():
    """The numbers of the message give what the other program does: 0 where its list says nothing."""
    names = targets(checkpoints.sdxl(), ATTENTION)
    text, values = numbers(17)
    text, values = text.replace("-1.25", "-1.2512345"), values | {"IN04": -1.2512345}
    with pytest.raises(ArgumentError) as raised:
        strengths(names, blocks=text)
    offered = re.search(r"it is `(.*)`$", str(raised.value))[1]
    expected = {one: values.get(label(one, "OUT08"), 0) for one in names}
    assert strengths(names, blocks=offered) == expected
    assert 0 in expected.values()


def test_the_page_names_every_list_and_preset():
    page = (ROOT / "docs/blocks.md").read_text("utf-8")
    assert [name for name in PRESETS if f"`{name}`" not in page] == []
    for count, scheme in SCHEMES.items():
        assert f"| {count} | {scheme.title} |" in page


def test_layouts_of_partial_and_uncommon_adapters():
    deep = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    assert str(locate([deep])) == "IN04"
    assert locate([deep]).layout.title == "Stable Diffusion XL"
    shallow = deep.replace("transformer_blocks_1_", "transformer_blocks_0_")
    assert locate([shallow]).layout.title == "Stable Diffusion 1 and 2"
    refiner = [deep, f"{UNET}output_blocks.10.1.proj_in", f"{UNET}out.2"]
    assert str(locate(refiner)) == "IN04, OUT10-OUT11"
    assert locate(["down_blocks.0.1.x", "up_blocks.0.1.x", "middle.0.x"]) is None


def test_only_whole_names_of_blocks_are_translated():
    assert flat("unet.conv_in") == "input_blocks_0_0"
    assert flat("unet.conv_in2.x") == "conv_in2_x"
    assert flat("lora_unet_up_blocks_1_attentions_2_proj_in") == "output_blocks_5_1_proj_in"
