"""Commands whose work is done in parts, and in one run, and whether both come to the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import contents, lorakit_here


def report_of(*words: object) -> dict[str, Any]:
    """The report of a command that succeeds, without its time."""
    made = lorakit_here(*words, "--json", "-")
    assert made.status == 0, made.err
    return {name: one for name, one in json.loads(made.out).items() if name != "seconds"}


def divided(
    folder: Path, name: str, *words: object, count: int = 3, order: Sequence[int] | None = None
) -> dict[str, Any]:
    """Run a command at once, and in parts; fail unless files and reports are the same.

    Args:
        folder: An empty one.
        name: Of the output.
        *words: The command, without its output.
        count: How many parts.
        order: In which they are made; None: the last first.

    Returns:
        The report.
    """
    once, apart = folder / "once", folder / "apart"
    once.mkdir(parents=True)
    apart.mkdir()
    report = report_of(*words, "-o", once / name)
    for number in order or range(count, 0, -1):
        made = lorakit_here(*words, "-o", apart / name, "--part", f"{number}/{count}")
        assert made.status == 0, made.err
        assert f"part {number} of {count}" in made.out
    joined = report_of("finish", apart / name)
    assert joined == report
    assert contents(apart) == contents(once), "other bytes, or more files"
    return report


def resumed(folder: Path, name: str, *words: object) -> None:
    """Run a command at once, and to be taken up again; fail unless files and reports are the same."""
    once, again = folder / "once", folder / "again"
    if not once.exists():
        once.mkdir()
        report_of(*words, "-o", once / name)
    again.mkdir()
    report_of(*words, "-o", again / name, "--resume")
    assert contents(again) == contents(once), "other bytes, or more files"
