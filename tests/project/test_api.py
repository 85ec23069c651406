"""docs/api.md is what the code says, whole, and speaks of nothing that a user cannot import."""

from __future__ import annotations

import ast
import builtins
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_contents
import make_api
import pytest
import user_script
from commands import tiny_pair

import lorakit.lora_ops as face
from lorakit.lora_ops import errors

#: Types of other people's packages, and of the language.
FOREIGN = {
    "Any",
    "Callable",
    "Collection",
    "Generator",
    "Iterator",
    "Literal",
    "Mapping",
    "Path",
    "Self",
}
FOREIGN |= {"Sequence", "Tensor", "Unpack", "nn", "torch", *dir(builtins)}
#: Functions whose first sentence says what their arguments are.
TERSE = {"architecture_named", "disable", "enable", "merge_into", "parse_rank", "parse_rule"}
TERSE |= {"open_source", "set_strength", "unmerge"}
FUNCTIONS = [name for name in face.__all__ if inspect.isfunction(getattr(face, name))]
CLASSES = [name for name in face.__all__ if inspect.isclass(getattr(face, name))]


def test_the_page_is_what_the_script_writes() -> None:
    written = make_api.PAGE.read_text("utf-8")
    assert written == make_api.page(), "run `python docs/make_api.py`"


def test_every_public_name_has_its_place_once() -> None:
    named = [name for _, _, names in api_contents.THEMES for name in names]
    assert sorted(named) == sorted(face.__all__)


def test_every_error_is_in_the_tree() -> None:
    page = make_api.page()
    ours = [one for one in vars(errors).values() if inspect.isclass(one)]
    raised = [one.__name__ for one in ours if issubclass(one, Exception)]
    assert len(raised) > 10
    assert [name for name in raised if f" {name} " not in page.replace("\n", " ")] == []


def types_of(thing: Any) -> Iterator[str]:
    """The names in the types of all that a function takes and gives."""
    for annotation in inspect.get_annotations(thing).values():
        text = str(getattr(annotation, "__forward_arg__", annotation))
        yield from (one.id for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_types_of_functions_are_public(name: str) -> None:
    """Whoever writes type hints needs the names of what goes in and comes out."""
    assert set(types_of(getattr(face, name))) <= {*face.__all__, *FOREIGN}


@pytest.mark.parametrize("name", CLASSES)
def test_types_in_classes_are_public(name: str) -> None:
    thing, inner = getattr(face, name), api_contents.INNER.get(name, set())
    shown = {
        key: value for key, value in inspect.get_annotations(thing).items() if key not in inner
    }
    found = {key: str(getattr(value, "__forward_arg__", value)) for key, value in shown.items()}
    for key, member in make_api.members(thing):
        function = member.fget if isinstance(member, property) else member
        if key not in inner:
            found |= {
                f"{key}: {one}": one for one in types_of(getattr(function, "__func__", function))
            }
    names = {
        one.id
        for text in found.values()
        for one in ast.walk(ast.parse(text))
        if isinstance(one, ast.Name)
    }
    module = vars(inspect.getmodule(thing))
    words = {one for one in names if typing.get_origin(module.get(one)) is typing.Literal}
    assert names - words <= {*face.__all__, *FOREIGN}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_said(name: str) -> None:
    thing = getattr(face, name)
    said = [key.lstrip("*") for key, _ in make_api.read_doc(thing).sections.get("Args", [])]
    assert said == ([] if name in TERSE else list(inspect.signature(thing).parameters))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_raised_exists(name: str) -> None:
    raised = make_api.read_doc(getattr(face, name)).sections.get("Raises", [])
    assert [key for key, _ in raised if not hasattr(errors, key)] == []


def test_a_users_script_runs(tmp_path: Path) -> None:
    """What it asserts holds; its types are checked against the installed wheel, by `.ci/run`."""
    base, tuned = map(str, tiny_pair(tmp_path))
    refused = user_script.main(base, tuned, tmp_path)
    assert "no layer differs between" in str(refused)


def test_a_users_script_uses_every_public_name() -> None:
    tree = ast.parse(inspect.getsource(user_script))
    used = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    assert used >= set(face.__all__)


class TestTheScript:
    """The reader of docstrings, on docstrings that are made up."""

    def test_parts_of_a_docstring(self) -> None:
        def example(first: int, *, second: str = "a") -> str:
            """Do it.

            More of it.

            Args:
                first: One
                    more line.
                second: Two: of them.

            Returns:
                A string.

            Raises:
                ValueError: Never.
            """
            return second * first

        doc = make_api.read_doc(example)
        assert (doc.text, doc.summary) == ("Do it.\n\nMore of it.", "Do it.")
        assert doc.sections == {
            "Args": [("first", "One more line."), ("second", "Two: of them.")],
            "Returns": [("", "A string.")],
            "Raises": [("ValueError", "Never.")],
        }
        assert make_api.signature("f", example) == 'f(first: int, *, second: str = "a") -> str'
        narrow = make_api.signature("f", example, width=20)
        assert narrow == 'f(\n    first: int,\n    *,\n    second: str = "a",\n) -> str'

    def test_without_a_docstring(self) -> None:
        with pytest.raises(ValueError, match="no docstring"):
            make_api.read_doc(lambda: None)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("see `extract`", "see [`extract`](#extract)"),
            ("See `Lint`; 2 * 3", r"See [`Lint`](#class-lint); 2 \* 3"),
            ("see `ranks` and `x * y`", "see [`ranks`](../README.md#ranks) and `x * y`"),
            ("see docs/kinds.md", "see [docs/kinds.md](kinds.md)"),
        ],
    )
    def test_links(self, text: str, found: str) -> None:
        assert make_api.linked(text) == found

    def test_a_link_to_nowhere(self) -> None:
        with pytest.raises(KeyError, match="needs a place"):
            make_api.linked("as ever, see `nothing`")
