from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from lorakit.lora_ops.adapters.formats import COMFY, KOHYA, PEFT_METADATA
from lorakit.lora_ops.adapters.metadata import (
    HASH_KEYS,
    Input,
    Operation,
    Result,
    Source,
    baked_metadata,
    edited_metadata,
    extraction_metadata,
    joined_metadata,
    room_for,
)
from lorakit.lora_ops.files.header import render_header
from lorakit.lora_ops.files.writing.writer import save
from lorakit.lora_ops.models.architectures import ARCHITECTURES
from lorakit.lora_ops.report import LayerReport, Report, Skip

KNOWN = {one.name: one for one in ARCHITECTURES}
HASH = "ab" * 32
TRAINED = {
    "ss_network_dim": "128",
    "ss_network_alpha": "64.0",
    "ss_network_module": "networks.lora",
    "ss_network_args": '{"conv_dim": "64", "conv_alpha": "1", "dropout": "0.1"}',
    "ss_output_name": "old",
    "ss_training_comment": "für Änne",
    "ss_tag_frequency": json.dumps({"10_cat": {f"tag {n}": n for n in range(70_000)}}),
    "ss_base_model_version": "sd_v1",
    "modelspec.title": "old",
    "modelspec.date": "2024-02-03T04:05:06",
    "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 50_000,
    "modelspec.hash_sha256": f"0x{HASH}",
    "sshs_model_hash": HASH,
    "sshs_legacy_hash": "abcdef01",
    "quelqu'un": "né ß 猫\n",
}
# What an edit changes of all this; the rest must be there as it was.
UNTRUE = {
    *("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_output_name"),
    *("ss_training_comment", "modelspec.title", "modelspec.hash_sha256"),
    *("sshs_model_hash", "sshs_legacy_hash"),
}
RESIZE = Operation("resize", "1.2", "resized from 128 to 32", {"rank": "32"})


def layer(target="a", rank=32, kind="linear", shape=(64, 64), norm=4.0, residual=1.0):
    return LayerReport(target, "unet", kind, shape, rank, norm, residual)


def result(*layers, format="kohya", alphas=None, title="new", architecture=None, modules=None):
    report = Report(layers or (layer(),), (Skip("z", "unet", "linear", "rank 0", 3.0),))
    stored = {one.target: float(one.rank) for one in layers} if alphas is None else alphas
    return Result(title, report, torch.float16, format, stored, modules or {}, architecture)


def source(metadata=None, name="old.safetensors", strength=1.0, blocks="", sha256=HASH):
    return Source(Input(name, sha256), metadata or {}, strength, blocks)


def edited(metadata, *layers, operation=RESIZE, **more):
    return edited_metadata(source(metadata), operation, result(*layers, **more))


# --- one adapter from another


def test_an_edit_carries_everything_that_is_still_true():
    assert len(TRAINED["ss_tag_frequency"]) > 1_000_000
    found = edited(TRAINED)
    kept = {key: value for key, value in TRAINED.items() if key not in UNTRUE}
    assert kept.items() <= found.items()
    ours = {key for key in found if key.startswith("lorakit.")}
    assert found.keys() - ours == TRAINED.keys() - {
        *HASH_KEYS,
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
    }


def test_an_edit_makes_true_what_is_not():
    found = edited(TRAINED, layer(rank=32), alphas={"a": 16.0})
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("32", "16")
    assert found["ss_output_name"] == found["modelspec.title"] == "new"
    assert found["ss_training_comment"] == "für Änne; resized from 128 to 32 with lorakit"
    assert not found.keys() & {*HASH_KEYS, "sshs_legacy_hash", "modelspec.hash_sha256"}


@pytest.mark.parametrize(
    ("ranks", "alphas", "expected"),
    [
        ((8, 8), {"0": 0.5, "1": 0.5}, ("8", "0.5")),
        ((8, 4), {"0": 8.0, "1": 4.0}, ("Dynamic", "Dynamic")),
        ((8, 4), {"0": 8.0, "1": 8.0}, ("Dynamic", "8")),
        ((8, 8), {"0": None}, ("8", "8")),  # no alpha is scale 1, which is an alpha of the rank
        ((8, 0), {"0": 8.0}, ("8", "8")),  # a layer of rank 0 is not in the file
        ((8, 8), {"0": 1e6 + 1, "1": 1e6 + 1}, ("8", "1000001")),
    ],
)
def test_ranks_and_alphas_are_those_that_are_written(ranks, alphas, expected):
    found = edited(TRAINED, *(layer(str(n), rank) for n, rank in enumerate(ranks)), alphas=alphas)
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == expected


