"""Who may import whom (one way, relatively), and how long a module may be: read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, python

LONGEST = 330  # lines
PARTS = ("cli", "commands", "examples", "lora_ops", "nodes", "pictures", "terminal")
EDITS = (
    *("add", "align", "assemble", "bake", "combine", "compare", "convert", "convert_plan"),
    *("base_weights", "changes", "convert_pieces", "resize_layer", "to_lora", "truncation"),
    *("decomposed", "edit", "models", "resize", "rows", "scale", "spectra", "terms"),
)
OPERATIONS = ("extract", "extract_file", "info", "plan", "verify", *EDITS)


def core(*names: str) -> tuple[str, ...]:
    return tuple(f"lorakit.lora_ops.{name}" for name in names)


# ComfyUI's modules and ours of the same name are told apart: ours begin with `lorakit.`.
HOST = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server")
SKINS = tuple(f"lorakit.{name}" for name in PARTS if name != "lora_ops")
FOUNDATION = core(
    "layers", "linalg", "ranks", "budgets", "methods", "text", "architectures", "errors"
)

#: part -> what it must not import. A part is a module, or a package with all that is in it.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "lorakit.lora_ops": ("click", "rich", "PIL", *HOST, *SKINS),
    **dict.fromkeys(
        FOUNDATION, core(*OPERATIONS, "adapter", "deltas", "files", "formats", "pairs")
    ),
    "lorakit.lora_ops.linalg": core(
        *OPERATIONS, "adapter", "architectures", "deltas", "files", "formats", "layers", "pairs"
    ),
    "lorakit.lora_ops.files": core(
        *OPERATIONS, "adapter", "architectures", "deltas", "formats", "layers", "linalg", "pairs"
    ),
    "lorakit.lora_ops.formats": core(*OPERATIONS, "deltas", "files", "linalg", "pairs"),
    **dict.fromkeys(
        core("deltas", "devices", "extract", "info", "metadata", "pairs", "plan", "verify", *EDITS),
        core(
            "extract_file",
            "resize_file",
            "scale_file",
            "add_file",
            "bake_file",
            "convert_file",
            "files",
        ),
    ),
    **dict.fromkeys(core("blocks", "rules"), core(*OPERATIONS, "adapter", "files", "linalg")),
    "lorakit.cli": ("rich", *HOST, "lorakit.nodes"),
    "lorakit.commands": ("rich", *HOST, "lorakit.nodes", "lorakit.cli"),
    "lorakit.terminal": ("click", *HOST, "lorakit.cli", "lorakit.commands", "lorakit.nodes"),
    "lorakit.nodes": (
        *("click", "rich"),
        *(skin for skin in SKINS if skin not in ("lorakit.nodes", "lorakit.pictures")),
    ),
    "lorakit.pictures": (
        *("click", "rich", *HOST),
        *(skin for skin in SKINS if skin != "lorakit.pictures"),
    ),
    "lorakit.examples": (
        *("click", "rich", *HOST),
        *(skin for skin in SKINS if skin not in ("lorakit.examples", "lorakit.pictures")),
    ),
}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the package that lies at a root.

    The programs in `examples/` are a user's, who imports lorakit by its name: tests/test_examples.py.
    """
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[:-1] == ("examples",) and parts[-1] != "__init__":
            continue
        if parts[0] in (*PARTS, "__init__"):
            yield ".".join(["lorakit", *(part for part in parts if part != "__init__")]), path


