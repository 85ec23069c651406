"""The drawing in docs/architecture.md, from the imports as they stand: `python docs/make_architecture.py`.

A room is a folder with all that is in it, or a module that stands alone: one row of the drawing each.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn -->\n", "<!-- /drawn -->\n"
PARTS = ("cli", "commands", "examples", "lora_ops", "nodes", "pictures", "terminal", "version")

# Who may import whom: a room what stands in a row above its own, and nothing of its own row.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("lora_ops.elements", "lora_ops.errors", "lora_ops.spacing", "version"),
    ("lora_ops.report", "lora_ops.source", "lora_ops.text"),
    ("lora_ops.files", "lora_ops.linalg"),
    ("lora_ops.run", "lora_ops.models"),
    ("lora_ops.adapters", "lora_ops.parts"),
    ("lora_ops.operations", "lora_ops.training"),
    ("lora_ops.inspect",),
    ("lora_ops",),
    ("pictures",),
    ("examples",),
    ("nodes", "terminal"),
    ("commands", ""),
    ("cli",),
)
LEVEL = {room: level for level, row in enumerate(LAYERS) for room in row}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the package that lies at a root.

    The programs in `examples/` are a user's, who imports lorakit by its name.
    """
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[:-1] == ("examples",) and parts[-1] != "__init__":
            continue
        if parts[0] in (*PARTS, "__init__"):
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(name: str, path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in it; ours by its place in the package.

    An absolute import of ours is marked, for it works in the installed package alone.
    """
    inside = name.split(".") if name else []
    parts = inside if path.name == "__init__.py" else inside[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                mark = "absolute" if alias.name.split(".")[0] == "lorakit" else "other"
                yield f"{mark} {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            mark = "absolute" if (node.module or "").split(".")[0] == "lorakit" else "other"
            yield from (f"{mark} {node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(parts) + 1:
                yield f"beyond the root: {node.module}"
                continue
            above = parts[: len(parts) - node.level + 1]
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}".lstrip(".") for alias in node.names)


def room_of(name: str) -> str:
    """The room of a module, or of a name in one, by its dotted name below the package."""
    first, _, rest = name.partition(".")
    if first not in PARTS:
        return ""
    inner = f"{first}.{rest.partition('.')[0]}"
    return inner if inner in LEVEL else first


@cache
def arrows(root: Path = ROOT) -> dict[tuple[str, str], int]:
    """How many modules of a room import from another, by (room, the other)."""
    found: dict[tuple[str, str], int] = {}
    for name, path in modules(root):
        room = room_of(name)
        others = {room_of(what) for what in imports(name, path) if " " not in what}
        for other in others - {room}:
            found[room, other] = found.get((room, other), 0) + 1
    return found


def longest_chain(root: Path = ROOT) -> int:
    """Rooms in the longest chain of imports."""
    below: dict[str, list[str]] = {}
    for room, other in arrows(root):
        below.setdefault(room, []).append(other)

    def depth(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"a circle of imports: {' > '.join([*above, room])}")
        return 1 + max((depth(other, (*above, room)) for other in below.get(room, ())), default=0)

    return max(map(depth, below))


def drawing(root: Path = ROOT) -> str:
    """The rooms from the top down: what each is, and what it imports from."""
    words: dict[str, str] = {}
    for name, path in modules(root):
        text = path.read_text("utf-8")
        room = room_of(name)
        words.setdefault(room, "")
        if name == room:
            told = ast.get_docstring(ast.parse(text)) or ""
            words[room] = told.splitlines()[0].rstrip(".") if told else ""
    rows: list[str] = []
    for row in reversed(LAYERS):
        for room in row:
            if room not in words:
                continue
            title = room.replace(".", "/") or "__init__"
            down = sorted(
                (other.rpartition(".")[2] for one, other in arrows(root) if one == room),
            )
            rows.append(f"{title:<22}{words[room]}")
            if down:
                rows.append(f"{'':<24}takes from {', '.join(down)}")
    pairs, chain = len(arrows(root)), longest_chain(root)
    rows.append("")
    rows.append(
        f"{len(words)} rooms, {pairs} pairs of them with an import, the longest chain {chain}"
    )
    return "\n".join(rows)


def page(root: Path = ROOT) -> str:
    """The page as it should be: its own words, and the drawing made anew."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n```text\n{drawing(root)}\n```\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
