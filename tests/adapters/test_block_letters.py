"""Letters for numbers, several numbers for the layers of a block, and the Inspire Pack's forms."""

from __future__ import annotations

import random

import pytest
from commands import ROOT
from keys import checkpoints
from keys.adapters import FLUX, SD1, SDXL, WAN, label, numbers, targets

from lorakit.lora_ops.adapters.strengths.blocks import BANDS, LABELLED, locate, ordered
from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import ArgumentError

ATTENTIVE = [one for one in targets(checkpoints.sd1()) if "attn" in one]


def by_block(names, blocks):
    """The strength of each block, which all its layers have; `rest` for those of none."""
    found = strengths(names, blocks=blocks)
    held = locate(names).modules
    values = {block.label: {found[one] for one in modules} for block, modules in held.items()}
    rest = set(names).difference(*held.values())
    if rest:
        values["rest"] = {found[one] for one in rest}
    assert all(len(one) == 1 for one in values.values())
    return {name: one.pop() for name, one in values.items()}


# Letters


def test_a_name_in_front_says_nothing():
    text, _ = numbers(26)
    assert strengths(SD1, blocks=f"ROUT: {text}") == strengths(SD1, blocks=text)
    assert strengths(SD1, blocks="mine:OUTALL") == strengths(SD1, blocks="OUTALL")


def test_letters_are_what_they_are_given():
    text = ",".join(["A", "B", "a", "b", "X", "X+0.25", "X-.5", *["1"] * 19])
    found = by_block(SD1, f"LINE:{text}; A=0.4, B=-2,X=0.7")
    labels = ["BASE", *(f"IN{at:02}" for at in range(6))]
    assert [found[one] for one in labels] == pytest.approx([0.4, -2, 0.2, -1, 0.7, 0.95, 0.2])
    assert by_block(SD1, text + "; A=1,B=1")["IN03"] == 1, "X alone is 1, as in LBW"


def test_draws_are_in_their_range_repeatable_and_each_of_its_own():
    text = ",".join(["1", *["R"] * 12, "1", *["U"] * 12])
    found = by_block(SD1, f"{text}; seed=3")
    drawn = random.Random(3)
    for at in range(12):
        assert found[f"IN{at:02}"] == round(drawn.random(), 3)
    for at in range(12):
        assert found[f"OUT{at:02}"] == round(3 * drawn.random() - 1.5, 3)
    assert len({*found.values()}) > 20
    assert min(found.values()) < 0, "U goes below"
    assert by_block(SD1, f"{text};seed=3") == found
    assert by_block(SD1, f"{text}; seed=4") != found


def test_a_letter_for_a_section_is_drawn_for_each_block():
    found = by_block(SD1, "OUT=R; seed=1")
    assert len({found[f"OUT{at:02}"] for at in range(12)}) > 10
    assert found["IN03"] == 1
    assert found == by_block(SD1, "ROUT; seed=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OUT=R", r"`R` in `OUT=R` is not a finite number; to draw one, write a seed"),
        ("OUT=A", r"`A` in `OUT=A` is not a finite number; .* `A,1,1; A=0.5`"),
        ("OUT=A; A=x", "`A=x` in `OUT=A; A=x` gives no letter a number"),
        ("OUT=R; seed=1.5", "`seed=1.5` in"),
        ("OUT=1; C=1", "`C=1` in"),
        ("OUT=Q; A=1", "`Q` in `OUT=Q` is not a finite number"),
        ("NAME:", "unknown preset ``"),
        ("depth=0,1 2", "`1 2` in `depth=0,1 2` is not a finite number"),
    ],
)
def test_what_is_no_strength_is_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        strengths(SD1, blocks=text)


# Several numbers for a block


def test_layers_of_a_block_have_numbers_of_their_own():
    inside = "diffusion_model.input_blocks.4.1.transformer_blocks.0."
    order = [f"{inside}attn1.to_{one}" for one in ("q", "k", "v", "out.0")]
    order += [f"{inside}attn2.to_{one}" for one in ("q", "k", "v", "out.0")]
    text = ",".join(["1", "1", "1", "0.1 0.2 0.3", *["1"] * 13])
    found = strengths(ATTENTIVE, blocks=text)
    expected = [0.1, 0.2, *[0.3] * 6]
    assert [found[one] for one in order] == expected
    assert {found[one] for one in set(ATTENTIVE) - set(order)} == {1}
    assert strengths(ATTENTIVE, blocks="IN04=0.1 0.2 0.3") == found
    kohya = {f"lora_unet_{one[16:].replace('.', '_')}": one for one in order}
    found = strengths([*kohya], blocks="IN04=0.1 0.2 0.3")
    assert [found[one] for one in kohya] == expected


def test_the_order_of_layers_is_not_the_alphabet_s():
    names = [
        f"input_blocks_4_1_transformer_blocks_{at}_attn1_to_{one}"
        for at in (2, 10)
        for one in "qkv"
    ]
    assert ordered(sorted(names)) == names
    assert sorted(names) != names


# What the Inspire Pack has


