from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys.adapters import FLUX, SD1, SDXL, UNET, WAN, numbers

from lorakit.lora_ops.adapters.strengths.rules import parse_rules, strengths
from lorakit.lora_ops.errors import ArgumentError

NAMES = [
    "lora_unet_input_blocks_1_1_proj_in",
    "lora_unet_input_blocks_11_0_in_layers_2",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_text_model_encoder_layers_1_mlp_fc1",
]


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        ("input_blocks_1=3", [0]),
        ("attn1=3", [2]),
        ("1=3", [0, 2, 4]),
        ("lora_unet_input_blocks_1_1_proj_in=3", [0]),
        ("*input_blocks_1*=3", [0, 1]),
        ("*fc[1]=3", [3, 4]),
        ("*_?_mlp_*=3", [3, 4]),
        ("/_blocks_(1|4)_/=3", [0, 2]),
        ("/^lora_te/=3", [3, 4]),
        ("/a=b|fc1$/=3", [3, 4]),
        ("te=3", [3, 4]),
        ("te1=3", [3]),
        ("te2=3", [4]),
        ("unet=3", [0, 1, 2]),
    ],
)
def test_where(entry, places):
    expected = [3.0 if place in places else 1.0 for place in range(len(NAMES))]
    assert list(strengths(NAMES, where=[entry]).values()) == expected


def test_words_end_at_dots_and_underscores():
    """Twin: a pattern found anywhere takes block 11 for block 1."""
    wanted = [1.0 if "blocks_1_" not in name else 0.0 for name in NAMES]
    faulty = [0.0 if "input_blocks_1" in name else 1.0 for name in NAMES]
    assert list(strengths(NAMES, where=["input_blocks_1=0"]).values()) == wanted != faulty


@pytest.mark.parametrize(
    ("te1", "te2"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", None),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2.encoder.block.0.x"),
        ("text_encoders.clip_l.transformer.text_model.x", "text_encoders.clip_g.transformer.x"),
        ("text_encoders.clip_h.transformer.text_model.x", None),
    ],
)
def test_encoders_by_number_in_any_spelling(te1, te2):
    names = [te1, *([te2] if te2 else []), WAN[0]]
    found = strengths(names, where=["te=0", "te1=5", *(["te2=6"] if te2 else []), "unet=7"])
    assert list(found.values()) == [5, *([6] if te2 else []), 7]


def test_the_last_rule_decides_and_zero_is_a_strength():
    """Twins: the first rule decides; 0 counts as no strength."""
    blocks, where = "IN=0.5,IN01=0", ["te=0", "te2=-2", "*fc1=0", "attn1=4"]
    rules = parse_rules(NAMES, blocks=blocks, where=where)
    found = strengths(NAMES, strength=2, blocks=blocks, where=where)
    assert list(found.values()) == [0, 1, 8, 0, 0]
    first = {name: next(2 * r.strength for r in rules if r.matches(name)) for name in NAMES}
    unset = {name: [2 * r.strength for r in rules if r.matches(name)][-1] or 2 for name in NAMES}
    assert found not in (first, unset)


@given(
    st.floats(-1e6, 1e6),
    st.lists(
        st.tuples(st.sampled_from(["te", "unet", "attn1", "*fc1", "/blocks_1/"]), st.floats(-9, 9))
    ),
)
def test_strengths_are_the_last_matching_rule_times_the_whole(strength, given_rules):
    where = [f"{pattern}={value!r}" for pattern, value in given_rules]
    rules = parse_rules(NAMES, where=where)
    for name, found in strengths(NAMES, strength=strength, where=where).items():
        last = [rule.strength for rule in rules if rule.matches(name)][-1:] or [1.0]
        assert found == strength * last[0]


