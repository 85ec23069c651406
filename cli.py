"""The command line: the commands of `commands/` under one name.

Exit status: 0 done, 1 could not (one line says why and what to do), 2 asked wrongly.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import click

if not __package__:  # `python cli.py`: the folder, whatever it is called, is our package
    _root = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location("lorakit", _root / "__init__.py")
    if _spec and _spec.loader:
        sys.modules["lorakit"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["lorakit"])
    __package__ = "lorakit"

from . import __version__
from .commands.add import add
from .commands.bake import bake, unbake
from .commands.compare import compare
from .commands.convert import convert
from .commands.demo import demo
from .commands.extract import extract
from .commands.info import info
from .commands.lint import lint
from .commands.resize import resize
from .commands.scale import scale
from .commands.verify import verify

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="lorakit")
def main() -> None:
    """Extract LoRA adapters from checkpoints, prove them right, look into them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot spell is no reason to fail
            stream.reconfigure(errors="backslashreplace")


for command in (
    info,
    lint,
    extract,
    verify,
    resize,
    scale,
    add,
    compare,
    convert,
    bake,
    unbake,
    demo,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="lorakit")