@pytest.mark.parametrize(
    ("count", "names", "labels"),
    [
        (21, SDXL, [f"IN{at:02}" for at in range(1, 9)]),
        (27, SD1, [f"IN{at:02}" for at in range(1, 12)]),
    ],
)
def test_lists_with_the_middle_in_three(count, names, labels):
    values = [round(0.01 * at, 2) for at in range(1, count + 1)]
    names = [one for one in names if ".input_blocks.0." not in one]
    found = strengths(names, blocks=",".join(map(str, values)))
    ends = [f"OUT{at:02}" for at in range(9 if count == 21 else 12)]
    last = ends[-1]
    expected = dict(zip(["BASE", *labels, "0", "1", "2", *ends], values, strict=True))
    for name, value in found.items():
        at = label(name, last)
        if at == "M00":
            at = name.split("middle_block.")[1][0]
        if at == "IN00":  # the embeddings of time and label
            assert value == 1
            continue
        assert value == expected[at], name
    assert len({*found.values()} - {1}) == count


def test_58_numbers_are_flux_and_the_first_is_all_else():
    values = [round(0.01 * at, 2) for at in range(58)]
    found = by_block(FLUX, ",".join(map(str, values)))
    assert [found[f"D{at:02}"] for at in range(19)] == values[1:20]
    assert [found[f"S{at:02}"] for at in range(38)] == values[20:]
    assert {found[one] for one in ("CLIP", "T5", "IN", "OUT")} == {0}


# By name: first and last block that is on, of D and of S.
FLUX_PRESETS = {
    "FLUX-ALL": ((0, 18), (0, 37)),
    "FLUX-DBL-ALL": ((0, 18), None),
    "FLUX-DBL-FRONT7": ((0, 6), None),
    "FLUX-DBL-MID6": ((7, 12), None),
    "FLUX-DBL-TAIL6": ((13, 18), None),
    "FLUX-SINGLE-ALL": (None, (0, 37)),
    "FLUX-SINGLE-1to10": (None, (0, 9)),
    "FLUX-SINGLE-11to20": (None, (10, 19)),
    "FLUX-SINGLE-21to30": (None, (20, 29)),
    "FLUX-SINGLE-31to37": (None, (30, 37)),
}


@pytest.mark.parametrize("name", FLUX_PRESETS)
def test_presets_of_flux(name):
    found = by_block(FLUX, name)
    for letter, ends in zip("DS", FLUX_PRESETS[name], strict=True):
        on = [int(one[1:]) for one, value in found.items() if one[0] == letter and value]
        assert on == ([] if ends is None else list(range(ends[0], ends[1] + 1)))
    assert {found[one] for one in ("CLIP", "T5", "IN", "OUT")} == {1}


INSPIRE = {
    "SD-MIDALL": "1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0",
    "SD-MIDD0.2": "1,0,0,0,0,0,0.2,0.4,0.4,0.2,0,0,0,0,0,0,0",
    "SD-MIDD0.8": "1,0,0,0,0,0.5,0.8,0.8,0.4,0,0,0,0,0,0,0,0",
    "SD-MOUT": "1,0,0,0,0,0,1,1,1,1,1,1,1,1,0.5,0,0",
    "SD-INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "SD-AB; A=0.3,B=0.6": "A,B,B,B,B,B,B,B,B,B,B,B,A,A,A,A,A; A=0.3,B=0.6",
    "SD-AOUT; A=0.3": "A,1,1,1,1,1,1,1,1,1,1,1,A,A,A,A,A; A=0.3",
}


@pytest.mark.parametrize("name", INSPIRE)
def test_presets_of_the_inspire_pack_are_its_numbers(name):
    assert strengths(ATTENTIVE, blocks=name) == strengths(ATTENTIVE, blocks=INSPIRE[name])


def test_counted_blocks():
    text = "%default=0.5,base=0.2,in2-4=0,out12=A,mid=2; A=3"
    found = by_block(SD1, text)
    assert found["BASE"] == 0.2
    assert {found[f"IN{at:02}"] for at in (1, 2, 3)} == {0}
    assert {found["IN00"], found["IN04"], found["OUT10"]} == {0.5}
    assert (found["OUT11"], found["M00"]) == (3, 2)
    flux = by_block(FLUX, "%double1-3=0,single=0.25,default=0.5")
    assert [flux[f"D{at:02}"] for at in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert {flux[f"S{at:02}"] for at in range(38)} == {0.25}
    assert flux["CLIP"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%inn=1", r"`inn=1` in `%inn=1` is not of the form `in2-4=0.5`"),
        ("%double=1", "no block `double` in this file"),
        ("%in30=1", "no block `in30` in this file"),
        ("%in=x", "`x` in `in=x` is not a finite number"),
    ],
)
def test_counted_blocks_that_are_not_there(text, message):
    with pytest.raises(ArgumentError, match=message):
        strengths(SD1, blocks=text)


@pytest.mark.parametrize("names", [SD1, SDXL, FLUX, WAN])
def test_bands_of_the_depth_cover_it_once(names):
    halves, thirds = (
        [by_block(names, one) for one in BANDS if one.endswith(end)] for end in ("HALF", "THIRD")
    )
    numbered = [one for one in halves[0] if one[-2:].isdecimal()]
    assert len(numbered) >= 19
    for parts in (halves, thirds):
        assert {sum(part[one] for part in parts) for one in numbered} == {1}
    assert halves[0][numbered[0]] == thirds[2][numbered[-1]] == 1


def test_a_preset_for_another_model_is_refused():
    with pytest.raises(ArgumentError, match=r"preset `FLUX-DBL-MID6` \(.*\) is for none of this"):
        strengths(SD1, blocks="FLUX-DBL-MID6")
    assert set(LABELLED) >= {one.upper() for one in FLUX_PRESETS}


def test_the_page_names_these_presets_too():
    page = (ROOT / "docs/blocks.md").read_text("utf-8")
    assert [name for name in (*BANDS, *LABELLED) if f"`{name}`" not in page] == []
