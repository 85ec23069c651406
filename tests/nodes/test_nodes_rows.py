"""Rows of LoRAs as text and as objects, and what is read or computed only when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import FLUX, lora
from host_double import standing_in
from safetensors.torch import save_file

from lorakit.lora_ops import ArgumentError

FILES = [
    *("people/anna.safetensors", "style\\ink.pt", "one.safetensors", "old/one.safetensors"),
    *("new/two.safetensors", "old/two.safetensors"),
]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with standing_in():
        monkeypatch.setattr(module("host.host"), "file_names", lambda *folders: FILES)
        yield


def module(name: str) -> Any:
    return importlib.import_module(f"lorakit.nodes.{name}")


def read(text: str = "", given: Any = None, **arriving: float) -> list[tuple[Any, ...]]:
    rows, _ = module("host.rows").rows_of(text, given or {}, arriving)
    return [(*row, row.blocks) for row in rows]


ANNA, INK, ONE = FILES[:3]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("one.safetensors", [(ONE, 1.0, 1.0, "")]),
        ("people/anna.safetensors | 0.5", [(ANNA, 0.5, 0.5, "")]),
        ("people\\anna | .5|-2", [(ANNA, 0.5, -2.0, "")]),
        ("anna.safetensors || 0 | IN04=0.5,OUT=0", [(ANNA, 1.0, 0.0, "IN04=0.5,OUT=0")]),
        ("  ink \n\n# anna\n#\n", [(INK, 1.0, 1.0, "")]),
        ("ink | B | a", [(INK, 7.0, 0.25, "")]),
        ("<lora:ink:0.8>", [(INK, 0.8, 0.8, "")]),
        (
            "a fox <lora:anna:0.8:0.3:LBW=OUTALL>, <lora:ink:1:lbw=INS>",
            [(ANNA, 0.8, 0.3, "OUTALL"), (INK, 1.0, 1.0, "INS")],
        ),
    ],
)
def test_a_line_is_a_row(text: str, rows: list[Any]) -> None:
    assert read(text, A=0.25, B=7.0) == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nobody", "the row of `nobody`: no such file in models/loras; nearest: "),
        ("ana.safetensors", "nearest: `anna.safetensors`"),
        ("two", "the row of `two` fits 2 files, `new/two.safetensors` and `old/two.safetensors`"),
        ("ink | B", "the row of `ink` takes strength B, and nothing arrives at `strength_B`"),
        ("ink | I", "the row of `ink`: strength `I` is no finite number"),
        ("ink | nan", "strength `nan` is no finite number"),
    ],
)
def test_what_is_no_row(text: str, told: str) -> None:
    with pytest.raises(ArgumentError) as failed:
        read(text, A=1.0)
    assert told in str(failed.value)


def test_objects_of_a_script() -> None:
    one = {"lora": "ink", "strength": 0.5, "clip": "A", "blocks": "INS"}
    given = {"lora_1": one, "lora_2": {**one, "on": False}, "lora_3": {"lora": "anna"}}
    assert read("", given, A=2.0) == [(INK, 0.5, 2.0, "INS"), (ANNA, 1.0, 1.0, "")]
    with pytest.raises(ArgumentError, match="there is no input `lora_4`"):
        read("", {"lora_4": "ink"})


def test_a_row_is_what_other_packs_take_apart() -> None:
    rows, _ = module("host.rows").rows_of("ink | 0.5 | 1 | INS", {}, {})
    (name, model, clip), *none = rows
    assert (name, model, clip, none) == (INK, 0.5, 1.0, [])
    assert rows == [(INK, 0.5, 1.0)]
    again = module("host.rows").of_stack([*rows, [ANNA, 1, 1]])
    assert [one.blocks for one in again] == ["INS", ""]
    assert again[0] is rows[0]


def test_only_files_of_rows_that_are_on_count() -> None:
    files = module("host.rows").files_in("ink\n# anna\n", {"lora_1": {"on": False, "lora": "one"}})
    assert files == [INK]
    assert module("host.rows").files_in("nobody", {}) == []


def test_a_file_in_use_is_not_read_again(tmp_path: Path) -> None:
    held, path = module("host.lora_model"), tmp_path / "a.safetensors"
    save_file(lora(FLUX), path)
    first = held.read_once(path)
    assert held.read_once(path) is first
    save_file(lora(FLUX, rank=2), path)
    second = held.read_once(path)
    assert second.keys() == first.keys()
    assert any(second[key].numel() < first[key].numel() for key in first)
    del first, second
    assert not held._HELD


def test_a_sum_is_made_when_it_is_asked_for() -> None:
    held, made = module("host.lora_model"), []

    def make() -> Any:
        made.append(1)
        return held.LoraModel({"a": torch.ones(2)}, "sum", {"x": "y"}, "0")

    later = held.LaterLora("later", make)
    assert list(later.values()) == []  # the host looks there
    assert (made, later.name) == ([], "later")
    assert list(held.as_file(later).keys()) == ["a"]
    assert (later.name, later.metadata) == ("sum", {"x": "y"})
    for ask in (
        len,
        list,
        dict,
        lambda one: "a" in one,
        lambda one: one["a"].numel(),
        lambda one: len({} | one),
    ):
        later = held.LaterLora("later", make)
        assert ask(later) not in (0, False)
        assert len(list(later.values())) == 1
    assert len(made) == 7