# --- what is refused


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (NAMES, {"strength": float("nan")}, "strength nan is not a finite"),
        (NAMES, {"where": ["te=inf"]}, "`inf` in `te=inf` is not a finite number"),
        (NAMES, {"where": ["te=a"]}, "`a` in `te=a` is not a finite number"),
        (NAMES, {"where": ["te"]}, "`te` has no strength; write `PATTERN=S`"),
        (NAMES, {"where": ["=1"]}, "`=1` has no strength"),
        (NAMES, {"where": ["/(/=1"]}, "is no regular expression"),
        (NAMES, {"where": ["nput_blocks_1=1"]}, "nearest: `input_blocks_1`"),
        (NAMES, {"where": ["//=1"]}, "`//` fits none of 5 layers"),
        (NAMES, {"where": ["attn3=1"]}, "`attn3` fits none of 5 layers; nearest: `attn1`"),
        (NAMES, {"where": ["*input_blocks_12*=1"]}, "nearest: `input_blocks_1+`"),
        (NAMES, {"where": ["*FC1=1"]}, r"`\*FC1` fits none of 5 layers"),
        (SD1[:9], {"where": ["te2=1"]}, "`te2` fits none of 9 layers; the file has unet$"),
        (
            SD1,
            {"blocks": numbers(61)[0]},
            "61 numbers .Flux.1. say nothing of .*use 25 or 26 numbers$",
        ),
        (
            FLUX,
            {"blocks": numbers(26)[0]},
            "has CLIP, T5, IN, D00-D18, S00-S37, OUT; use 61 numbers$",
        ),
        (FLUX, {"blocks": "INALL"}, "the numbers of INALL .* use 61 numbers$"),
        (WAN, {"blocks": numbers(61)[0]}, "a transformer and has B00-B39; use labels"),
        (
            [f"lora_unet_double_blocks_{i}_x" for i in (3, 19)],
            {"blocks": numbers(61)[0]},
            "of D19;",
        ),
        (
            SDXL,
            {"blocks": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"},
            r"OUT00.* use 20 or 25 or 26 numbers; with 0 for those it is",
        ),
        (SD1, {"blocks": "1,2,3"}, "no list has 3 numbers .12: .*; 17: .*; 61: Flux.1.;"),
        (SD1, {"blocks": "0.5"}, "no list has 1 numbers"),
        (SD1, {"blocks": "1,R,1"}, "`R` in `1,R,1` is not a finite number"),
        (SD1, {"blocks": "OUTAL"}, "unknown preset `OUTAL`; nearest: `OUTALL`"),
        (SD1, {"blocks": ""}, "unknown preset ``"),
        (
            SD1,
            {"blocks": "IN12=1"},
            "no block `IN12` in this file, which has BASE, IN00-IN11, M00, OUT",
        ),
        (SD1, {"blocks": "IN01-D04=1"}, "no block `D04`"),
        (SD1, {"blocks": "IN01=x"}, "`x` in `IN01=x` is not a finite number"),
        (SD1, {"blocks": "depth="}, "`` in `depth=` is not a finite number"),
        (
            ["lora_unet_thing"],
            {"blocks": "depth=0,1"},
            "no numbered blocks are known in these 1 layers",
        ),
        (["down_blocks.0.1.x", "up_blocks.0.1.x"], {"blocks": "depth=0,1"}, "no numbered blocks"),
        ([SDXL[0]], {"blocks": "OUTS"}, "preset `OUTS` leaves no block of this file"),
    ],
)
def test_what_is_refused(names, asked, message):
    with pytest.raises(ArgumentError, match=message):
        strengths(names, **asked)


def test_no_rules_leave_all_as_it_is():
    assert strengths([]) == {}
    assert strengths(NAMES) == dict.fromkeys(NAMES, 1.0)
    assert strengths(NAMES, strength=-0.5) == dict.fromkeys(NAMES, -0.5)


def test_names_are_kept_in_order_and_outside_of_blocks_untouched():
    names = [WAN[3], f"{UNET}text_embedding.0", WAN[0]]
    assert list(strengths(names, blocks="B=0").items()) == [
        (names[0], 0),
        (names[1], 1),
        (names[2], 0),
    ]
