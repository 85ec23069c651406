"""Every module of the core can be the first that a program imports: no circle begins at one."""

from __future__ import annotations

import json

from commands import ROOT, python
from make_architecture import modules, room_of

# A circle lies within a room, as imports between rooms run one way: so all but one room stays loaded. What a package
# imports itself is imported with it, before any module of it: to import such a module first is to import the package.
_PROGRAM = """
import functools, importlib, json, sys
from lorakit.commands.later import import_torch_later

def first(name, room):
    for one in room:
        sys.modules.pop(one, None)
    importlib.import_module(name)
    return {one for one in room if one in sys.modules}

import_torch_later()
failed = []
for room in json.loads(sys.argv[1]):
    brought = functools.cache(lambda name: first(name, room))
    for name in room:
        try:
            package = name.rpartition(".")[0]
            if package not in room or name not in brought(package):
                brought(name)
        except ImportError as error:
            failed.append(f"{name}: {error}")
print(json.dumps(failed))
"""


def failures(names: list[str]) -> list[str]:
    """Which of our modules cannot be imported first, and why."""
    rooms: dict[str, list[str]] = {}
    for name in names:
        rooms.setdefault(room_of(name), []).append(f"lorakit.{name}")
    run = python(_PROGRAM, json.dumps([*rooms.values()]))
    assert run.status == 0, run.err
    return json.loads(run.out)


def test_every_module_can_be_the_first() -> None:
    names = [name for name, _ in modules(ROOT) if name.startswith("lora_ops.")]
    assert len(names) > 400
    assert failures(names) == []