CONV = layer("c", 16, "conv 3x3", (8, 8, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "layers", "expected"),
    [
        ({"conv_dim": "64", "conv_alpha": "1", "x": "y"}, [layer(), CONV],
         {"x": "y", "conv_dim": "16", "conv_alpha": "16"}),
        ({"conv_dim": "64", "conv_alpha": "1"}, [layer(), layer("c", 4, "conv 1x1", (8, 8, 1, 1))], {}),
        ({"block_dims": "1,2", "x": "y"}, [layer()], {"x": "y"}),
        ({"x": "y"}, [layer(), CONV], {"x": "y", "conv_dim": "16", "conv_alpha": "16"}),
        ({"x": "y"}, [layer(), replace(CONV, rank=32)], {"x": "y"}),
        (None, [layer(), CONV], {"conv_dim": "16", "conv_alpha": "16"}),
        (None, [layer()], None),
    ],
)  # fmt: skip
def test_the_network_arguments_tell_the_ranks_of_convolutions(arguments, layers, expected):
    given_ = {} if arguments is None else {"ss_network_args": json.dumps(arguments)}
    found = edited(given_, *layers)
    assert (
        json.loads(found["ss_network_args"]) if "ss_network_args" in found else None
    ) == expected


@pytest.mark.parametrize("before", [None, "", "None"])
def test_repeated_comments_read_well(before):
    once = edited({"ss_v2": "False"} if before is None else {"ss_training_comment": before})
    twice = edited(once, operation=Operation("scale", "1.2", "scaled by 0.5"))
    assert twice["ss_training_comment"] == (
        "resized from 128 to 32 with lorakit; scaled by 0.5 with lorakit"
    )


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("kohya", {"ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_output_name",
                   "ss_training_comment"}),
        ("comfy", {"format"}),
        ("peft", {"format"}),
    ],
)  # fmt: skip
def test_an_adapter_without_metadata_gets_that_of_its_format(format, expected):
    found = edited({}, format=format, architecture=KNOWN["flux"])
    assert {key for key in found if not key.startswith("lorakit.")} == expected
    assert found.get("ss_network_module", "networks.lora_flux") == "networks.lora_flux"
    assert found.get("format", "pt") == "pt"


def test_the_record_says_what_was_done_to_what():
    found = edited({}, layer("a"), layer("b", 8, residual=2.0))
    ours = {key.removeprefix("lorakit."): v for key, v in found.items() if key[:8] == "lorakit."}
    assert json.loads(ours.pop("layers")) == {"a": [32, 0.25], "b": [8, 0.5]}
    assert float(ours.pop("error")) == pytest.approx(math.sqrt(5 / 32), rel=1e-5)
    assert float(ours.pop("left_out")) == pytest.approx(9 / 41, rel=1e-5)
    assert json.loads(ours.pop("components"))["unet"] == pytest.approx(math.sqrt(5 / 32), rel=1e-5)
    assert ours == {
        "operation": "resize",
        "version": "1.2",
        "rank": "32",
        "dtype": "float16",
        "input": "old.safetensors",
        "input_sha256": HASH,
    }
    assert "lorakit.input_sha256" not in edited_metadata(source(sha256=""), RESIZE, result())


def test_errors_that_are_no_number_are_null():
    found = edited({}, layer(norm=0.0, residual=1.0))
    strict = json.loads(found["lorakit.layers"], parse_constant=pytest.fail)
    assert strict == {"a": [32, None]}


def test_earlier_records_become_history():
    first = edited(TRAINED)
    second = edited(first, operation=Operation("scale", "1.3", parameters={"strength": "0.5"}))
    third = edited(second, operation=Operation("resize", "1.4", parameters={"rank": "8"}))
    past = json.loads(third["lorakit.history"])
    assert [one["operation"] for one in past] == ["resize", "scale"]
    assert [one["version"] for one in past] == ["1.2", "1.3"]
    assert past[0]["components"] == {"unet": 0.25}
    assert not any(one.keys() & {"layers", "history"} for one in past)
    assert (third["lorakit.rank"], "lorakit.strength" in third) == ("8", False)
    assert "lorakit.history" not in first


def test_history_grows_by_what_is_added_only():
    """Text within text would double its backslashes with every edit."""
    sizes, found = [], joined([source({}, f"{n}.safetensors") for n in range(3)])
    for _ in range(12):
        found = joined([source(found), source({}, "b.safetensors")])
        sizes.append(len(json.dumps(found)))
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(steps) < 1.5 * min(steps)


# --- one adapter from several


def joined(sources, *layers, **more):
    return joined_metadata(sources, Operation("add", "1.2", "a sum"), result(*layers, **more))


def of(*maps):
    return joined(
        [source(one, f"{name}.safetensors") for name, one in zip("ABCD", maps, strict=False)]
    )


