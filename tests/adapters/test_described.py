"""What files say of themselves: as kohya, ai-toolkit, A1111, rgthree, LoRA Manager and Civitai write it."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import REAL
from hypothesis import given
from hypothesis import strategies as st

from lorakit.lora_ops import (
    Described,
    Sidecar,
    described,
    read_metadata,
    read_sidecar,
    trigger_words,
)
from lorakit.lora_ops.adapters.metadata.thumbnail import Thumbnail, read_thumbnail

#: As sd-scripts writes them: every value a string, structures as JSON.
KOHYA = {
    "ss_tag_frequency": json.dumps(
        {"20_ohwx": {"ohwx": 20, "1girl": 9, " smile": 4}, "5_more": {"ohwx": 3, "outdoors": 12}}
    ),
    "ss_output_name": "ohwx_v2",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_sd_model_name": "C:\\models\\ponyDiffusionV6XL.safetensors",
    "ss_network_dim": "16",
    "ss_network_alpha": "8.0",
    "ss_network_module": "networks.lora",
    "ss_resolution": "(1024, 1024)",
    "ss_num_train_images": "160",
    "ss_num_epochs": "10",
    "ss_epoch": "7",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
    "ss_clip_skip": "None",
    "ss_training_comment": "None",
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.title": "Ohwx, second try",
    "modelspec.license": "CC-BY-4.0",
    "modelspec.author": "a person",
    "modelspec.tags": "style, person",
    "modelspec.usage_hint": "weights from 0.6 to 0.9",
    "modelspec.date": "2024-05-01",
}
MANY = {f"a sentence about picture {at}": 1 for at in range(11)}


def tags(**datasets: dict[str, Any]) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(datasets)}


def beside(folder: Path, name: str, content: object) -> Sidecar:
    """The sidecar of a file with such a file beside it."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, "utf-8")
    return read_sidecar(folder / "lora.v2.safetensors")


def test_what_kohya_writes_is_told() -> None:
    told = described(KOHYA)
    assert told.title == "Ohwx, second try"
    assert told.base_model == "ponyDiffusionV6XL.safetensors (sdxl_base_v1-0)"
    assert (told.author, told.licence) == ("a person", "CC-BY-4.0")
    assert told.labels == ("style", "person")
    assert told.usage_hint == "weights from 0.6 to 0.9"
    assert told.tags == {"ohwx": 23, "outdoors": 12, "1girl": 9, "smile": 4}
    assert told.training == {
        "rank": "16",
        "alpha": "8.0",
        "module": "networks.lora",
        "resolution": "(1024, 1024)",
        "images": "160",
        "epochs": "7",
        "optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
        "date": "2024-05-01",
    }
    assert told.comment == ""


@pytest.mark.parametrize("path", sorted(REAL.glob("*.safetensors")), ids=lambda path: path.stem)
def test_adapters_of_other_people(path: Path) -> None:
    told = described(read_metadata(path), read_sidecar(path))
    assert told.base_model == "sd_v1"
    assert told.training["module"] == "networks.lora"
    assert told.trigger_words == ()


def test_without_anything_nothing_is_said() -> None:
    assert described({}) == Described()
    assert trigger_words({}) == ()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (KOHYA, ("ohwx", "outdoors")),
        ({**KOHYA, "modelspec.trigger_phrase": "ohwx, blue (a, b:1.2)\nfur,"}, ("ohwx", "blue (a, b:1.2)", "fur")),
        (tags(**{"1_mycat": {"mycat": 1}}), ("mycat",)),  # as ai-toolkit writes it
        (tags(one=MANY), ()),
        (tags(one={**MANY, "ohwx": 11}), ("ohwx",)),
        (tags(one=dict.fromkeys("abcdefghijklm", 5)), tuple("abcdefghij")),
        ({"ss_tag_frequency": '{"ohwx": 4, "rare": 1}'}, ("ohwx",)),
        ({"modelspec.trigger_phrase": "None", **tags(one={"a": 2})}, ("a",)),
        ({"modelspec.trigger_phrase": " , ,\n"}, ()),
        ({"modelspec.trigger_phrase": "a :) b, c), d"}, ("a :) b", "c)", "d")),
        ({"modelspec.trigger_phrase": "a ((, b\nc, a"}, ("a ((, b", "c", "a")),
    ],
)  # fmt: skip
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(1, 50)),
        max_size=4,
    )
)
def test_tags_of_all_datasets_are_summed(datasets: dict[str, dict[str, int]]) -> None:
    wanted = Counter[str]()
    for one in datasets.values():
        wanted.update(one)
    told = described({"ss_tag_frequency": json.dumps(datasets)})
    assert told.tags == dict(wanted)
    assert list(told.tags.values()) == sorted(wanted.values(), reverse=True)
    half = max(wanted.values(), default=0) / 2
    assert all(wanted[word] >= half for word in told.trigger_words)


