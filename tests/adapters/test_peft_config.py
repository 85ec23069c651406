from __future__ import annotations

import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.adapters.formats import (
    PEFT_CONFIG,
    PEFT_METADATA,
    Written,
    adapter_config,
    decode,
    peft_scales,
    with_unit_scales,
)
from lorakit.lora_ops.adapters.peft.patterns import matches
from lorakit.lora_ops.errors import FormatError, UnsupportedLayerError


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


EXPRESSIONS = [
    *(r"blocks\.\d+\.to_q", r"blocks\.(0|1)\.to_[qv]", r"^up\.blocks.*", r".*\.to_v", "to_(q|v)"),
    *(r"(?:up\.)?blocks\.1\.to_q", r"blocks\.\d{2,}\.to_q", "blocks.0.to.q", "o[^a-s]her", r"\w+"),
    *("^blocks.1.to_q$", "blocks", "", "(single_)?blocks.0.to_q", r"(\w+\.?)+to_q", "a|other"),
]


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_patterns_match_what_they_match_in_peft(pattern):
    config = {"r": 8, "lora_alpha": 8, "alpha_pattern": {pattern: 3, "to_q": 5}}
    expected = {name: of_peft(config, "", name) for name in NAMES}
    for metadata in (entry(config), {PEFT_CONFIG: json.dumps(config)}):
        assert peft_scales(metadata, NAMES) == expected
    assert set(expected.values()) - {1.0}


@given(
    st.text("ab.1", max_size=6),
    st.recursive(
        st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^b]", r"\d", "^", "$"]),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map("({0[0]}|{0[1]})".format),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,1}", "*?"])).map(
                "(?:{0[0]}){0[1]}".format
            ),
        ),
        max_leaves=8,
    ),
)
def test_any_expression_matches_as_in_python(name, pattern):
    assert matches(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


def test_an_expression_that_python_never_ends_with_is_matched_at_once():
    assert not matches("(a+)+b", "a" * 200)
    assert not matches("((((a*)*)*)*)*b", "a" * 200)
    with pytest.raises(ValueError, match="takes too long"):
        matches("(a?a?a?){9999}b", "a" * 2000)


@pytest.mark.parametrize("pattern", ["(?=a)a", r"(a)\1", "a(", r"\ba", "a++", "(?P<x>a)"])
def test_an_expression_that_is_not_read_is_refused_by_name(pattern):
    config = entry({"r": 4, "rank_pattern": {pattern: 8}})
    with pytest.raises(FormatError, match=re.escape(pattern) + ".*save the file"):
        peft_scales(config, ["a.b"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"init_lora_weights": "corda"}, "corda.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16.*path_initial"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "of tomorrow"}, "of tomorrow"),
        ({"init_lora_weights": "olora", "fan_in_fan_out": True}, "OLoRA with `fan_in_fan_out`"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA.*merge it with PEFT"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"target_parameters": ["experts.down"]}, "target_parameters"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
    ],
)
def test_what_changes_the_weight_otherwise_is_refused_by_name(fields, named):
    keys = {"base_model.model.a.lora_A.weight": (2, 8), "base_model.model.a.lora_B.weight": (8, 2)}
    tensors = {key: torch.ones(shape) for key, shape in keys.items()}
    for metadata in (entry({"r": 2} | fields), {PEFT_CONFIG: json.dumps({"r": 2} | fields)}):
        with pytest.raises(UnsupportedLayerError, match=named):
            decode(DictSource(tensors, metadata))
        if "peft_type" not in fields:  # fields of LoRA mean nothing in another method
            assert decode(DictSource(tensors, entry({"peft_type": "LOKR"} | fields))).layers


def test_the_configuration_beside_the_weights_of_peft_governs_them(tmp_path):
    """Beside a file of another name, or with other keys, it is somebody else's."""
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 5}')
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}
    ours = {f"base_model.model.a.{k}.weight": torch.ones(s) for k, s in shapes.items()}
    kohya = {"lora_unet_a.lora_down.weight": torch.ones(2, 8)}
    kohya["lora_unet_a.lora_up.weight"] = torch.ones(8, 2)
    for name, tensors, scale in (
        ("adapter_model.safetensors", ours, 2.5),
        ("adapter_model.bin", ours, 2.5),
        ("other.safetensors", ours, 1.0),
        ("adapter_model.safetensors", kohya, 1.0),
    ):
        path = tmp_path / name
        (torch.save if path.suffix == ".bin" else save_file)(tensors, path)
        with open_source(path) as source:
            assert {layer.scale for layer in decode(source).layers.values()} == {scale}
            assert {one.name for one in source.paths} == {name} | (
                {"adapter_config.json"} if scale != 1 else set()
            )
        path.unlink()
    save_file(ours, tmp_path / "adapter_model.safetensors")
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "adapter_config.json").write_text(text)
        with (
            open_source(tmp_path / "adapter_model.safetensors") as source,
            pytest.raises(FormatError, match=r"adapter_config\.json"),
        ):
            decode(source)


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


def test_of_patterns_that_fit_the_first_decides_so_the_longest_name_comes_first():
    """`proj_out` also fits `single_transformer_blocks.0.proj_out`; in order of letters it is the first."""
    scales = {"proj_out": 2.0, "single_transformer_blocks.0.proj_out": 1.0, "a.to_q": 1.0}
    ranks = {"proj_out": 3, "single_transformer_blocks.0.proj_out": 5, "a.to_q": 5}
    layers = {f"base_model.model.{n}": Written("LORA", ranks[n], scales[n]) for n in scales}
    config = json.loads(adapter_config(layers))

    def told(name: str, pattern: str, common: str) -> float:
        """As PEFT asks: the first pattern that the name ends in, at a dot."""
        fits = (v for key, v in config[pattern].items() if re.match(rf"(.*\.)?({key})$", name))
        return next(fits, config[common])

    for name, scale in scales.items():
        rank = told(name, "rank_pattern", "r")
        assert rank == ranks[name]
        assert told(name, "alpha_pattern", "lora_alpha") == scale * rank
    by_letters = dict(sorted(config["alpha_pattern"].items()))
    assert next(iter(by_letters)) == "proj_out", "the faulty order"
