"""Entries set and taken away in memory: by name and pattern, told exactly, refused where they lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.lora_ops import ArgumentError, architecture_named, edit_metadata

SAID = {"ss_output_name": "one", "ss_network_dim": "4", "format": "pt", "né": "ß"}


def test_entries_go_by_name_and_pattern() -> None:
    said = {**SAID, "ss_[x]": "1", "lora_adapter_metadata": "{}", "_quantization_metadata": "{}"}
    edit = edit_metadata(said, {"ss_network_dim": "8"}, ["ss_*", "ss_[x]"])
    assert edit.removed == ("ss_[x]", "ss_output_name")
    assert (edit.changed, edit.added) == (("ss_network_dim",), ())
    assert edit_metadata(said, None, ["*"]).metadata.keys() == {
        *("format", "lora_adapter_metadata", "_quantization_metadata")
    }
    assert len(edit_metadata(said, None, ["*"]).notes) == 3
    named = edit_metadata(said, None, ["*", "lora_adapter_metadata", "format"])
    assert named.metadata.keys() == {"_quantization_metadata"}


@given(
    st.dictionaries(st.text("abc*[é", min_size=1, max_size=3), st.text(max_size=3), max_size=6),
    st.dictionaries(st.text("abc*[é", min_size=1, max_size=3), st.text(max_size=3), max_size=6),
    st.sets(st.text("abc*[é", min_size=1, max_size=3), max_size=3),
)
def test_what_changes_is_told_exactly(
    before: dict[str, str], changes: dict[str, str], removals: set[str]
) -> None:
    held = removals & before.keys()
    edit = edit_metadata(before, changes, held)
    assert edit.metadata == {k: v for k, v in before.items() if k not in held} | changes
    told = {*edit.added, *edit.changed, *edit.removed}
    assert told == {
        key for key in {*before, *edit.metadata} if before.get(key) != edit.metadata.get(key)
    }


def test_a_file_gets_what_the_specification_asks_for_once() -> None:
    sdxl = architecture_named("sdxl")
    first = edit_metadata({}, {"modelspec.tags": "a"}, title="one", architecture=sdxl)
    assert first.metadata == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "one",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": "1024x1024",
        "modelspec.tags": "a",
    }
    assert first.hash_keys == ("modelspec.hash_sha256",)
    known = {"modelspec.sai_model_spec": "1.0.0"}
    second = edit_metadata(known, {"modelspec.tags": "a"}, title="one", architecture=sdxl)
    assert second.metadata == {**known, "modelspec.tags": "a"}
    other = edit_metadata({"modelspec.title": "kept"}, {"modelspec.tags": "a"}, title="one")
    assert other.metadata["modelspec.title"] == "kept"


@pytest.mark.parametrize(
    ("changes", "removals", "words"),
    [
        ({"": "x"}, (), "an entry needs a name"),
        ({"a": "\udcff"}, (), "no valid Unicode"),
        ({"\udcff": "a"}, (), "no valid Unicode"),
        ({"sshs_model_hash": "0"}, (), "made true by itself"),
        ({"sshs_legacy_hash": "0"}, (), "made true by itself"),
        ({"modelspec.hash_sha256": "0"}, (), "made true by itself"),
        ({"modelspec.thumbnail": "a.png"}, (), "give a picture as `thumbnail=`"),
        ({}, ("ss_network_dm",), "did you mean `ss_network_dim`"),
        ({}, ("zzz*",), r"no entry is called `zzz\*`; see what there is"),
    ],
)
def test_what_cannot_be_done_is_refused(
    changes: dict[str, str], removals: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        edit_metadata(SAID, changes, removals)


def test_without_metadata_nothing_can_go() -> None:
    with pytest.raises(ArgumentError, match="the file has no metadata"):
        edit_metadata({}, None, ["a"])