@pytest.mark.parametrize(
    "value",
    [
        *("", "null", "[]", "{", '"text"', "[" * 100_000, "1e999", '{"a": {"b": NaN}}', "\x00"),
        *('{"a": {"b": "c"}}', '{"a": {"b": -1, "c": true, "d": 1.5, "": 4}}', '{"a": [1], "b": null}'),
    ],
)  # fmt: skip
def test_entries_that_are_no_such_thing_count_as_absent(value: str) -> None:
    keys = ("ss_tag_frequency", "modelspec.thumbnail", "ss_sd_model_name")
    told = described(dict.fromkeys(keys, value))
    assert (told.tags, told.thumbnail, told.trigger_words) == ({}, None, ())


def test_values_that_are_no_strings_count_as_absent() -> None:
    """A dict of another pack may hold anything."""
    odd: Any = {"modelspec.title": 3, "ss_tag_frequency": {"a": 1}, "ss_output_name": None}
    odd["modelspec.thumbnail"] = b"data:image/png;base64,AAAA"
    assert described(odd) == Described()


# Sidecars


def test_what_a1111_keeps(tmp_path: Path) -> None:
    content = {
        "description": "Draws it",
        "sd version": "SDXL",
        "activation text": "ohwx, <lora:x:1>",
        "preferred weight": 0.7,
        "notes": "better at 20 steps",
    }
    sidecar = beside(tmp_path, "lora.v2.json", content)
    assert trigger_words(KOHYA, sidecar) == ("ohwx", "<lora:x:1>"), "in place of guesses"
    phrase = {"modelspec.trigger_phrase": "a cat, ohwx"}
    assert trigger_words(phrase, sidecar) == ("a cat", "ohwx", "<lora:x:1>")
    told = described({}, sidecar)
    assert (told.description, told.notes, told.base_model) == (
        "Draws it",
        "better at 20 steps",
        "SDXL",
    )
    assert told.preferred_weight == 0.7


def test_a_weight_of_zero_is_what_a1111_writes_where_none_was_chosen(tmp_path: Path) -> None:
    assert beside(tmp_path, "lora.v2.json", {"preferred weight": 0}).preferred_weight is None


def test_what_rgthree_keeps_is_what_somebody_chose(tmp_path: Path) -> None:
    rows = [
        {"word": "ohwx", "civitai": True},
        {"word": "mine", "user": True},
        {"word": "1girl", "count": 40, "metadata": True},
        "no row",
    ]
    content = {"name": "Ohwx - v2", "trainedWords": rows, "baseModel": "SDXL 1.0"}
    sidecar = beside(tmp_path, "lora.v2.safetensors.rgthree-info.json", content)
    assert trigger_words({}, sidecar) == ("ohwx", "mine")
    assert (sidecar.title, sidecar.base_model) == ("Ohwx - v2", "SDXL 1.0")


def test_what_lora_manager_keeps(tmp_path: Path) -> None:
    content = {
        "model_name": "Ohwx",
        "base_model": "Unknown",
        "notes": "",
        "modelDescription": "<p>Draws &amp; paints</p>",
        "usage_tips": '{"strength": 0.6, "strength_min": 0.3}',
        "civitai": {"trainedWords": ["ohwx, a cat", 3]},
    }
    sidecar = beside(tmp_path, "lora.v2.metadata.json", content)
    assert trigger_words({}, sidecar) == ("ohwx", "a cat")
    assert (sidecar.preferred_weight, sidecar.base_model) == (0.6, "")
    assert sidecar.description == "Draws & paints"