def test_a_sum_says_what_its_inputs_agree_on():
    same = {"ss_base_model_version": "sd_v1", "modelspec.license": "MIT", "x": "1"}
    found = of(
        {**same, "ss_learning_rate": "1", "only": "A", "modelspec.thumbnail": "a"},
        {**same, "ss_learning_rate": "2", "sshs_model_hash": HASH, "modelspec.thumbnail": "b"},
        {"modelspec.date": "2024-01-01", "lorakit.operation": "resize"},
    )
    assert {**same, "only": "A"}.items() <= found.items()
    gone = {"ss_learning_rate", "modelspec.thumbnail", "sshs_model_hash", "modelspec.date"}
    assert not gone & found.keys()
    assert found["modelspec.merged_from"] == "A, B, C"
    assert found["modelspec.title"] == found["ss_output_name"] == "new"
    assert found["lorakit.operation"] == "add"


def test_a_sum_in_another_format_says_what_that_needs():
    found = joined([source({"format": "pt"})], format="kohya", architecture=KNOWN["sdxl"])
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "ss_network_dim" not in joined([source()], format="comfy")


def test_tables_of_tags_add_up():
    one = {"1_cat": {"fur": 3, "猫": 1}, "both": {"x": 2}}
    two = {"both": {"x": 5, "y": 1}}
    found = of({"ss_tag_frequency": json.dumps(one)}, {"ss_tag_frequency": json.dumps(two)}, {})
    expected = {"1_cat": {"fur": 3, "猫": 1}, "both": {"x": 7, "y": 1}}
    assert json.loads(found["ss_tag_frequency"]) == expected


def test_lists_of_data_sets_and_tags_are_joined():
    found = of(
        {"ss_datasets": '[{"a": 1}, {"b": 2}]', "modelspec.tags": "cat, style"},
        {"ss_datasets": '[{"b":2},{"c":3}]', "modelspec.tags": "style,film , "},
    )
    assert json.loads(found["ss_datasets"]) == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert found["modelspec.tags"] == "cat, style, film"


def test_the_sources_are_listed_with_strength_hash_blocks_and_history():
    earlier = edited({})
    found = joined(
        [source(earlier, "A.safetensors", -0.5, "OUTALL"), source(name="B.c", sha256="")]
    )
    first, second = json.loads(found["lorakit.sources"])
    assert [one["operation"] for one in first.pop("history")] == ["resize"]
    assert first == {"name": "A.safetensors", "strength": -0.5, "sha256": HASH, "blocks": "OUTALL"}
    assert second == {"name": "B.c", "strength": 1.0}
    assert found["modelspec.merged_from"] == "A, B"


MALFORMED = [
    "", "{", "null", "3", '"x"', "[]", "{}", "[1, [2]]", '{"a": 1}', '{"a": {"b": "c"}}', "NaN", "[NaN]",
    "[1e999]", "[" * 100_000, "[" * 980 + "]" * 980, '{"a":' * 990 + "1" + "}" * 990,
    '{"d": {"t": 1' + "0" * 4200 + "}}", "9" * 5000, '["\\ud800"]', '{"\\ud800": {"\\udfff": 1}}',
    '{"d": {"t": true, "u": 1.5}}',
]  # fmt: skip
READ = (
    *("ss_tag_frequency", "ss_datasets", "ss_network_args", "modelspec.tags"),
    *("lorakit.history", "lorakit.components", "lorakit.sources", PEFT_METADATA),
)


@pytest.mark.parametrize("key", READ)
@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_entries_stop_nothing(key, text, tmp_path):
    broken, good = {key: text}, {key: json.dumps({"d": {"t": 1}})}
    numbers = Operation("bake", "1.2")
    for found in (
        edited(broken, format="peft"),
        of(broken, good),
        of(broken, broken),
        baked_metadata(Input("c"), broken, [source(broken)], numbers, dtype=None, measured={}),
    ):
        save(tmp_path / "a.safetensors", {"a": torch.ones(1)}, found)
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert file.metadata() == found
        for name in READ:
            if name in found and name not in broken and name != "modelspec.tags":
                json.loads(found[name], parse_constant=pytest.fail)


def test_a_broken_table_leaves_the_other_one():
    table = {"ss_tag_frequency": '{"d": {"t": 1}}'}
    assert of({"ss_tag_frequency": "{"}, table)["ss_tag_frequency"] == '{"d":{"t":1}}'
    assert "ss_tag_frequency" not in of({"ss_tag_frequency": "{"}, {"ss_tag_frequency": "{"})


def test_what_is_no_count_is_not_added():
    text = '{"d": {"t": 2, "yes": true, "half": 0.5, "vast": ' + "9" * 4299 + "}}"
    assert json.loads(of(*[{"ss_tag_frequency": text}] * 3)["ss_tag_frequency"]) == {"d": {"t": 6}}


