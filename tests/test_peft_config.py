from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.formats import PEFT_METADATA, peft_scales, with_unit_scales


def of_peft(config, component, name):
    """Alpha / rank as PEFT's LoraModel sets it: patterns are regular expressions, first one first."""
    prefix = f"{component}." if component else ""

    def value(field, pattern):
        patterns = config.get(f"{prefix}{pattern}", {})
        hits = (key for key in patterns if re.match(rf"(.*\.)?({key})$", name))
        return patterns.get(next(hits, name), config.get(prefix + field, 8))

    rank, alpha = value("r", "rank_pattern"), value("lora_alpha", "alpha_pattern")
    return alpha / (math.sqrt(rank) if config.get(f"{prefix}use_rslora") else rank)


def entry(config):
    return {PEFT_METADATA: json.dumps(config)}


CONFIG = {
    "transformer.r": 16,
    "transformer.lora_alpha": 32,
    "transformer.rank_pattern": {"blocks.0.to_q": 4, "^blocks.1.to_q": 8},
    "transformer.alpha_pattern": {"blocks.0.to_q": 4, "to_v": 8},
    "transformer.target_modules": ["to_q", "to_v"],
    "transformer.use_rslora": False,
    "text_encoder.r": 4,
    "text_encoder.lora_alpha": 6,
    "text_encoder.use_rslora": True,
}
NAMES = [
    *("blocks.0.to_q", "blocks.1.to_q", "blocks.1.to_v", "other", "up.blocks.0.to_q"),
    *("up.blocks.1.to_q", "single_blocks.0.to_q"),
]


def test_scales_are_those_of_peft():
    modules = {
        f"{part}.{name}": (part, name) for part in ("transformer", "text_encoder") for name in NAMES
    }
    found = peft_scales(entry(CONFIG), modules)
    expected = {module: of_peft(CONFIG, *place) for module, place in modules.items()}
    assert found == pytest.approx(expected)
    assert len(set(found.values())) == 5, "the names must reach every rule"
    assert found["text_encoder.other"] == 6 / math.sqrt(4)


def test_a_configuration_of_one_model_has_no_component():
    config = {"r": 4, "lora_alpha": 2, "rank_pattern": {"a.b": 8}}
    modules = ("base_model.model.a.b", "c", "transformer.d")
    assert peft_scales(entry(config), modules) == dict(zip(modules, (0.25, 0.5, 0.5), strict=True))


@pytest.mark.parametrize(
    "metadata",
    [
        {}, entry({}), entry([]), entry({"unet.r": 4, "unet.lora_alpha": 1}), entry({"bias": "none"}),
        entry({"r": 0, "lora_alpha": 1}), entry({"r": "4", "lora_alpha": 1}),
        entry({"r": 4, "lora_alpha": math.inf}), entry({"r": True, "lora_alpha": math.nan}),
        {PEFT_METADATA: "{"}, {PEFT_METADATA: "[" * 100_000}, entry({"r": 10**400}),
    ],
)  # fmt: skip
def test_a_configuration_that_says_nothing_gives_scale_1(metadata):
    assert peft_scales(metadata, ["a.b"]) == {"a.b": 1.0}


def test_a_regular_expression_is_not_run():
    config = entry({"r": 4, "rank_pattern": {"(a+)+b": 8}})
    with pytest.raises(FormatError, match=r"regular expression `\(a\+\)\+b`.*save the file"):
        peft_scales(config, ["a" * 40])


def test_an_edited_file_has_scale_1_everywhere():
    ranks = {f"transformer.{name}": rank for rank, name in enumerate(NAMES, 2)}
    ranks |= dict.fromkeys((f"transformer.x.{n}" for n in range(9)), 5) | {"text_encoder.a": 3}
    written = with_unit_scales([entry(CONFIG)], ranks)
    assert set(peft_scales(written, ranks).values()) == {1.0}
    config = json.loads(written[PEFT_METADATA])
    assert (config["transformer.r"], config["text_encoder.r"]) == (5, 3)
    assert config["transformer.target_modules"] == ["to_q", "to_v"]
    assert config["text_encoder.use_rslora"] is False
    assert set(peft_scales(entry(CONFIG), ranks).values()) != {1.0}, "the stale one must fail"


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4), min_size=1))
def test_a_loader_computes_the_rank_of_every_layer(ranks):
    modules = {f"transformer.{name}": rank for name, rank in ranks.items()}
    config = json.loads(with_unit_scales([entry(CONFIG)], modules)[PEFT_METADATA])
    as_ranks = {**config, "transformer.lora_alpha": 1, "transformer.alpha_pattern": {}}
    for name, rank in ranks.items():
        assert of_peft(config, "transformer", name) == 1.0
        assert of_peft(as_ranks, "transformer", name) == pytest.approx(1 / rank)


def test_the_configuration_of_a_sum_lists_its_modules_where_the_inputs_differ():
    one = {"r": 4, "lora_alpha": 4, "target_modules": ["to_q"], "bias": "none", "use_dora": False}
    two = {**one, "target_modules": ["to_v"], "r": 8}
    config = json.loads(
        with_unit_scales([entry(one), {}, entry(two)], {"a": 2, "b": 2})[PEFT_METADATA]
    )
    assert config == {
        "r": 2,
        "lora_alpha": 2,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["a", "b"],
        "bias": "none",
        "use_dora": False,
    }
