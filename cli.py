"""The command line: the commands of `commands/` under one name.

Exit status: 0 done, 1 could not (one line says why and what to do), 2 asked wrongly, 3 parts missing; 130, 143 or 129
after Ctrl-C, SIGTERM or SIGHUP, which leave no half file either.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import io
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import click

if not __package__:  # `python cli.py`: the folder, whatever it is called, is our package
    _root = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location("lorakit", _root / "__init__.py")
    if _spec and _spec.loader:
        sys.modules["lorakit"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["lorakit"])
    __package__ = "lorakit"

from .commands.add import add
from .commands.bake import bake, unbake
from .commands.compare import compare
from .commands.convert import convert
from .commands.demo import demo
from .commands.extract import extract
from .commands.finish import finish
from .commands.info import info
from .commands.later import import_torch_later
from .commands.lint import lint
from .commands.merge import merge
from .commands.metadata import metadata
from .commands.recipe import recipe
from .commands.requantise import requantise
from .commands.resize import resize
from .commands.scale import scale
from .commands.verify import verify
from .version import __version__

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


# What asks a program to end: Ctrl-C; timeout, SLURM, systemd; a terminal that closes (not on Windows).
_ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")


class _Program(click.Group):
    """A group of commands that ends in order: what was begun is taken back, and the status tells."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; where an option is unknown, tell the nearest there is."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            nearest = list(error.possibilities or ())[:1]
            raise click.NoSuchOption(
                error.option_name, possibilities=nearest, ctx=error.ctx
            ) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; see `click.Group.main`."""
        import_torch_later()
        with _seldom_collected(), _ended_in_order() as signals:
            try:
                return super().main(*args, **kwargs)
            except (SystemExit, OSError) as error:
                if signals:  # no terminal may be left to write to
                    sys.exit(128 + signals[0])
                if isinstance(error, SystemExit) or error.filename is not None:
                    raise
                _give_up_printing(error)
                sys.exit(1)


def _give_up_printing(error: OSError) -> None:
    """Say why a report could not be printed, such as to a full disk, and print no more."""
    with contextlib.suppress(OSError):
        click.echo(f"Error: the report could not be printed: {error.strerror}", err=True)
    sys.stdout = io.StringIO()  # what it still holds would fail once more at the end


@contextlib.contextmanager
def _seldom_collected() -> Generator[None, None, None]:
    """Search for garbage seldom: among the million objects of torch each search takes long."""
    before = gc.get_threshold()
    gc.set_threshold(50_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


# Nor at the end, where the system takes all of it back.
atexit.register(gc.freeze)


@contextlib.contextmanager
def _ended_in_order() -> Generator[list[int], None, None]:
    """Turn signals that end a program into Ctrl-C's exception; give the list of those that came.

    One that is ignored stays so: SIGHUP under nohup, SIGINT in the background of a script.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        # A second Ctrl-C is impatience; the rest may follow one another, as SIGTERM does SIGHUP.
        if not came or number == signal.SIGINT:
            came.append(number)
            raise KeyboardInterrupt

    known = [getattr(signal, name) for name in _ENDINGS if hasattr(signal, name)]
    before = {one: signal.getsignal(one) for one in known}
    ours = [one for one in known if before[one] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # only the main thread may say what signals do
    for one in ours:
        signal.signal(one, end)
    try:
        yield came
    finally:
        for one in ours:
            signal.signal(one, before[one])


@click.group(cls=_Program, context_settings=_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="lorakit")
def main() -> None:
    """Extract LoRA adapters from checkpoints, prove them right, look into them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot spell is no reason to fail
            stream.reconfigure(errors="backslashreplace")


for command in (
    info,
    metadata,
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
    merge,
    requantise,
    finish,
    recipe,
    demo,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="lorakit")
