"""lorakit finish."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..version import __version__
from .division import ASKED
from .options import PATH, clear_errors, force_option, json_option, verbose_option

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..lora_ops.parts.document import Document


@click.command()
@click.argument("output", type=PATH)
@click.option("--verify", is_flag=True, help="Read and hash all parts before they are joined.")
@force_option
@verbose_option
@json_option
@click.pass_context
def finish(
    context: click.Context,
    output: Path,
    verify: bool,
    force: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Join the parts of OUTPUT, made by any command with --part.

    Every item of the plan has to be there once, of this plan and of inputs that have not changed. The
    result is byte for byte that of the same command without --part. The folder OUTPUT.parts goes then.

    Where something is missing, what it is is listed, nothing changes, and the exit status is 3.
    """
    with clear_errors():
        from ..lora_ops import ArgumentError
        from ..lora_ops.parts.document import read_document
        from ..lora_ops.parts.joining import clear, is_publishing
        from ..lora_ops.parts.manifest import PLAN, parts_folder
        from ..terminal.as_json import STDOUT

        output = output.absolute()
        path = parts_folder(output) / PLAN
        if not path.is_file() and is_publishing(output):
            clear(path.parent)
            click.echo("was finished before; its parts are gone now")
            return
        if not path.is_file():
            raise ArgumentError("has no parts to be finished", path=output)
        document = read_document(path)
        if json_to not in (None, STDOUT):
            json_to = str(Path(json_to).absolute())
        command, parameters = _asked(context, document, path)
        if "device" in parameters:  # where they were made; here nothing is computed
            parameters["device"] = _one_here(parameters["device"])
    parameters |= {"output": output, "force": force, "verbose": verbose, "json_to": json_to}
    asked = click.Context(command, parent=context.parent, info_name=command.name)
    asked.params = parameters
    asked.meta[ASKED] = {"finish": True, "verify": verify}
    with asked, _in_folder(Path(document.request["folder"])):
        asked.invoke(command, **parameters)


def _asked(
    context: click.Context, document: Document, path: Path
) -> tuple[click.Command, dict[str, Any]]:
    """The command that made the parts, and what it was given, as it gets it.

    Args:
        context: Of this command.
        document: The plan.
        path: Where it was read.

    Raises:
        FormatError: It says of no command how it was called.
        MismatchError: Another version made it.
    """
    from ..lora_ops import FormatError, MismatchError

    if document.version != __version__:
        raise MismatchError(
            f"its parts were made by lorakit {document.version}, and this is {__version__}; finish them with that one",
            path=path,
        )
    group = context.find_root().command
    try:
        request = document.request
        told: dict[str, Any] = request["parameters"]
        command = cast("click.Group", group).commands[request["command"]]
        if "part" not in [one.name for one in command.params] or not Path(request["folder"]):
            raise KeyError(command.name)
        return command, {
            str(one.name): one.type_cast_value(context, told[str(one.name)])
            for one in command.params
            if one.expose_value
        }
    except (KeyError, TypeError, ValueError, AttributeError, click.BadParameter) as error:
        raise FormatError("says of no command how it was called; remove it", path=path) from error


def _one_here(devices: str) -> str:
    """The first of the devices that parts were made on, or the CPU where this machine does not have it."""
    from ..lora_ops import ArgumentError, place

    first = devices.split(",")[0].strip()
    try:
        place(first)
    except ArgumentError:
        return "cpu"
    return first


@contextlib.contextmanager
def _in_folder(folder: Path) -> Generator[None, None, None]:
    """Names are as they were given, from the folder in which they were."""
    before = Path.cwd()
    with contextlib.suppress(OSError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
