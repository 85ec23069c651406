"""Recipes as documents: TOML for people, JSON for the metadata of files. One table of keys for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ....adapters.layers import Convention
from ....errors import ArgumentError, LoraOpsError
from ....text import plain
from .checks import Taking, check
from .places import named, place
from .recipe import FORMAT, STEP_KEYS, TERM_KEYS, Output, Recipe, RecipeFile, Step, Term, Value
from .table import Table, shown
from .toml_text import toml_text

_MOST = 4_000_000  # characters of a document
#: A name that is nowhere explained is a file if it ends like one.
_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file: TOML, or JSON if it begins with `{`.

    Args:
        path: The file.

    Raises:
        ArgumentError: There is no such file, it is no recipe, or the recipe means nothing.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ArgumentError(f"the recipe cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"the recipe is no UTF-8 text: {error.reason}", path=path) from None
    try:
        return parse_document(text)
    except LoraOpsError as error:
        error.path = error.path or path
        raise


def parse_document(text: str) -> Recipe:
    """Read a recipe from its text: TOML, or JSON if it begins with `{`.

    Args:
        text: The document. Names of methods and what they take are checked when it is planned.

    Raises:
        ArgumentError: With line, table and key, where it is no recipe or means nothing.
    """
    return parse_checked(text)


def parse_checked(text: str, methods: Mapping[str, Taking] | None = None) -> Recipe:
    """Read a recipe from its text; see `parse_document`.

    Args:
        text: The document.
        methods: The methods that there are; None: names of methods and parameters are not checked.

    Raises:
        ArgumentError: With line, table and key, where it is no recipe or means nothing.
    """
    if len(text) > _MOST:
        raise ArgumentError(f"a document of {len(text)} characters; {_MOST} is the most")
    if text.lstrip().startswith("{"):
        return from_tree(_json(text), methods)
    toml = _tomllib()
    try:
        tree = toml.loads(text)
    except RecursionError:
        raise ArgumentError("the document nests too deep") from None
    except ValueError as error:
        raise ArgumentError(f"the recipe is no TOML: {_lowered(error)}") from None
    return _recipe(Table(tree, (), partial(place, text)), methods)


def from_tree(tree: object, methods: Mapping[str, Taking] | None = None) -> Recipe:
    """Read a recipe from the tree of its JSON twin.

    Raises:
        ArgumentError: With table and key, where it is no recipe or means nothing.
    """
    return _recipe(Table(tree, (), named), methods)


def as_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML: in one order, defaults left out; `parse_document` reads it back as the same.

    Args:
        recipe: Any.
    """
    return toml_text(as_tree(recipe), spread=("files",))


def as_json(recipe: Recipe) -> str:
    """The recipe as compact JSON, with what was measured: `lorakit.recipe` in the metadata of a file."""
    return json.dumps(as_tree(recipe, measured=True), ensure_ascii=False, separators=(",", ":"))


def as_tree(recipe: Recipe, *, measured: bool = False) -> dict[str, Any]:
    """The recipe as tables: dicts, lists, texts and numbers.

    Args:
        recipe: Any.
        measured: With sizes of files, and with what the steps did when they were run.
    """
    tree: dict[str, Any] = {"lorakit": FORMAT}
    if recipe.title:
        tree["title"] = recipe.title
    tree["files"] = {
        key: _without_defaults(
            name=file.name,
            sha256=file.sha256,
            url=file.url,
            kind=file.kind,
            part=file.part,
            bytes=file.bytes if measured else None,
        )
        for key, file in recipe.files.items()
    }
    tree["step"] = [_step_tree(step, measured) for step in recipe.steps]
    tree["parts"] = dict(recipe.parts)
    output, dtype = recipe.output, dict(recipe.output.dtype)
    tree["output"] = _without_defaults(
        dtype=dtype["all"] if set(dtype) == {"all"} else dtype,
        to=output.to,
        whole=list(output.whole),
        quantise=list(output.quantise),
        rounding="" if output.rounding == "nearest" else output.rounding,
        format=output.format,
        kind=output.kind,
        rank=output.rank,
        keep="" if output.keep == "auto" else output.keep,
        dora="" if output.dora == "paper" else output.dora,
        allow=list(output.allow),
    )
    return {key: value for key, value in tree.items() if value or key == "lorakit"}


