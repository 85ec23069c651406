"""Writes docs/api.md, the reference of the Python interface, from signatures and docstrings.

`python docs/make_api.py` after a change of either. A name that `lorakit.lora_ops` begins to offer needs
a place in `api_contents`; a test finds it forgotten.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

from api_contents import ALIASES, ELSEWHERE, HEAD, INNER, MADE, THEMES

import lorakit.lora_ops as face
from lorakit.lora_ops import errors

PAGE = Path(__file__).with_name("api.md")
WIDTH = 100

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\n((?:(?: .*)?\n)+)", re.MULTILINE)
_ITEM = re.compile(r"^ {4}(\*{0,2}\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_CODE = re.compile(r"``.*?``|`[^`]*`|\*")
_PAGE = re.compile(r"docs/(\w+\.md)")


@dataclass(frozen=True)
class Doc:
    """A docstring in its parts: the text, and by section the items or, of returns, one text."""

    text: str
    sections: dict[str, list[tuple[str, str]]]

    @property
    def summary(self) -> str:
        """Its first sentence or line."""
        return _flat(self.text.partition("\n\n")[0])


def read_doc(thing: object) -> Doc:
    """Read a docstring in google style.

    Raises:
        ValueError: There is none.
    """
    text = (inspect.getdoc(thing) or "") + "\n"
    if not text.strip():
        raise ValueError(f"{thing!r} has no docstring")
    found = {
        one[1]: [(item[1], _flat(item[2])) for item in _ITEM.finditer(one[2])]
        if one[1] not in ("Returns", "Yields")
        else [("", _flat(one[2]))]
        for one in _SECTION.finditer(text)
    }
    return Doc(_SECTION.sub("", text).strip(), found)


def anchor(name: str) -> str:
    """The link to a name of the page, as GitHub makes it."""
    thing = getattr(face, name)
    kind = "" if inspect.isfunction(thing) else "class-" if inspect.isclass(thing) else "type-"
    return f"#{kind}{name.lower()}"


def linked(text: str) -> str:
    """A docstring's text with links from the names in it that the page, or another, explains.

    Raises:
        KeyError: It tells the reader to see what is neither on the page nor in `ELSEWHERE`.
    """

    def link(found: re.Match[str]) -> str:
        name = found[0].strip("`")
        whole = name.partition(".")[0]  # `Recipe.bind` is explained with `Recipe`
        target = anchor(whole) if whole in face.__all__ else ELSEWHERE.get(name)
        if target is None and found.string[: found.start()].lower().endswith("see "):
            raise KeyError(f"a docstring says: see `{name}`; the page needs a place for it")
        plain = "\\*" if name == "*" else found[0]  # a star would begin italics
        return plain if target is None else f"[{plain}]({target})"

    return _PAGE.sub(r"[docs/\1](\1)", _CODE.sub(link, text))


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, _, names in THEMES:
        own = ", ".join(f"[`{name}`]({anchor(name)})" for name in names)
        lines.append(f"- **[{title}](#{_slug(title)})**: {own}")
    for title, first, names in THEMES:
        lines += ["", f"## {title}", ""]
        lines += [first, ""] if first else []
        parts = (
            errors_of(names) if title == "Errors" else (line for n in names for line in entry(n))
        )
        lines += parts
    text = "\n".join(lines).rstrip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def entry(name: str) -> Iterator[str]:
    """The lines about one public name."""
    thing = getattr(face, name)
    if inspect.isfunction(thing):
        yield from (f"### `{name}`", "", "```python", signature(name, thing), "```", "")
        yield from described(read_doc(thing))
    elif inspect.isclass(thing):
        yield from (f"### class `{name}`", "")
        if name in MADE:
            yield from ("```python", signature(name, thing), "```", "")
        yield from class_entry(name, thing)
    else:
        yield from (f"### type `{name}`", "", linked(ALIASES[name]), "")
        yield from ("```python", f"{name} = {_alias(thing)}", "```", "")


def described(doc: Doc) -> Iterator[str]:
    """The text of a function, then what it takes, gives and raises."""
    yield from (_paragraphs(doc.text), "")
    titles = {"Args": "Arguments", "Returns": "Returns", "Yields": "Yields", "Raises": "Raises"}
    for section, title in titles.items():
        items = doc.sections.get(section, [])
        if section in ("Returns", "Yields"):
            yield from (f"{title}: {linked(text)}\n" for _, text in items)
        elif items:
            yield from (f"{title}:", "", *(f"- `{one}`: {linked(text)}" for one, text in items), "")


def class_entry(name: str, thing: type[Any]) -> Iterator[str]:
    """The text of a class, its attributes with their types, and what it can be asked."""
    doc, inner = read_doc(thing), INNER.get(name, set[str]())
    ours = [one.__name__ for one in thing.__mro__[1:] if one.__name__ in face.__all__]
    if ours:
        yield from (f"A [`{ours[0]}`]({anchor(ours[0])}).", "")
    yield from (_paragraphs(doc.text), "")
    types = {key: _spelled(value, thing) for key, value in inspect.get_annotations(thing).items()}
    said = dict(doc.sections.get("Attributes", []))
    own = [one.name for one in fields(thing)] if is_dataclass(thing) else []
    for key in (key for key in dict.fromkeys([*said, *own]) if key not in inner):
        if key in said or key in types:
            kind = f" (`{types[key]}`)" if key in types else ""
            yield f"- `{key}`{kind}" + (f": {linked(said[key])}" if key in said else "")
    known = {key for one in ours for key in dir(getattr(face, one))}
    for key, member in members(thing):
        if key not in inner | known:
            yield from member_lines(key, member)
    raised = doc.sections.get("Raises", [])
    yield from ("", *(("Raises:", "") if raised else ()))
    yield from (f"- `{one}`: {linked(text)}" for one, text in raised)
    yield ""


def members(thing: type[Any]) -> Iterator[tuple[str, Any]]:
    """Properties and methods of a class and of those of our own that it is made of."""
    seen = {field.name for field in fields(thing)} if is_dataclass(thing) else set[str]()
    for one in thing.__mro__:
        if not one.__module__.startswith(face.__name__):
            continue
        for key, member in vars(one).items():
            callable_ = isinstance(member, property | staticmethod | classmethod)
            if key.startswith("_") or key in seen or not (callable_ or inspect.isfunction(member)):
                continue
            seen.add(key)
            yield key, member


def member_lines(key: str, member: Any) -> Iterator[str]:
    """One property or method as an item of a list."""
    if isinstance(member, property):
        gives = inspect.get_annotations(member.fget)["return"] if member.fget else ""
        kind = _spelled(gives, member.fget)
        yield f"- `{key}` (`{kind}`): {linked(_flat(read_doc(member).text))}"
        return
    function: Any = getattr(member, "__func__", member)  # of a static or class method
    doc = read_doc(function)
    yield f"- `{signature(key, function, width=10**6)}`: {linked(_flat(doc.text))}"
    for section in ("Args", "Returns", "Raises"):
        for one, text in doc.sections.get(section, []):
            head = "raises " if section == "Raises" else ""
            yield f"  - {head}`{one}`: {linked(text)}" if one else f"  - returns: {linked(text)}"


def errors_of(names: Iterable[str]) -> Iterator[str]:
    """The tree of errors, from the head of their module, and what each means."""
    tree, _, rest = (inspect.getdoc(errors) or "").partition("\n\n")[2].partition("\n\n")
    yield from (_flat(rest), "", "```text", tree, "```")
    for name in names:
        told = read_doc(getattr(face, name))
        yield from ("", f"### class `{name}`", "", told.text, "")
        yield from (f"- `{key}`: {text}" for key, text in told.sections.get("Attributes", ()))


def signature(name: str, thing: Any, width: int = WIDTH) -> str:
    """How it is called, with types, on one line if it fits."""
    parameters = list(inspect.signature(thing).parameters.values())
    if inspect.isfunction(thing) and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    words: list[str] = []
    for index, one in enumerate(parameters):
        before = parameters[index - 1].kind if index else None
        if one.kind is one.KEYWORD_ONLY and before not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            words.append("*")
        words.append(_parameter(one, thing))
    result = inspect.get_annotations(thing).get("return") if inspect.isfunction(thing) else None
    gives = "" if result is None else f" -> {_spelled(result, thing)}"
    line = f"{name}({', '.join(words)}){gives}"
    if len(line) <= width:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){gives}"])


def _parameter(one: inspect.Parameter, thing: Any) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    text = stars + one.name
    if one.annotation is not one.empty:
        text += f": {_spelled(one.annotation, thing)}"
    if one.default is one.empty:
        return text
    made = repr(one.default) == "<factory>"
    return f"{text} = {'...' if made else _spelled_value(one.default)}"


def _spelled_value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _spelled(annotation: Any, thing: Any) -> str:
    """A type as the source of a thing has it; a set of words that has a name of its own, in full."""
    # Annotations are strings; those of a `TypedDict` are wrapped.
    text = str(getattr(annotation, "__forward_arg__", annotation))
    known = getattr(sys.modules[thing.__module__], text, None)
    named = text in face.__all__ or get_origin(known) is not Literal
    return text if named else _alias(known)


def _alias(thing: Any) -> str:
    for module in ("typing.", "collections.abc.", "pathlib."):
        thing = str(thing).replace(module, "")
    return re.sub(r"[\w.]+\.(\w+)", r"\1", thing).replace("'", '"').replace("PosixPath", "Path")


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str) -> str:
    """Paragraphs on a line each; what is indented or a list stays as it stands."""
    parts = textwrap.dedent(text).split("\n\n")
    return "\n\n".join(linked(one if "\n  " in one else _flat(one)) for one in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