@pytest.mark.parametrize("key", ["ss_datasets", "lorakit.history"])
def test_text_that_can_just_be_read_can_be_written(key):
    """Reading nests as deep as writing does, and a record lies some levels deeper."""
    for depth in range(900, 1000):
        edited({key: "[" * depth + "]" * depth})
        of({key: "[" * depth + "]" * depth})


# --- checkpoints


def test_a_baked_checkpoint_keeps_its_metadata_and_says_what_is_in_it():
    stale = {"modelspec.hash_sha256": "0x1", "sshs_model_hash": HASH, "sshs_legacy_hash": "1"}
    kept = {"modelspec.title": "SDXL", "format": "pt", "modelspec.date": "2023", "né": "ß"}
    bake = Operation("bake", "1.2")

    def baked(metadata, operation):
        return baked_metadata(
            Input("base.safetensors", HASH),
            metadata,
            [source(name="A.safetensors", strength=0.7)],
            operation,
            dtype=torch.bfloat16,
            measured={"survived": 0.99999, "lost": 1e-7},
        )

    found = baked({**kept, **stale}, bake)
    ours = {key.removeprefix("lorakit."): v for key, v in found.items() if key[:8] == "lorakit."}
    assert {key: v for key, v in found.items() if key[:8] != "lorakit."} == kept
    assert json.loads(ours.pop("sources")) == [
        {"name": "A.safetensors", "strength": 0.7, "sha256": HASH}
    ]
    assert ours == {
        "operation": "bake",
        "version": "1.2",
        "checkpoint": "base.safetensors",
        "checkpoint_sha256": HASH,
        "dtype": "bfloat16",
        "survived": "0.99999",
        "lost": "1e-07",
    }
    again = baked(found, replace(bake, name="unbake"))
    assert [one["operation"] for one in json.loads(again["lorakit.history"])] == ["bake"]


# --- room in the header


def written(metadata):
    return len(render_header([], metadata))


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_the_room_is_enough(format):
    layers = [layer(f"猫.transformer.layers.{n}.to_q", n % 7 + 1) for n in range(700)]
    longest = max(len(one.target.encode()) for one in layers)
    config = json.dumps({"r": 4, "target_modules": ["to_q"], "note": '\\"' * 500})
    maps = [{**TRAINED, PEFT_METADATA: config}]
    for _ in range(3):
        room = room_for(maps[-1], len(layers), longest)
        maps.append(edited(maps[-1], *layers, format=format))
        assert written(maps[-1]) < room
    room = sum(room_for(one, len(layers), longest) for one in maps)
    assert written(joined([source(one) for one in maps], *layers, format=format)) < room


# --- extraction


def test_the_map_of_an_extraction():
    layers = (layer(), CONV, layer("c.1x1", 4, "conv 1x1", (8, 8, 1, 1)))
    found = extraction_metadata(
        Report(layers),
        title="new",
        rule="32",
        exact=False,
        seed=0,
        dtype=torch.float16,
        format=COMFY,
        architecture=KNOWN["sd2"],
        base=Input("base.safetensors"),
        tuned=Input("tuned.safetensors", HASH),
        tuned_metadata={"modelspec.author": "né", "other": "x"},
        version="1.2",
    )
    assert found == {
        "modelspec.author": "né",
        "ss_network_dim": "32",
        "ss_network_alpha": "32",
        "ss_output_name": "new",
        "ss_network_module": "networks.lora",
        "ss_v2": "True",
        "ss_network_args": '{"conv_dim":"16","conv_alpha":"16"}',
        "ss_base_model_version": "sd_v2",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "new",
        "format": "pt",
        "lorakit.version": "1.2",
        "lorakit.operation": "extract",
        "lorakit.kind": "lora",
        "lorakit.rank": "32",
        "lorakit.exact": "False",
        "lorakit.seed": "0",
        "lorakit.dtype": "float16",
        "lorakit.base": "base.safetensors",
        "lorakit.tuned": "tuned.safetensors",
        "lorakit.tuned_sha256": HASH,
        "lorakit.error": "0.25",
        "lorakit.left_out": "0",
        "lorakit.components": '{"unet":0.25}',
        "lorakit.layers": '{"a":[32,0.25],"c":[16,0.25],"c.1x1":[4,0.25]}',
    }  # fmt: skip


# --- configurations of PEFT


def test_only_files_of_peft_and_diffusers_are_configured():
    config = {PEFT_METADATA: '{"transformer.r": 4, "transformer.lora_alpha": 8}'}
    modules = {"a": "transformer.a"}
    found = edited(config, layer("a"), format="diffusers", modules=modules)
    assert json.loads(found[PEFT_METADATA])["transformer.r"] == 32
    assert PEFT_METADATA not in edited(config, layer("a"), format=KOHYA.name)
    assert PEFT_METADATA not in edited({}, layer("a"), format="peft")