def _step_tree(step: Step, measured: bool) -> dict[str, Any]:
    tree = _without_defaults(
        name=step.name,
        method="" if step.method == "sum" else step.method,
        base=step.base,
        legacy=step.legacy,
        sparsify="" if step.sparsify == "none" else step.sparsify,
    )
    tree |= {key: _plain(value) for key, value in step.parameters.items()}
    if step.seed is not None:
        tree["seed"] = step.seed
    terms: list[dict[str, Any]] = []
    for term in step.terms:
        row = _without_defaults(of=term.of, minus=term.minus)
        if term.weight != 1.0:
            row["weight"] = _plain(term.weight)
        row |= _without_defaults(
            blocks=term.blocks, where=list(term.where), elemental=term.elemental
        )
        terms.append(row | {key: _plain(value) for key, value in term.parameters.items()})
    if terms:
        tree["terms"] = terms
    if measured and step.measured:
        tree["measured"] = dict(step.measured)
    return tree


def _without_defaults(**values: object) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ("", None, [], {})}


def _plain(value: Value) -> object:
    return list(value) if isinstance(value, tuple) else value


def _recipe(top: Table, methods: Mapping[str, Taking] | None) -> Recipe:
    version = top.whole("lorakit")
    if version is None:
        raise ArgumentError(
            f"the recipe does not say its format; begin it with `lorakit = {FORMAT}`"
        )
    if version != FORMAT:
        raise top.fault(
            "lorakit",
            f"is {shown(version)}: the format of another version of lorakit; "
            f"this one reads {FORMAT}, so update lorakit, or write that",
        )
    title = top.text("title")
    table = top.table("files")
    files = {key: _file(table.table(key)) for key in table.items()}
    steps = [_step(row, number) for number, row in enumerate(top.tables("step"), 1)]
    table = top.table("parts")
    parts = {key: table.text(key) for key in table.items()}
    output = _output(top.table("output"))
    top.done()
    names = {step.name for step in steps}
    for name in (*(name for step in steps for name in _used(step)), *parts.values()):
        if name not in files and name not in names and name.lower().endswith(_SUFFIXES):
            files[name] = RecipeFile(name)
    recipe = Recipe(tuple(steps), files, title, parts, output)
    check(recipe, methods=methods)
    return recipe


def _used(step: Step) -> list[str]:
    return [step.base, *(name for term in step.terms for name in (term.of, term.minus))]


def _file(table: Table) -> RecipeFile:
    found = RecipeFile(
        table.text("name"),
        sha256=table.text("sha256").lower(),
        url=table.text("url"),
        kind=table.text("kind"),
        part=table.text("part"),
        bytes=table.whole("bytes"),
    )
    table.done()
    return found


def _step(table: Table, number: int) -> Step:
    measured = table.table("measured")
    numbers = {key: measured.weight(key, 0.0) for key in measured.items()}
    step = Step(
        table.text("name", f"step{number}"),
        terms=tuple(map(_term, table.tables("terms"))),
        method=table.text("method", "sum"),
        base=table.text("base"),
        sparsify=table.text("sparsify", "none"),
        legacy=table.text("legacy"),
        seed=table.whole("seed"),
        measured={key: value for key, value in numbers.items() if isinstance(value, float)},
        place=table.place,
    )
    return replace(step, parameters=table.rest(STEP_KEYS))


def _term(table: Table) -> Term:
    of = table.text("of")
    if not of:
        raise table.fault("of", "is missing: every term says of which file or step it is")
    return Term(
        of,
        minus=table.text("minus"),
        weight=table.weight("weight", 1.0),
        blocks=table.text("blocks"),
        where=table.texts("where"),
        elemental=table.text("elemental"),
        parameters=table.rest(TERM_KEYS),
    )


def _output(table: Table) -> Output:
    dtype = table.get("dtype")
    if dtype is None or isinstance(dtype, str):
        dtypes = {"all": dtype} if dtype else {}
    else:
        inner = table.table("dtype")
        dtypes = {key: inner.text(key) for key in inner.items()}
    rank = table.get("rank")
    if not isinstance(rank, int | str | None) or isinstance(rank, bool):
        raise table.fault("rank", f"is {shown(rank)}, not a number or a rule of ranks")
    found = Output(
        dtypes,
        to=table.text("to"),
        whole=table.texts("whole"),
        quantise=table.texts("quantise"),
        rounding=table.text("rounding", "nearest"),
        format=table.text("format"),
        kind=table.text("kind"),
        rank=rank,
        keep=table.text("keep", "auto"),
        dora=cast("Convention", table.text("dora", "paper")),  # `check` says if it is neither
        allow=table.texts("allow"),
    )
    table.done()
    return found


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ArgumentError("the document nests too deep") from None
    except ValueError as error:
        raise ArgumentError(f"the recipe is no JSON: {_lowered(error)}") from None


def _lowered(error: Exception) -> str:
    text = plain(str(error))
    return text[:1].lower() + text[1:]


def _tomllib() -> ModuleType:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ArgumentError(
                "reading TOML needs Python 3.11, or the package `tomli`: install it, or write the "
                "recipe as JSON"
            ) from None
    return cast("ModuleType", tomllib)
