"""lorakit finish."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .division import ASKED
from .options import PATH, clear_errors, force_option, json_option, verbose_option

if TYPE_CHECKING:
    from ..lora_ops.run.document import Document


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
        from ..lora_ops.run.document import read_document
        from ..lora_ops.run.manifest import PLAN, parts_folder

        output, path = output.absolute(), parts_folder(output) / PLAN
        if not path.is_file():
            raise ArgumentError("has no parts to be finished", path=output)
        document = read_document(path)
    command, parameters = _asked(context, document)
    parameters |= {"output": output, "force": force, "verbose": verbose, "json_to": json_to}
    if "device" in parameters:  # nothing is computed; what was used need not be here
        parameters["device"] = "cpu"
    asked = click.Context(command, parent=context.parent, info_name=command.name)
    asked.params = parameters
    asked.meta[ASKED] = {"finish": True, "verify": verify}
    with asked, _in_folder(Path(document.request["folder"])):
        asked.invoke(command, **parameters)


def _asked(context: click.Context, document: Document) -> tuple[click.Command, dict[str, Any]]:
    """The command that made the parts, and what it was given, as it gets it."""
    group = context.find_root().command
    command = (
        group.get_command(context, document.request["command"])
        if isinstance(group, click.Group)
        else None
    )
    if command is None:
        raise click.ClickException(
            f"no command `{document.request['command']}` of lorakit makes such parts"
        )
    told: dict[str, Any] = document.request["parameters"]
    found = {
        one.name: one.type_cast_value(context, told[one.name])
        for one in command.params
        if one.name in told
    }
    return command, found


@contextlib.contextmanager
def _in_folder(folder: Path):
    """Names are as they were given, from the folder in which they were."""
    before = Path.cwd()
    with contextlib.suppress(OSError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
