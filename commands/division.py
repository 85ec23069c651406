"""The options of work in parts: one part of many, on any machine; or all, to be taken up again where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..version import __version__
from .options import PATH, AskedWrongly, tell, together

if TYPE_CHECKING:
    from ..lora_ops import Division, Processes, RayTasks, Report

#: Where commands keep what was asked for; `finish` puts its own there.
ASKED = "lorakit.division"
# What changes nothing of what is written, or only where.
_NOT_OPTIONS = {"output", "force", "dry_run", "verbose", "json_to", "device", "vram", "search"}
# Words that begin with the path of a file: in a merge its recipe says what they mean.
_PATHS = {"what", "loras"}


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        context.meta.setdefault(ASKED, {})[option.name] = value


def _part(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    number, _, count = value.partition("/")
    is_number = all(one.isdecimal() and len(one) < 10 for one in (number, count))
    if not (is_number and 1 <= int(number) <= int(count)):
        raise AskedWrongly(f"--part {value}: give I/N, as 3/16, with I from 1 to N")
    _keep(context, option, (int(number), int(count)))


def _engine(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    name, _, address = value.partition(":")
    if name != "ray" or (address == "" and ":" in value):
        raise AskedWrongly(f"--engine {value}: give ray, or ray:ADDRESS")
    _keep(context, option, (address,))


def _on_the_cpu(context: click.Context, option: click.Parameter, value: str) -> None:
    if {one.strip() for one in value.split(",")} != {"cpu"}:
        raise AskedWrongly(
            f"--device {value}: this is done on the CPU; give cpu, or cpu,cpu for two processes"
        )
    _keep(context, option, value)


#: For a command that computes on the CPU alone, and whose work can be divided.
processes_option = click.option(
    "--device",
    default="cpu",
    callback=_on_the_cpu,
    expose_value=False,
    help="Processors: cpu, or cpu,cpu: two processes, which make parts as `--resume` does.",
)

#: For a command whose work can be divided; its function does not get them: see `division`.
division_options = together(
    click.option(
        "--part",
        metavar="I/N",
        callback=_part,
        expose_value=False,
        help="Do one part of N, of about equal cost, into the folder OUTPUT.parts; `lorakit finish` joins "
        "them.  [default: all of it]",
    ),
    click.option(
        "--resume",
        is_flag=True,
        callback=_keep,
        expose_value=False,
        help="Work in parts, and go on where a run that was stopped left off.",
    ),
    click.option(
        "--engine",
        metavar="ray[:ADDRESS]",
        callback=_engine,
        expose_value=False,
        help="Have parts made, as `--resume` does, by the tasks of a Ray cluster: of this machine, or at ADDRESS.  "
        "[default: this process]",
    ),
    click.option(
        "--verify",
        is_flag=True,
        callback=_keep,
        expose_value=False,
        help="With --part: read and hash what is there already, too.",
    ),
    click.option(
        "--plan",
        type=PATH,
        metavar="FILE",
        callback=_keep,
        expose_value=False,
        help="Write what would be done as JSON, item by item, and stop.  [default: do it]",
    ),
)


def division(output: Path, *, force: bool) -> Division | None:
    """Return how the running command is to be divided; None: it is done at once.

    Args:
        output: Where to.
        force: Whether a plan may replace a file.

    Raises:
        AskedWrongly: The options contradict each other.
    """
    from ..lora_ops import Division

    context = click.get_current_context()
    asked: Mapping[str, Any] = context.meta.get(ASKED, {})
    devices = _devices(context)
    elsewhere = "--engine" if "engine" in asked else "several devices" if devices[1:] else ""
    modes = [name for name in ("part", "resume", "plan", "finish") if name in asked]
    if not modes and not elsewhere and "verify" not in asked:
        return None
    if len(modes) > 1:
        raise AskedWrongly(f"--{modes[0]} and --{modes[1]} exclude each other; leave one out")
    if "part" in modes and elsewhere:
        raise AskedWrongly(f"--part and {elsewhere} exclude each other: one part is made here")
    if "verify" in asked and not {"part", "finish"} & {*modes}:
        raise AskedWrongly("--verify is for --part; leave it out")
    if modes and context.params.get("dry_run"):
        raise AskedWrongly(f"--dry-run and --{modes[0]} exclude each other; leave one out")
    options = {
        name: list(map(os.path.basename, value)) if name in _PATHS else _plain(value, short=True)
        for name, value in sorted(context.params.items())
        if name not in _NOT_OPTIONS and value not in (None, False, ())
    }
    return Division(
        options=options,
        version=__version__,
        request={
            "command": context.command.name,
            "folder": str(Path.cwd()),
            "parameters": {name: _plain(one) for name, one in context.params.items()},
        },
        part=asked.get("part"),
        finish=bool(asked.get("finish")),
        plan=asked.get("plan"),
        force=force,
        verify=bool(asked.get("verify")),
        engine=None
        if "finish" in asked
        else _engine_of(asked, devices, context.params.get("vram")),
    )


def own_device(device: str) -> str:
    """Of --device, what this process itself is to use, for what is done before there are parts.

    Args:
        device: As it was given: one, or several.
    """
    asked: Mapping[str, Any] = click.get_current_context().meta.get(ASKED, {})
    if "engine" in asked and device != "cpu":
        return "auto"  # what a cluster has need not be here
    return device.split(",")[0].strip()


def _devices(context: click.Context) -> list[str]:
    asked: Mapping[str, Any] = context.meta.get(ASKED, {})
    given: str = context.params.get("device") or asked.get("device") or "cpu"
    return [one.strip() for one in given.split(",")]


def _engine_of(
    asked: Mapping[str, Any], devices: Sequence[str], vram: str | None
) -> Processes | RayTasks | None:
    """Who makes parts; None: this process."""
    from ..lora_ops import Processes, RayTasks
    from ..lora_ops.text import parse_size

    memory = None if vram is None else parse_size(vram)
    if "engine" not in asked:
        return Processes(devices, memory) if devices[1:] else None
    if devices[1:] or ":" in devices[0]:
        raise AskedWrongly(
            f"--device {','.join(devices)}: Ray gives each part a device of its own; name its kind: cpu or cuda"
        )
    return RayTasks(asked["engine"][0], devices[0], memory)


def may_replace(asked: Division | None, output: Path, *, force: bool) -> bool:
    """Whether the output may replace a file: also where it was about to get its name when its run was killed."""
    from ..lora_ops.parts.joining import is_publishing

    return force or (asked is not None and is_publishing(output))


def tell_all(
    report: Report,
    show: Callable[..., None],
    *,
    asked: Division | None,
    output: Path,
    json_to: str | None,
    verbose: bool,
) -> None:
    """End a command whose work may have been divided; see `tell`.

    Args:
        report: What became of everything; or of a part.
        show: Prints it as a table, where it is of everything.
        asked: How it was divided.
        output: Where to.
        json_to: As --json has it.
        verbose: Whether the table shows every layer.
    """
    if asked is None or (asked.computes and asked.part is None) or asked.finish:
        tell(report, show, json_to=json_to, verbose=verbose, output=output)
        return
    from ..lora_ops.parts.manifest import parts_folder
    from ..lora_ops.text import plain
    from ..terminal.as_json import write_json

    if write_json(report.to_dict(), json_to):
        return
    for note in report.notes:
        click.echo(note)
    where = parts_folder(output) if asked.plan is None else asked.plan
    then = "" if asked.plan else f"; once all parts are there: lorakit finish {plain(output)}"
    click.echo(f"wrote {plain(where)}{then}")


def _plain(value: Any, *, short: bool = False) -> Any:
    """A parameter as JSON holds it.

    Args:
        value: Of a command.
        short: Whether paths are without their folders, which differ from machine to machine.
    """
    if isinstance(value, Path):
        return value.name if short else os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(one, short=short) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value
