"""A progress bar with rate and time left, on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator

Progress = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_bar(title: str, *, unit: str = "weights") -> Generator[Progress | None, None, None]:
    """Give a callback (done, total, name) that draws; None where nobody watches.

    Args:
        title: What is being done.
        unit: What is counted: weights or bytes, shown in millions, or layers.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    scale, prefix = (1e6, "M ") if unit in ("weights", "bytes") else (1, "")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}  left"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[name]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None, rate="", name="")

        def show(done: int, total: int, name: str) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed / scale:.0f} {prefix}{unit}/s" if speed else ""
            bar.update(task, completed=done, total=total, rate=rate, name=name[-44:])

        yield show