def imports(name: str, path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in it; ours under their full names.

    An absolute import of ours is marked, for it works in the installed package alone.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (
                f"absolute {a.name}" if is_part(a.name, "lorakit") else a.name for a in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            if node.level > len(parts):
                yield f"beyond the root: {node.module}"
                continue
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            mark = "absolute " if not node.level and is_part(source, "lorakit") else ""
            yield from (f"{mark}{source}.{alias.name}" for alias in node.names)


def is_part(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def offences(root: Path) -> list[str]:
    """`module imports what` for everything that is not allowed."""
    found: list[str] = []
    for name, path in modules(root):
        for what in imports(name, path):
            banned = [
                bad for part, all_ in FORBIDDEN.items() if is_part(name, part) for bad in all_
            ]
            # A part may import itself: `extract` is an operation, too.
            wrong = any(is_part(what, bad) and not is_part(name, bad) for bad in banned)
            if wrong or what.startswith(("absolute ", "beyond ")):
                found.append(f"{name} imports {what}")
    return found


def test_imports_run_one_way() -> None:
    assert offences(ROOT) == []


def test_the_rules_are_about_modules_that_exist() -> None:
    """A rule for a module that was renamed would hold for ever."""
    names = {name for name, _ in modules(ROOT)}
    ours = {bad for all_ in FORBIDDEN.values() for bad in all_ if bad.startswith("lorakit")}
    assert {*FORBIDDEN, *ours} <= names


@pytest.mark.parametrize(
    ("where", "line", "found"),
    [
        ("lora_ops/extract.py", "import click", "click"),
        ("lora_ops/extract.py", "from rich.table import Table", "rich.table.Table"),
        (
            "lora_ops/extract.py",
            "def f():\n    from ..terminal import tables",
            "lorakit.terminal.tables",
        ),
        ("lora_ops/extract.py", "from .. import nodes", "lorakit.nodes"),
        ("lora_ops/extract.py", "import nodes", "nodes"),
        ("lora_ops/extract.py", "import comfy.utils", "comfy.utils"),
        ("lora_ops/extract.py", "import lorakit", "absolute lorakit"),
        ("examples/digits/model.py", "import lorakit", "absolute lorakit"),
        (
            "lora_ops/extract.py",
            "from lorakit.lora_ops import errors",
            "absolute lorakit.lora_ops.errors",
        ),
        ("lora_ops/extract.py", "from ... import x", "beyond the root: None"),
        ("lora_ops/extract.py", "from .files import save", "lorakit.lora_ops.files.save"),
        ("lora_ops/verify.py", "from .extract_file import x", "lorakit.lora_ops.extract_file.x"),
        ("lora_ops/files/base.py", "from ..linalg import svd", "lorakit.lora_ops.linalg.svd"),
        ("lora_ops/files/__init__.py", "from .. import formats", "lorakit.lora_ops.formats"),
        (
            "lora_ops/formats/table.py",
            "from ..linalg.svd import Svd",
            "lorakit.lora_ops.linalg.svd.Svd",
        ),
        ("lora_ops/layers/lora.py", "from ..extract import run", "lorakit.lora_ops.extract.run"),
        ("lora_ops/errors.py", "from . import files", "lorakit.lora_ops.files"),
        ("nodes/__init__.py", "from ..cli import main", "lorakit.cli.main"),
        ("terminal/tables.py", "import click", "click"),
        ("cli.py", "from .nodes import x", "lorakit.nodes.x"),
    ],
)
def test_what_must_not_be_is_found(where: str, line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    name = "lorakit." + where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert offences(tmp_path) == [f"{name} imports {found}"]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("lora_ops/extract_file.py", "from .files import save\nfrom .extract import run"),
        ("lora_ops/files/base.py", "from ..errors import ArgumentError\nfrom .dtypes import x"),
        ("terminal/tables.py", "from ..lora_ops import Report\nfrom rich.table import Table"),
        ("cli.py", "import click\nfrom .terminal import tables"),
    ],
)
def test_what_may_be_passes(where: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert offences(tmp_path) == []


def test_only_the_way_from_file_to_file_joins_both() -> None:
    """Operations and files meet in few modules (and in the list of public names)."""
    both = [
        name
        for name, path in modules(ROOT)
        if is_part(name, "lorakit.lora_ops")
        and {True}
        == {
            any(is_part(what, part) for what in imports(name, path) for part in parts)
            for parts in (core("files"), core("extract", "verify", *EDITS))
        }
    ]
    assert both == [
        "lorakit.lora_ops",
        *core(
            "add_file",
            "bake_file",
            "convert_file",
            "extract_file",
            "peft_folder",
            "resize_file",
            "save",
            "scale_file",
        ),
        *core("writing"),
    ]


def test_no_module_is_too_long() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules(ROOT)}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
    assert len(lengths) > 50, "the walk must find the modules"


HEAVY = ["PIL", "numpy", "rich", "torch"]


def loaded_by(code: str) -> list[str]:
    """Which heavy modules are there after a few lines, in a new Python."""
    run = python(f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules))")
    assert run.status == 0, run.err
    return run.out.splitlines()[-1].split()


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    assert loaded_by("import lorakit") == []
    for words in ("--help", "extract --help", "--version"):
        call = f"from lorakit.cli import main; main({words.split()!r}, standalone_mode=False)"
        assert loaded_by(call) == [], words


def test_what_is_heavy_is_seen() -> None:
    assert "torch" in loaded_by("import lorakit.lora_ops")
