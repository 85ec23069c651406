"""Who may import whom (one way, relatively), and how long a module may be: read from the source."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import ROOT, python
from make_architecture import (
    LAYERS,
    LEVEL,
    PAGE,
    PARTS,
    arrows,
    drawing,
    imports,
    longest_chain,
    modules,
    page,
    room_of,
)

LONGEST = 330  # lines
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server")

#: What is ours alone to know: by part, other people's packages that it must not import.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "lora_ops": ("click", "rich", "PIL", *HOST),
    "pictures": ("click", "rich", *HOST),
    "examples": ("click", "rich", *HOST),
    "terminal": ("click", *HOST),
    "nodes": ("click", "rich"),
    "commands": ("rich", *HOST),
    "cli": ("rich", *HOST),
}
#: Rooms within rooms that know less than their room may.
KNOW_LESS: dict[str, tuple[str, ...]] = {
    "lora_ops.adapters.layers": ("lora_ops.models", "lora_ops.run", "lora_ops.files"),
    "lora_ops.adapters.formats": ("lora_ops.linalg.svd", "lora_ops.linalg.krylov", "lora_ops.run"),
    "lora_ops.models.architectures": ("lora_ops.files", "lora_ops.linalg"),
}


def is_part(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def offences(root: Path) -> list[str]:
    """`module imports what` for everything that is not allowed."""
    found: list[str] = []
    for name, path in modules(root):
        room = room_of(name)
        banned = {bad for part, all_ in FORBIDDEN.items() if is_part(name, part) for bad in all_}
        less = [bad for part, all_ in KNOW_LESS.items() if is_part(name, part) for bad in all_]
        for what in imports(name, path):
            kind, _, other = what.partition(" ")
            if not other:
                wrong = room_of(what) != room and LEVEL[room_of(what)] >= LEVEL[room]
                wrong |= any(is_part(what, bad) for bad in less)
            else:
                wrong = kind != "other" or other.partition(".")[0] in banned
            if wrong:
                found.append(f"{name} imports {what}")
    return found


def test_imports_run_one_way() -> None:
    assert offences(ROOT) == []


def test_every_module_has_a_room_and_every_room_has_modules() -> None:
    """A row for a room that was renamed would hold for ever."""
    rooms = {room_of(name) for name, _ in modules(ROOT)}
    assert rooms == set(LEVEL)
    assert set(FORBIDDEN) <= set(PARTS)
    names = {name for name, _ in modules(ROOT)}
    assert set(KNOW_LESS) | {bad for all_ in KNOW_LESS.values() for bad in all_} <= names


def test_the_rooms_are_few_and_the_ways_between_them_short() -> None:
    """The figures that the house was built to: see docs/architecture.md."""
    print(drawing(ROOT).rpartition("\n")[2])  # noqa: T201  read with pytest -s
    assert len({room for row in LAYERS for room in row}) <= 26
    assert len(arrows(ROOT)) <= 120
    assert longest_chain(ROOT) <= 12


def test_the_drawing_is_of_these_imports() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python docs/make_architecture.py`"


@pytest.mark.parametrize(
    ("where", "line", "found"),
    [
        ("lora_ops/operations/scale/scale.py", "import click", "other click"),
        ("lora_ops/text.py", "from rich.table import Table", "other rich.table.Table"),
        (
            "lora_ops/run/devices.py",
            "def f():\n    from ...terminal import tables",
            "terminal.tables",
        ),
        ("lora_ops/text.py", "from .. import nodes", "nodes"),
        ("lora_ops/text.py", "import nodes", "other nodes"),
        ("lora_ops/text.py", "import comfy.utils", "other comfy.utils"),
        ("lora_ops/text.py", "import lorakit", "absolute lorakit"),
        ("lora_ops/text.py", "from lorakit.lora_ops import x", "absolute lorakit.lora_ops.x"),
        ("lora_ops/text.py", "from ... import x", "beyond the root: None"),
        ("lora_ops/files/base.py", "from ..linalg import svd", "lora_ops.linalg.svd"),
        ("lora_ops/files/base.py", "from .. import adapters", "lora_ops.adapters"),
        ("lora_ops/models/pairing.py", "from ..run import x", "lora_ops.run.x"),
        (
            "lora_ops/adapters/base.py",
            "from ..operations.merge import x",
            "lora_ops.operations.merge.x",
        ),
        ("lora_ops/operations/add/add.py", "from ...training import x", "lora_ops.training.x"),
        ("lora_ops/operations/add/add.py", "from ...inspect import x", "lora_ops.inspect.x"),
        ("lora_ops/errors.py", "from . import files", "lora_ops.files"),
        ("lora_ops/adapters/layers/lora.py", "from ...files import x", "lora_ops.files.x"),
        ("nodes/__init__.py", "from ..cli import main", "cli.main"),
        ("terminal/tables.py", "import click", "other click"),
        ("cli.py", "import rich", "other rich"),
    ],
)
def test_what_must_not_be_is_found(where: str, line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    name = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert offences(tmp_path) == [f"{name} imports {found}"]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (
            "lora_ops/operations/extract/file.py",
            "from ...files import save\nfrom .extract import run",
        ),
        ("lora_ops/files/base.py", "from ..errors import ArgumentError\nfrom .dtypes import x"),
        ("terminal/tables.py", "from ..lora_ops import Report\nfrom rich.table import Table"),
        ("cli.py", "import click\nfrom .terminal import tables"),
        ("examples/read_info.py", "import lorakit"),
    ],
)
def test_what_may_be_passes(where: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert offences(tmp_path) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    for one, other in (("files", "linalg"), ("linalg", "files")):
        path = tmp_path / "lora_ops" / one / "a.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"from ..{other} import b")
    with pytest.raises(ValueError, match="a circle of imports"):
        longest_chain(tmp_path)


def test_no_module_is_too_long() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules(ROOT)}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
    assert len(lengths) > 50, "the walk must find the modules"


HEAVY = ["PIL", "numpy", "rich", "torch"]


def loaded_by(code: str) -> list[str]:
    """Which heavy modules are there after a few lines, in a new Python."""
    # What stands in the place of torch until something of it is used is no plain module.
    there = f"name for name in {HEAVY} if type(sys.modules.get(name)) is type(sys)"
    run = python(f"import sys\n{code}\nprint(*({there}))")
    assert run.status == 0, run.err
    return run.out.splitlines()[-1].split()


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    assert loaded_by("import lorakit") == []
    for words in ("--help", "extract --help", "--version"):
        call = f"from lorakit.cli import main; main({words.split()!r}, standalone_mode=False)"
        assert loaded_by(call) == [], words


def test_what_is_heavy_is_seen() -> None:
    assert "torch" in loaded_by("from lorakit.lora_ops import extract")