def test_what_civitai_says_comes_last(tmp_path: Path) -> None:
    content = {
        "name": "v2",
        "trainedWords": ["ohwx"],
        "model": {"name": "Ohwx"},
        "baseModel": "Pony",
    }
    assert beside(tmp_path, "lora.v2.civitai.info", content).title == "Ohwx v2"
    sidecar = beside(tmp_path, "lora.v2.json", {"activation text": "mine", "sd version": "SDXL"})
    assert (sidecar.trigger_words, sidecar.base_model) == (("mine", "ohwx"), "SDXL")
    assert [path.name for path in sidecar.files] == ["lora.v2.json", "lora.v2.civitai.info"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", "null", "[" * 100_000, '{"preferred weight": NaN}', "\ufeff{}"),
        {"activation text": 3, "preferred weight": "0.5", "notes": ["a"]},
        {"preferred weight": 1e9, "trainedWords": {"a": 1}, "civitai": [], "usage_tips": "["},
        {"preferred weight": True, "model": 3, "trainedWords": [None, {}, [[]]]},
    ],
)
def test_a_damaged_sidecar_says_nothing(tmp_path: Path, content: object) -> None:
    for name in (".json", ".safetensors.rgthree-info.json", ".metadata.json", ".civitai.info"):
        sidecar = beside(tmp_path, f"lora.v2{name}", content)
        assert (sidecar.trigger_words, sidecar.preferred_weight) == ((), None)
        assert described({}, sidecar) == Described()


@pytest.mark.skipif(os.name != "posix", reason="POSIX alone has pipes with names")
def test_what_is_no_file_of_text_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.json")
    (tmp_path / "lora.metadata.json").mkdir()
    (tmp_path / "lora.civitai.info").write_bytes(b'{"trainedWords": ["\xff"]}')
    with (tmp_path / "lora.safetensors.rgthree-info.json").open("wb") as large:
        large.truncate(1 << 30)  # takes no room on the disk
    (tmp_path / "lora.png").mkdir()
    assert read_sidecar(tmp_path / "lora.safetensors") == Sidecar()
    assert read_sidecar(tmp_path / "no folder" / "a") == Sidecar()
    assert read_sidecar(tmp_path / "\x00.safetensors") == Sidecar()
    assert [read_sidecar(name) for name in (".", "..", "/", "")] == 4 * [Sidecar()]


def test_a_preview_is_found(tmp_path: Path) -> None:
    for name in ("lora.v2.png", "lora.v2.preview.webp"):
        (tmp_path / name).touch()
    path = read_sidecar(tmp_path / "lora.v2.safetensors").picture
    assert path is not None
    assert path.name == "lora.v2.preview.webp"


# Thumbnails


@pytest.mark.parametrize("end", ["", "charset=utf-8;"])
def test_a_data_url_is_read_and_written(end: str) -> None:
    data = bytes(range(256))
    text = base64.b64encode(data).decode()
    found = read_thumbnail(
        {"modelspec.thumbnail": f"data:image/jpeg;{end}base64,{text[:40]}\n{text[40:]}"}
    )
    assert found == Thumbnail("image/jpeg", data)
    assert read_thumbnail({"modelspec.thumbnail": found.url}) == found
    assert described({"modelspec.thumbnail": found.url}).to_dict()["thumbnail"] == {
        "type": "image/jpeg",
        "bytes": 256,
    }


@pytest.mark.parametrize(
    "text",
    [
        *("x", "data:image/png;base64,", "data:image/png;base64,?", "data:text/html;base64,AAAA"),
        *("data:image/png,AAAA", "data:image/png;base64,AAA", "https://a.b/c.png"),
    ],
)
def test_anything_else_is_no_thumbnail(text: str) -> None:
    assert read_thumbnail({"modelspec.thumbnail": text}) is None
