"""What lint found, as lines: programs first, then the findings in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lora_ops.report import counted
from ..lora_ops.text import either
from .layout import open_console, safe
from .wording import worded

if TYPE_CHECKING:
    from rich.console import Console

    from ..lora_ops import Finding, Lint

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show_lint(found: Lint) -> None:
    """Print what the file is, a line for each program, and a line for each finding with its cure."""
    console = open_console()
    layers = found.verdicts[0].layers if found.verdicts else 0
    model = found.architecture or (
        either(found.possible) if found.possible else "unknown architecture"
    )
    console.print(
        f"[bold]{safe(found.name)}[/]: {safe(model)}, {found.format} names, "
        f"{counted(layers, 'layer')}",
        highlight=False,
        soft_wrap=True,
    )
    for verdict in found.verdicts:
        line = f"  {verdict.program:<9}  {verdict.summary}"
        console.print(safe(line), highlight=False, soft_wrap=True)
    for program in (None, *(verdict.program for verdict in found.verdicts)):
        findings = found.of(program)
        if findings:
            console.print(f"\n[bold]{program or 'the file'}[/]")
            _show(console, findings)
    if not found.findings:
        console.print("\nnothing to say")


def _show(console: Console, findings: tuple[Finding, ...]) -> None:
    told = ""
    for one in findings:
        style = _STYLES[one.severity]
        console.print(
            f"  [{style}]{one.severity:<7}[/]  {one.code}  {safe(worded(one.message) + _where(one))}",
            highlight=False,
            soft_wrap=True,
        )
        if one.cure and one.cure != told:
            console.print(
                f"           [dim]{safe(worded(one.cure))}[/]", highlight=False, soft_wrap=True
            )
            told = one.cure


def _where(one: Finding) -> str:
    for first in one.where:
        more = f" and {len(one.where) - 1} more" if len(one.where) > 1 else ""
        return f": `{first}`{more}"
    return ""
