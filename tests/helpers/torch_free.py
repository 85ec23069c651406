"""Commands in processes of their own, and what of torch they bring."""

from __future__ import annotations

import json
from collections.abc import Sequence

from commands import ROOT, Run, python
from make_architecture import modules

# Each command in a fork of one process, which has all modules that commands import; none of these uses torch while
# it is imported. Told is what asks for torch first, and how many modules of it are there in the end: none of them
# is what stands in its place until then.
_PROGRAM = """
import importlib, json, os, sys, tempfile, traceback
from lorakit.cli import main
from lorakit.commands import later

later.import_torch_later()
commands, names = map(json.loads, sys.argv[1:])
for name in names:
    importlib.import_module(name)

ask_ = later._Later.__getattr__
def ask(self, name):
    was = type(self)
    found = ask_(self, name)
    if was is later._Later and type(self) is not was:
        frame = sys._getframe(1)
        print("torch is brought by", frame.f_globals["__name__"], "line", frame.f_lineno, file=sys.stderr)
    return found
later._Later.__getattr__ = ask

def run(words):
    status = 70
    try:
        main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    count = sum(name.startswith("torch.") for name in sys.modules)
    print("modules of torch:", count, file=sys.stderr)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)

def answer(words):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            run(words)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        return status, out.read().decode(), err.read().decode()

print(json.dumps([answer(words) for words in commands]))
"""


def without_torch() -> list[str]:
    """The modules of the core that do not use torch while they are imported: all but training's."""
    names = [f"lorakit.{name}" for name, _ in modules(ROOT) if name.startswith("lora_ops.")]
    return [name for name in names if not name.startswith("lorakit.lora_ops.training")]


def answers(commands: Sequence[Sequence[object]]) -> list[tuple[Run, int]]:
    """Run commands, each as if alone; of each how it ended, and how many modules of torch were there.

    What it says on stderr begins with who brought torch, if it was brought.
    """
    lines = [[str(word) for word in words] for words in commands]
    done = python(_PROGRAM, json.dumps(lines), json.dumps(without_torch()))
    assert done.status == 0, done.err
    found: list[tuple[Run, int]] = []
    for status, out, err in json.loads(done.out):
        said, _, number = err.rpartition("modules of torch: ")
        found.append((Run(status, out, said), int(number)))
    return found


def modules_of_torch(*words: object) -> tuple[Run, int]:
    """The same of one command."""
    return answers([words])[0]
